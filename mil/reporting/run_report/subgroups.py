"""Scores of parts of the cohort: folds, repeats, centres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss
from mil.reporting.run_report.data import ReportData

__all__ = ["SubgroupScore", "score_centres", "score_folds", "score_repeats"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_METRICS = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}
_N_RESAMPLES = 300


@dataclass(frozen=True, kw_only=True)
class SubgroupScore:
    """Scores of the calibrated probabilities of some patients."""

    name: str
    """Which they are."""
    counts: tuple[int, ...]
    """Patients of each class."""
    scores: Mapping[str, Interval]
    """By metric; empty where a class does not occur. Limits are NaN where none were drawn."""


def score_repeats(evidence: ReportData) -> tuple[SubgroupScore, ...]:
    """Each cross-validation for itself."""
    return tuple(
        _score(str(repeat), proba, evidence.labels)
        for repeat, proba in enumerate(evidence.proba["calibrated"])
    )


def score_folds(evidence: ReportData) -> tuple[tuple[SubgroupScore, ...], ...]:
    """Each fold of each repeat, without intervals: folds are too small for them to be read."""
    of_repeats = []
    for fold, proba in zip(evidence.fold, evidence.proba["calibrated"], strict=True):
        parts = [fold == index for index in np.unique(fold)]
        of_repeats.append(
            tuple(_score(str(fold[part][0]), proba[part], evidence.labels[part]) for part in parts)
        )
    return tuple(of_repeats)


def score_centres(evidence: ReportData, *, seed: int) -> tuple[SubgroupScore, ...]:
    """Each centre, largest first, with intervals; none where the table names no centre."""
    centres = np.array(evidence.centres)
    names, counts = np.unique(centres, return_counts=True)
    if names.tolist() == [""]:
        return ()
    proba = evidence.proba["calibrated"]
    return tuple(
        _score(
            str(names[index]) or "(none)",
            proba[:, centres == names[index]],
            evidence.labels[centres == names[index]],
            n_resamples=_N_RESAMPLES,
            seed=seed,
        )
        for index in np.argsort(-counts, kind="stable")
    )


def _score(
    name: str, proba: Floats, labels: Ints, *, n_resamples: int = 0, seed: int = 0
) -> SubgroupScore:
    counts = np.bincount(labels, minlength=proba.shape[-1])
    scores = (
        stratified_bootstrap(_METRICS, proba, labels, n_resamples=n_resamples, seed=seed)
        if counts.all()
        else {}
    )
    return SubgroupScore(name=name, counts=tuple(counts.tolist()), scores=scores)
