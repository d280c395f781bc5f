"""How far probabilities mean what they say, before and after calibration, at the balanced prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mil.calibration.priors import balanced
from mil.evaluation.calibration_slope import calibration_slope_and_intercepts, intercept_of
from mil.evaluation.metrics import brier_score, prior_weights
from mil.evaluation.reliability import (
    ExpectedError,
    ReliabilityBin,
    expected_error,
    reliability_table,
)
from mil.reporting.run_report.data import ReportData

__all__ = ["Reliability", "measure_reliability"]

_MOST_BINS = 10
_PATIENTS_A_BIN = 12


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What is found of one kind of probabilities."""

    bins: Mapping[int, tuple[ReliabilityBin, ...]]
    """Bins by class index."""
    error: ExpectedError
    """Expected calibration error, and what chance alone would show."""
    slope: float
    """Calibration slope; below 1 is overconfident. NaN where there is none."""
    intercept: float
    """Calibration intercept, see :func:`mil.evaluation.calibration_slope.intercept_of`. NaN where
    there is none."""
    brier: float
    """Brier score, 0 to 2."""


def measure_reliability(evidence: ReportData, kind: str, *, seed: int) -> Reliability:
    """Reliability of one kind of the evidence's probabilities, in the first repeat.

    Bins are of equal mass, ten at most and fewer where they would hold fewer than a dozen patients.
    """
    proba, labels = evidence.first[kind], evidence.labels
    prior: npt.NDArray[np.float64] = balanced(evidence.classes)
    slope, intercepts = calibration_slope_and_intercepts(proba, labels)
    n_bins = int(np.clip(len(labels) // _PATIENTS_A_BIN, 3, _MOST_BINS))
    return Reliability(
        bins={
            index: reliability_table(proba, labels, index, prior=prior, n_bins=n_bins)
            for index in range(len(evidence.classes))
        },
        error=expected_error(proba, labels, prior=prior, seed=seed, n_bins=n_bins),
        slope=slope,
        intercept=intercept_of(intercepts),
        brier=brier_score(
            proba, labels, weights=prior_weights(labels, None, n_classes=len(evidence.classes))
        ),
    )
