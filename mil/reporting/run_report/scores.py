"""Scores of folds, repeats and centres, and reliability before and after calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mil.arrays import Floats, Ints
from mil.calibration.priors import balanced
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.calibration_slope import calibration_slope_and_intercepts, intercept_of
from mil.evaluation.metrics import Interval, auroc, brier_score, prior_weights, weighted_log_loss
from mil.evaluation.reliability import (
    ExpectedError,
    ReliabilityBin,
    bin_count,
    expected_error,
    reliability_table,
)
from mil.reporting.run_report.data import ReportData

__all__ = [
    "Reliability",
    "SubgroupScore",
    "measure_reliability",
    "score_centres",
    "score_folds",
    "score_repeats",
]

_METRICS = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}


@dataclass(frozen=True, kw_only=True)
class SubgroupScore:
    """Scores of the calibrated probabilities in one subgroup of patients.

    ``counts`` are the patients per class, shape (classes,). ``scores`` are by metric, empty if a
    class does not occur; their limits are NaN without resampling.
    """

    name: str
    counts: tuple[int, ...]
    scores: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration metrics of one kind of probabilities, shape (patients, classes).

    Attributes
    ----------
    bins
        Bins by class index.
    error
        Expected calibration error, and its value under perfect calibration.
    slope, intercept
        Calibration slope, below 1 if overconfident, and
        :func:`mil.evaluation.calibration_slope.intercept_of`; NaN if not defined.
    brier
        Brier score, 0 to 2.
    """

    bins: Mapping[int, tuple[ReliabilityBin, ...]]
    error: ExpectedError
    slope: float
    intercept: float
    brier: float


def score_repeats(data: ReportData) -> tuple[SubgroupScore, ...]:
    """Return the scores of each repeat, from probabilities of shape (patients, classes)."""
    return tuple(
        _score(str(repeat), proba, data.labels)
        for repeat, proba in enumerate(data.proba["calibrated"])
    )


def score_folds(data: ReportData) -> tuple[tuple[SubgroupScore, ...], ...]:
    """Return the scores of each fold, shape (repeats, folds), without intervals on so few."""
    of_repeats = []
    for fold, proba in zip(data.fold, data.proba["calibrated"], strict=True):
        parts = [fold == index for index in np.unique(fold)]
        of_repeats.append(
            tuple(_score(str(fold[part][0]), proba[part], data.labels[part]) for part in parts)
        )
    return tuple(of_repeats)


def score_centres(data: ReportData, *, n_resamples: int, seed: int) -> tuple[SubgroupScore, ...]:
    """Return the scores of each centre with intervals, largest centre first; () without centres.

    Probabilities have shape (repeats, patients, classes), patients are resampled.
    """
    centres = np.array(data.centres)
    names, counts = np.unique(centres, return_counts=True)
    if names.tolist() == [""]:
        return ()
    proba = data.proba["calibrated"]
    return tuple(
        _score(
            str(names[index]) or "(none)",
            proba[:, centres == names[index]],
            data.labels[centres == names[index]],
            n_resamples=n_resamples,
            seed=seed,
        )
        for index in np.argsort(-counts, kind="stable")
    )


def measure_reliability(data: ReportData, kind: str, *, seed: int) -> Reliability:
    """Return the reliability of one kind of probabilities in the first repeat.

    They have shape (patients, classes). There are ten bins of equal mass, or fewer if ten would
    hold less than a dozen patients each.
    """
    proba, labels = data.first[kind], data.labels
    prior: Floats = balanced(data.classes)
    slope, intercepts = calibration_slope_and_intercepts(proba, labels)
    n_bins = bin_count(len(labels))
    return Reliability(
        bins={
            index: reliability_table(proba, labels, index, prior=prior, n_bins=n_bins)
            for index in range(len(data.classes))
        },
        error=expected_error(proba, labels, prior=prior, seed=seed, n_bins=n_bins),
        slope=slope,
        intercept=intercept_of(intercepts),
        brier=brier_score(
            proba, labels, weights=prior_weights(labels, None, n_classes=len(data.classes))
        ),
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
