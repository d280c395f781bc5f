"""Training of tile filters, with cross-validation grouped by patient or slide."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import NamedTuple

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
from features.utils.text import list_names

__all__ = ["C_GRID", "LEAST_GROUPS", "fit_filter", "refit_filter"]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of regularisation that are compared, strongest regularisation first."""

LEAST_GROUPS = 3
"""Minimum number of patients (slides, where the patient is unknown) with tiles of each label: one
is held out, and two are needed to choose the regularisation."""

_LEAST_TO_REFIT = 2
_MAX_FOLDS = 5
_REFITS_CACHED = 16

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class _LinearModel(NamedTuple):
    """Linear model of the log odds of dropping."""

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
    versions: Mapping[str, str] | None = None,
) -> TileFilter:
    """Fit a filter, and estimate its performance by nested cross-validation.

    Logistic regression on standardised embeddings, with balanced class weights. The regularisation
    is chosen by a cross-validation grouped by patient (by slide, where the patient is unknown). The
    counts come from an outer cross-validation: standardisation, regression and the choice of the
    regularisation use the training folds only. The threshold is given, not tuned: a probability
    above 0 and below 1. ``examples`` hold embeddings of shape (n_tiles, dim), ``versions`` those of
    the software that made them, by name. Raises FilterError if fewer than three patients or slides
    have tiles of either label.
    """
    _check_groups(examples, least=LEAST_GROUPS)
    groups, features = examples.groups(), examples.features.astype(np.float64)
    folds = _assign_folds(examples.drop, groups)
    log_odds = np.empty(len(folds))
    for fold in np.unique(folds):
        test = folds == fold
        model = _fit(features[~test], examples.drop[~test], groups[~test])
        log_odds[test] = model.log_odds(features[test])
    return _build_filter(
        examples,
        spec=spec,
        threshold=threshold,
        held_out=_count(log_odds >= np.log(threshold / (1 - threshold)), examples.drop),
        versions=versions or {},
    )


@lru_cache(maxsize=_REFITS_CACHED)
def refit_filter(tile_filter: TileFilter, *, without: frozenset[ExampleSlide]) -> TileFilter:
    """Return the filter, weights of shape (dim,), fitted again without some slides.

    Its regularisation is chosen again. Raises FilterError if fewer than two patients or slides with
    tiles of either label are left.
    """
    if not without:
        return tile_filter
    examples = tile_filter.examples.without(without)
    _check_groups(examples, least=_LEAST_TO_REFIT, without=without)
    return _build_filter(
        examples, spec=tile_filter.spec, threshold=tile_filter.threshold, held_out=None, versions={}
    )


def _build_filter(
    examples: LabelledTiles,
    *,
    spec: EmbeddingSpec,
    threshold: float,
    held_out: ConfusionCounts | None,
    versions: Mapping[str, str],
) -> TileFilter:
    """Fit the model on all tiles."""
    names = ("mil-slides", "numpy", "scikit-learn")
    software = {"python": platform.python_version()} | {n: metadata.version(n) for n in names}
    return TileFilter(
        spec=spec,
        **_fit(examples.features.astype(np.float64), examples.drop, examples.groups())._asdict(),
        threshold=threshold,
        held_out=held_out,
        examples=examples,
        software=json.dumps(software | dict(versions), sort_keys=True),
    )


def _fit(features: Floats, drop: Bools, groups: Ints) -> _LinearModel:
    """Fit the logistic regression with the lowest cross-validated loss.

    scikit-learn's LogisticRegressionCV averages the loss over folds and standardises outside of
    them; here the loss is that of all out-of-fold predictions together.
    """
    folds = _assign_folds(drop, groups)
    log_odds = np.empty((len(C_GRID), len(drop)))
    for fold in np.unique(folds):
        test = folds == fold
        for index, model in enumerate(_fit_path(features[~test], drop[~test])):
            log_odds[index, test] = model.log_odds(features[test])
    losses = np.array([_balanced_log_loss(row, drop) for row in log_odds])
    return _fit_path(features, drop)[int(losses.argmin())]


def _fit_path(features: Floats, drop: Bools) -> list[_LinearModel]:
    """Fit one regression per value of ``C_GRID``, each with a warm start from the previous one."""
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
    """Return the mean over both labels of the mean log loss of their tiles, in nats."""
    losses = np.logaddexp(0, np.where(drop, -log_odds, log_odds))
    return float(losses[drop].mean() + losses[~drop].mean()) / 2


def _assign_folds(drop: Bools, groups: Ints) -> Ints:
    """Return the fold of each tile, shape (n_tiles,), so that no group is in two folds.

    The groups are assigned in turn, ordered by their labels: drop only, both, keep only. Groups
    with a label are thus consecutive, so where there are two or more, they are in different folds,
    and the training folds hold both labels whichever fold is held out. scikit-learn's GroupKFold
    and StratifiedGroupKFold do not guarantee that.
    """
    names = np.unique(groups)
    has_drop = np.array([drop[groups == name].any() for name in names])
    has_keep = np.array([not drop[groups == name].all() for name in names])
    order = np.lexsort((names, ~has_drop, has_keep))
    folds = np.empty(len(names), np.int64)
    folds[order] = np.arange(len(names)) % min(_MAX_FOLDS, len(names))
    return folds[np.searchsorted(names, groups)]


def _count(dropped: Bools, drop: Bools) -> ConfusionCounts:
    return ConfusionCounts(
        n_dropped_rightly=int((dropped & drop).sum()),
        n_dropped_wrongly=int((dropped & ~drop).sum()),
        n_kept_wrongly=int((~dropped & drop).sum()),
        n_kept_rightly=int((~dropped & ~drop).sum()),
    )


def _check_groups(
    examples: LabelledTiles, *, least: int, without: frozenset[ExampleSlide] = frozenset()
) -> None:
    groups = examples.groups()
    counts = {
        "to drop": len(np.unique(groups[examples.drop])),
        "to keep": len(np.unique(groups[~examples.drop])),
    }
    label = min(counts, key=lambda name: counts[name] >= least)
    if counts[label] >= least:
        return
    actual = f"tiles {label} from {counts[label]} patients or slides"
    expected, hint = f"{least} or more", "Add examples from more slides"
    if without:
        names = sorted(slide.slide_id for slide in without)
        actual += f" without the slides of held-out patients ({list_names(names)})"
        expected += " to fit it again without them"
        hint += ", preferably of patients outside the cohort"
    else:
        expected += ", so that it can be evaluated on held-out slides"
    raise FilterError("the tile filter", actual=actual, expected=expected, hint=f"{hint}.")
