"""Accuracy under folds of tiles compared with folds of patients, on the same tiles.

The same classifier of tiles, a logistic regression on standardised embeddings, is cross-validated
twice: with tiles assigned to folds one by one, so that a patient has tiles on both sides, and with
patients assigned to folds. Both are repeated with random labels of patients, where nothing can be
learned, and with growing effects of the patient: to every tile of a patient one random vector is
added, of ``effect_sd`` standard deviations in each dimension of an embedding. Prints one JSON
object, by effect, by ``labels`` (``true``, ``random``) and by folds (``tiles``,
``patients``); each value is the mean over draws, with the lowest and the highest of them:

``tile_accuracy``
    Share of tiles whose class was named rightly, both classes weighing alike.
``patient_auroc``
    AUROC of the mean probability of a patient's tiles.
``gap``
    Of ``tile_accuracy``: folds of tiles minus folds of patients.

The bags are those of ``mil demo``; without them it says so and measures nothing:

    python -m tests.benchmarks.leak_gap --demo demo --figure leak-gap.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from features.bags.h5 import find_bags
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.reporting.figures import CHANCE_COLOUR, class_styles, share_ticks

__all__ = ["Tiles", "judge", "load_tiles", "main", "measure", "with_patient_effect"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_EFFECTS_SD = (0.0, 0.1, 0.2, 0.4)
_FOLDS = {"tiles": StratifiedKFold, "patients": StratifiedGroupKFold}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """All tiles of a cohort."""

    features: npt.NDArray[np.float32]
    """Embeddings, shape (tiles, dim)."""
    owner: Ints
    """Index of each tile's patient, shape (tiles,)."""
    labels: Ints
    """Class of each patient, 0 or 1, shape (patients,)."""


def load_tiles(table: Path, bags: Path) -> Tiles:
    """The tiles of a table's patients."""
    cohort = read_cohort(table, labelled=True)
    kept = load_patient_bags(cohort, find_bags(bags)).features
    index_of = {name: index for index, name in enumerate(cohort.patient_ids)}
    return Tiles(
        features=np.concatenate([features.astype(np.float32) for features in kept.values()]),
        owner=np.concatenate([np.full(len(rows), index_of[name]) for name, rows in kept.items()]),
        labels=cohort.labels,
    )


def with_patient_effect(tiles: Tiles, *, effect_sd: float, seed: int) -> Tiles:
    """The same tiles, standardised, each moved by a vector of its patient's own."""
    plain = StandardScaler().fit_transform(tiles.features)
    rng = np.random.default_rng(seed)
    moves = rng.normal(scale=effect_sd, size=(len(tiles.labels), plain.shape[1]))
    return replace(tiles, features=(plain + moves[tiles.owner]).astype(np.float32))


def judge(tiles: Tiles, *, folds: str, n_folds: int, seed: int) -> dict[str, float]:
    """Cross-validate the classifier of tiles on one kind of folds."""
    truth = tiles.labels[tiles.owner]
    splitter = _FOLDS[folds](n_folds, shuffle=True, random_state=seed)
    data: Floats = np.empty(len(truth))
    groups = tiles.owner if folds == "patients" else None
    for learned, judged in splitter.split(tiles.features, truth, groups):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        model.fit(tiles.features[learned], truth[learned])
        data[judged] = model.predict_proba(tiles.features[judged])[:, 1]
    by_patient = np.bincount(tiles.owner, data) / np.bincount(tiles.owner)
    return {
        "tile_accuracy": float(balanced_accuracy_score(truth, data > 0.5)),
        "patient_auroc": float(roc_auc_score(tiles.labels, by_patient)),
    }


def measure(
    tiles: Tiles, *, effect_sd: float, n_folds: int, n_draws: int
) -> dict[str, dict[str, Any]]:
    """Both kinds of folds, on true labels and on random ones; each draw has its own of all."""
    result: dict[str, dict[str, Any]] = {}
    for labels in ("true", "random"):
        scores: dict[str, list[dict[str, float]]] = {kind: [] for kind in _FOLDS}
        for draw in range(n_draws):
            world = with_patient_effect(tiles, effect_sd=effect_sd, seed=draw)
            if labels == "random":
                shuffled = np.random.default_rng(draw).permutation(tiles.labels)
                world = replace(world, labels=shuffled)
            for kind, found in scores.items():
                found.append(judge(world, folds=kind, n_folds=n_folds, seed=draw))
        claimed, found_there = (
            np.array([draw["tile_accuracy"] for draw in scores[kind]]) for kind in _FOLDS
        )
        result[labels] = {kind: _spreads(found) for kind, found in scores.items()}
        result[labels]["gap"] = _spread(claimed - found_there)
    return result


def _spreads(draws: Sequence[dict[str, float]]) -> dict[str, object]:
    return {name: _spread([draw[name] for draw in draws]) for name in draws[0]}


def _spread(values: Sequence[float] | Floats) -> dict[str, float]:
    return {
        name: round(float(of(values)), 3)
        for name, of in (("mean", np.mean), ("lowest", np.min), ("highest", np.max))
    }


def _draw(path: Path, results: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Accuracy of tiles by both kinds of folds: a point is the mean, its bar all draws."""
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, labels in zip(panels, ("true", "random"), strict=True):
        axes.set_title(
            f"{labels} labels".capitalize(), fontsize=10.5, loc="left", fontweight="bold"
        )
        _draw_accuracy(axes, {effect_sd: result[labels] for effect_sd, result in results.items()})
    panels[0].set_ylabel("tiles named rightly")
    panels[0].legend(frameon=False, fontsize=9, loc="center right")
    figure.savefig(path, dpi=110)


def _draw_accuracy(axes: Axes, found: dict[str, dict[str, Any]]) -> None:
    for kind, style, shift in zip(_FOLDS, class_styles(list(_FOLDS)), (-0.08, 0.08), strict=True):
        mean, lowest, highest = (
            np.array([result[kind]["tile_accuracy"][name] for result in found.values()])
            for name in ("mean", "lowest", "highest")
        )
        axes.errorbar(
            np.arange(len(found)) + shift, mean, [mean - lowest, highest - mean],
            fmt=style.marker, color=style.colour, capsize=4, markersize=7, label=f"folds of {kind}",
        )  # fmt: skip
    axes.axhline(0.5, color=CHANCE_COLOUR, linestyle=":", linewidth=1.2)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_xlabel("own look of a patient, standard deviations")
    axes.spines[["top", "right"]].set_visible(False)
    share_ticks(axes.yaxis)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and draw where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder of mil demo")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--figure", type=Path, help="PNG of the accuracies")
    asked = parser.parse_args(arguments)
    if not (asked.demo / "train.csv").exists():
        sys.stdout.write(json.dumps({"skipped": f"no demo in {asked.demo}: run mil demo"}) + "\n")
        return
    tiles = load_tiles(asked.demo / "train.csv", asked.demo / "bags")
    results = {
        str(sd): measure(tiles, effect_sd=sd, n_folds=asked.folds, n_draws=asked.draws)
        for sd in _EFFECTS_SD
    }
    if asked.figure:
        _draw(asked.figure, results)
    counts = {"n_tiles": len(tiles.owner), "n_patients": len(tiles.labels)}
    sys.stdout.write(json.dumps(counts | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
