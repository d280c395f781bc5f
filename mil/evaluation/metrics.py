"""Metrics of predicted probabilities.

Throughout, ``proba`` has shape (n, classes), float64, and ``labels`` shape (n,), int, the index of
the true class. ``weights``, shape (n,), let the sample represent other class shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.stats import rankdata

from features.errors import MilError
from mil.arrays import Bools, Floats, Ints

__all__ = [
    "Interval",
    "Metric",
    "accuracy",
    "as_two_columns",
    "auroc",
    "balanced_accuracy",
    "balanced_brier_score",
    "brier_score",
    "equal_mass_bins",
    "expected_calibration_error",
    "log_losses",
    "one_vs_rest",
    "prior_weights",
    "squared_errors",
    "weighted_log_loss",
    "wilson_interval",
]

Metric = Callable[[Floats, Ints], float]
"""Function of ``proba`` and ``labels`` that returns a score."""

_MIN_PROBABILITY = 1e-15
_Z = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Score on all patients, with the 2.5th and 97.5th percentiles over resamples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return text such as ``0.6612 [0.6301, 0.6933]``; a zero has no minus."""
        ends = "not estimable" if np.isnan(self.low) else f"{self.low:z.4f}, {self.high:z.4f}"
        return f"{self.value:z.4f} [{ends}]"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON: ``value``, and ``interval`` of two numbers."""
        return {"value": self.value, "interval": [self.low, self.high]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build an interval from the result of :meth:`as_dict`.

        Raises
        ------
        KeyError, TypeError, ValueError
            If the values have another form.
        """
        low, high = values["interval"]
        return cls(value=float(values["value"]), low=float(low), high=float(high))


def weighted_log_loss(proba: Floats, labels: Ints, *, class_weights: Floats | None = None) -> float:
    """Return the class-weighted mean of each class's mean log loss, in nats (STRIP AI).

    ``proba``, shape (n, classes), need not sum to 1, see :func:`log_losses`; ``class_weights``,
    shape (classes,), are equal by default. A constant gives ln(classes) whatever the class shares.

    Raises
    ------
    MilError
        If a row sums to 0, or a class whose weight is not 0 does not occur.
    """
    losses = log_losses(proba, labels)
    n_classes = proba.shape[1]
    weights = np.ones(n_classes) if class_weights is None else class_weights
    counts = np.bincount(labels, minlength=n_classes)
    if not counts[weights > 0].all():
        raise MilError("log loss", actual=f"{counts.tolist()} patients of each class",
                         expected="at least one of each")  # fmt: skip
    means = np.bincount(labels, losses, minlength=n_classes) / np.maximum(counts, 1)
    return float(np.average(means, weights=weights))


def log_losses(proba: Floats, labels: Ints) -> Floats:
    """Return the log loss of each row, shape (n,), in nats.

    Rows are divided by their sums and clipped to [1e-15, 1 - 1e-15], in this order.

    Raises
    ------
    MilError
        If a row sums to 0.
    """
    sums = proba.sum(axis=1, keepdims=True)
    if not (sums > 0).all():
        row = int(np.flatnonzero(~(sums[:, 0] > 0))[0])
        raise MilError(f"row {row}", actual=f"probabilities that sum to {sums[row, 0]:g}",
                         expected="above 0")  # fmt: skip
    clipped = np.clip(proba / sums, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return np.asarray(-np.log(clipped[np.arange(len(labels)), labels]), np.float64)


def auroc(proba: Floats, labels: Ints) -> float:
    """Return the area under the ROC curve of ``proba``, shape (n, classes), 0 to 1.

    With more than two classes it is the mean of each against the rest. Ties count half. NaN where a
    class does not occur.
    """
    return float(np.mean([_binary_auroc(*pair) for pair in one_vs_rest(proba, labels)]))


def one_vs_rest(proba: Floats, labels: Ints) -> list[tuple[Floats, Bools]]:
    """Return scores and truth, shape (n,) each: of the second of two classes, else of every one."""
    if proba.shape[1] == 2:
        # The difference keeps its rank order where both columns round to 0 or 1.
        return [(proba[:, 1] - proba[:, 0], labels == 1)]
    return [(proba[:, index], labels == index) for index in range(proba.shape[1])]


def brier_score(proba: Floats, labels: Ints, *, weights: Floats | None = None) -> float:
    """Return the mean squared error of ``proba``, shape (n, classes), 0 to 2 (Brier, 1950).

    Errors are summed over classes as in the original; for two classes, half of it is the error of
    one column.
    """
    return float(np.average(squared_errors(proba, labels), weights=weights))


def balanced_brier_score(proba: Floats, labels: Ints) -> float:
    """Return the Brier score of ``proba``, shape (n, classes), with all classes alike."""
    weights = prior_weights(labels, None, n_classes=proba.shape[1])
    return brier_score(proba, labels, weights=weights)


def squared_errors(proba: Floats, labels: Ints) -> Floats:
    """Return the squared error of each row, shape (n,), summed over classes, 0 to 2."""
    truth = np.eye(proba.shape[1])[labels]
    return np.asarray(((proba - truth) ** 2).sum(axis=1), np.float64)


def expected_calibration_error(
    proba: Floats, labels: Ints, *, weights: Floats | None = None, n_bins: int = 10
) -> float:
    """Return the expected calibration error of ``proba``, shape (n, classes), mean over classes.

    The error of a bin is the absolute difference of mean probability and observed share; bins have
    equal weight. The error is biased upwards: perfect probabilities have about 0.05 at 600 patients
    and ten bins, and more with fewer patients.
    """
    sample_weight = np.ones(len(labels)) if weights is None else weights
    errors = []
    for index, values in enumerate(proba.T):
        bins = equal_mass_bins(values, sample_weight, n_bins=n_bins)
        gaps = np.bincount(bins, sample_weight * (values - (labels == index)), minlength=n_bins)
        errors.append(float(np.abs(gaps).sum() / sample_weight.sum()))
    return float(np.mean(errors))


def equal_mass_bins(values: Floats, sample_weight: Floats, *, n_bins: int) -> Ints:
    """Return the bin of each value, shape (n,), with about equal weight per bin.

    Equal values share a bin, so some of the ``n_bins`` may be empty.
    """
    order = np.argsort(values, kind="stable")
    ranked, weights = values[order], sample_weight[order]
    # A patient belongs to the bin that holds the middle of its weight.
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    of_rank = np.minimum((middle * n_bins).astype(np.int64), n_bins - 1)
    # Equal values get the bin of the first of them.
    bins = np.empty(len(values), np.int64)
    bins[order] = of_rank[np.searchsorted(ranked, ranked, side="left")]
    return bins


def accuracy(proba: Floats, labels: Ints, *, weights: Floats | None = None) -> float:
    """Return the share of rows of ``proba``, shape (n, classes), with the true class on top."""
    return float(np.average(proba.argmax(axis=1) == labels, weights=weights))


def balanced_accuracy(proba: Floats, labels: Ints) -> float:
    """Return the mean recall over classes of ``proba``, shape (n, classes)."""
    return accuracy(proba, labels, weights=prior_weights(labels, None, n_classes=proba.shape[1]))


def prior_weights(labels: Ints, prior: Floats | None, *, n_classes: int) -> Floats:
    """Return weights, shape (n,) and sum n, that let the sample represent other class shares.

    ``prior`` has shape (classes,); None stands for equal shares. Every class must occur.
    """
    shares = np.full(n_classes, 1 / n_classes) if prior is None else prior
    counts = np.bincount(labels, minlength=n_classes)
    return np.asarray((shares * len(labels) / counts)[labels], np.float64)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Return the 95 percent interval of a share of n patients (Wilson, 1927), within [0, 1].

    For weighted patients, ``n`` is the effective number.
    """
    shrink = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / shrink
    half = _Z / shrink * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _binary_auroc(scores: Floats, positive: Bools) -> float:
    """Return the probability that a positive outranks a negative (Mann and Whitney)."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def as_two_columns(proba: Floats) -> Floats:
    """Return the probabilities of absence and presence, shape (..., 2), of one label, (...,)."""
    return np.stack([1 - proba, proba], axis=-1)
