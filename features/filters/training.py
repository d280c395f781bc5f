"""Tile filters out of examples: split by patient or slide, judged on what was held out."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from features.errors import FilterError
from features.filters.classifier import (
    ConfusionCounts,
    EmbeddingSpec,
    ExampleSlide,
    LabelledTiles,
    TileFilter,
)

__all__ = ["C_GRID", "LEAST_GROUPS", "fit_filter", "refit_filter"]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of regularisation that are tried, the strongest regularisation first."""

LEAST_GROUPS = 3
"""Patients (slides, where no patient is named) with tiles of either answer that a filter needs:
one to judge on, and two to choose the regularisation on."""

_LEAST_TO_REFIT = 2
_MOST_PARTS = 5
_REFITS_KEPT = 16

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class _LinearModel(NamedTuple):
    """A weighted sum of an embedding's numbers: log odds of dropping."""

    coef: Floats
    intercept: float
    strength: float

    def log_odds(self, features: Floats) -> Floats:
        return np.asarray(features @ self.coef + self.intercept)


def fit_filter(
    examples: LabelledTiles,
    *,
    spec: EmbeddingSpec,
    threshold: float = 0.5,
    made_by: Mapping[str, str] | None = None,
) -> TileFilter:
    """Fit a filter, and judge filters fitted alike on patients they did not learn from.

    Logistic regression on standardised embeddings, both answers weighted as if equally frequent.
    Its regularisation is chosen by a cross-validation grouped by patient (by slide, where no
    patient is named). The counts come from another one around it, in which standardisation,
    regression and the choice of regularisation see the training part only. The threshold is
    given, never chosen by a score.

    Parameters
    ----------
    examples
        Tiles to keep and to drop.
    spec
        How their embeddings were made.
    threshold
        Probability from which on a tile is dropped, above 0 and below 1.
    made_by
        Versions of what made the embeddings, by name.

    Raises
    ------
    FilterError
        If fewer than three patients or slides have tiles of either answer.
    """
    _require_groups(examples, least=LEAST_GROUPS)
    groups, features = examples.groups(), examples.features.astype(np.float64)
    parts = _parts(examples.drop, groups)
    log_odds = np.empty(len(parts))
    for part in np.unique(parts):
        judged = parts == part
        model = _fit(features[~judged], examples.drop[~judged], groups[~judged])
        log_odds[judged] = model.log_odds(features[judged])
    model = _fit(features, examples.drop, groups)
    return TileFilter(
        spec=spec,
        coef=model.coef,
        intercept=model.intercept,
        threshold=threshold,
        strength=model.strength,
        held_out=_count(log_odds >= np.log(threshold / (1 - threshold)), examples.drop),
        examples=examples,
        software=json.dumps(_versions() | dict(made_by or {}), sort_keys=True),
    )


@lru_cache(maxsize=_REFITS_KEPT)
def refit_filter(tile_filter: TileFilter, *, without: frozenset[ExampleSlide]) -> TileFilter:
    """The same filter as if it had never seen some slides, with its own choice of regularisation.

    Parameters
    ----------
    tile_filter
        The filter, with its examples.
    without
        Slides whose examples must have no influence.

    Raises
    ------
    FilterError
        If fewer than two patients or slides with tiles of either answer are left.
    """
    if not without:
        return tile_filter
    examples = tile_filter.examples.without(without)
    _require_groups(examples, least=_LEAST_TO_REFIT, without=without)
    model = _fit(examples.features.astype(np.float64), examples.drop, examples.groups())
    return TileFilter(
        spec=tile_filter.spec,
        coef=model.coef,
        intercept=model.intercept,
        threshold=tile_filter.threshold,
        strength=model.strength,
        held_out=None,
        examples=examples,
        software=json.dumps(_versions(), sort_keys=True),
    )


def _fit(features: Floats, drop: Bools, groups: Ints) -> _LinearModel:
    """Logistic regression with the regularisation that does best on parts held out in turn."""
    parts = _parts(drop, groups)
    log_odds = np.empty((len(C_GRID), len(drop)))
    for part in np.unique(parts):
        judged = parts == part
        for place, model in enumerate(_path(features[~judged], drop[~judged])):
            log_odds[place, judged] = model.log_odds(features[judged])
    losses = np.array([_balanced_log_loss(row, drop) for row in log_odds])
    return _path(features, drop)[int(losses.argmin())]


def _path(features: Floats, drop: Bools) -> list[_LinearModel]:
    """One regression for each of ``C_GRID``, each started from the one before."""
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    regression = LogisticRegression(class_weight="balanced", max_iter=5000, warm_start=True)
    models = []
    for strength in C_GRID:
        regression.set_params(C=strength).fit(scaled, drop)
        coef = regression.coef_[0] / scaler.scale_
        intercept = float(regression.intercept_[0] - coef @ scaler.mean_)
        models.append(_LinearModel(coef=coef, intercept=intercept, strength=strength))
    return models


def _balanced_log_loss(log_odds: Floats, drop: Bools) -> float:
    """Mean over both answers of the mean log loss of their tiles, in nats."""
    losses = np.logaddexp(0, np.where(drop, -log_odds, log_odds))
    return float(losses[drop].mean() + losses[~drop].mean()) / 2


def _parts(drop: Bools, groups: Ints) -> Ints:
    """A part for each tile, shape (tiles,), such that a group is never in two.

    Groups with tiles to drop only, with both, and with tiles to keep only are dealt out in this
    order. Groups that hold an answer thus follow each other: where two or more do, no part has
    them all, and whatever part is held out, the others still teach both answers.
    """
    names = np.unique(groups)
    has_drop = np.array([drop[groups == name].any() for name in names])
    has_keep = np.array([not drop[groups == name].all() for name in names])
    order = np.lexsort((names, ~has_drop, has_keep))
    select_shard = np.empty(len(names), np.int64)
    select_shard[order] = np.arange(len(names)) % min(_MOST_PARTS, len(names))
    return select_shard[np.searchsorted(names, groups)]


def _count(dropped: Bools, drop: Bools) -> ConfusionCounts:
    return ConfusionCounts(
        n_dropped_rightly=int((dropped & drop).sum()),
        n_dropped_wrongly=int((dropped & ~drop).sum()),
        n_kept_wrongly=int((~dropped & drop).sum()),
        n_kept_rightly=int((~dropped & ~drop).sum()),
    )


def _require_groups(
    examples: LabelledTiles, *, least: int, without: frozenset[ExampleSlide] = frozenset()
) -> None:
    groups = examples.groups()
    counts = {
        "to drop": len(np.unique(groups[examples.drop])),
        "to keep": len(np.unique(groups[~examples.drop])),
    }
    few = [answer for answer, count in counts.items() if count < least]
    if not few:
        return
    found = f"tiles {few[0]} from {counts[few[0]]} patients or slides"
    if not without:
        raise FilterError(
            "the tile filter",
            actual=found,
            expected=f"{least} or more, so that it can be judged on slides it has not seen",
            hint="Add examples from more slides.",
        )
    names = sorted(slide.slide_id for slide in without)
    raise FilterError(
        "the tile filter",
        actual=f"{found} once slides of patients to be judged are taken out "
        f"({', '.join(names[:5])}{' and more' if len(names) > 5 else ''})",
        expected=f"{least} or more to fit it again without them",
        hint="Add examples from more slides, above all of patients outside the cohort.",
    )


def _versions() -> dict[str, Any]:
    names = ("mil-slides", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
