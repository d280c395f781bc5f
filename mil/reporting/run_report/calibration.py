"""Reliability of the probabilities before and after calibration, at the balanced prior."""

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

_MAX_BINS = 10
_PATIENTS_PER_BIN = 12


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Calibration metrics of one kind of probabilities."""

    bins: Mapping[int, tuple[ReliabilityBin, ...]]
    """Bins by class index."""
    error: ExpectedError
    """Expected calibration error, and its value under perfect calibration."""
    slope: float
    """Calibration slope, below 1 if overconfident; NaN if not defined."""
    intercept: float
    """See :func:`mil.evaluation.calibration_slope.intercept_of`; NaN if not defined."""
    brier: float
    """Brier score, 0 to 2."""


def measure_reliability(data: ReportData, kind: str, *, seed: int) -> Reliability:
    """Return the reliability of one kind of probabilities in the first repeat.

    Bins have equal mass; there are ten, or fewer if ten would hold less than a dozen patients each.
    """
    proba, labels = data.first[kind], data.labels
    prior: npt.NDArray[np.float64] = balanced(data.classes)
    slope, intercepts = calibration_slope_and_intercepts(proba, labels)
    n_bins = int(np.clip(len(labels) // _PATIENTS_PER_BIN, 3, _MAX_BINS))
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
