"""Scores of probabilities: arrays in, numbers out, with intervals over patients.

Throughout, ``proba`` has shape (n, classes), float64, and ``labels`` shape (n,), int, the index of
the true class. ``weights`` has shape (n,) and lets the sample stand for other class shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from features.errors import MilError

__all__ = [
    "Interval",
    "Metric",
    "accuracy",
    "as_two_columns",
    "auroc",
    "balanced_accuracy",
    "brier_score",
    "equal_mass_bins",
    "expected_calibration_error",
    "log_losses",
    "prior_weights",
    "weighted_log_loss",
    "wilson_interval",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Metric = Callable[[Floats, Ints], float]
"""From ``proba`` and ``labels`` to a score."""

_LEAST_PROBABILITY = 1e-15
_Z = 1.959963984540054  # 97.5th percentile of the normal distribution


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its 95 % interval."""

    value: float
    """The score on all patients."""
    low: float
    """2.5th percentile over resamples."""
    high: float
    """97.5th percentile over resamples."""

    def __str__(self) -> str:
        """``0.6612 [0.6301, 0.6933]``."""
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON: ``value``, and ``interval`` of two numbers."""
        return {"value": self.value, "interval": [self.low, self.high]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is anything else.
        """
        low, high = values["interval"]
        return cls(value=float(values["value"]), low=float(low), high=float(high))


def weighted_log_loss(proba: Floats, labels: Ints, *, class_weights: Floats | None = None) -> float:
    """Class-weighted mean of each class's mean log loss: the metric of STRIP AI.

    Each row is divided by its sum first and clipped to [1e-15, 1 - 1e-15] then, in this order. A
    constant 1 / classes gives ln(classes) whatever the class shares.

    Parameters
    ----------
    proba
        Shape (n, classes), not negative; rows need not sum to 1.
    labels
        Shape (n,); every class must occur.
    class_weights
        Shape (classes,); equal by default.

    Raises
    ------
    MilError
        If a row sums to 0 (it has no rescaled form) or a class does not occur.
    """
    losses = log_losses(proba, labels)
    n_classes = proba.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    if not counts.all():
        raise MilError("log loss", actual=f"{counts.tolist()} patients of each class",
                         expected="at least one of each")  # fmt: skip
    means = np.bincount(labels, losses, minlength=n_classes) / counts
    weights = np.ones(n_classes) if class_weights is None else class_weights
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
    clipped = np.clip(proba / sums, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.asarray(-np.log(clipped[np.arange(len(labels)), labels]), np.float64)


def auroc(proba: Floats, labels: Ints) -> float:
    """Area under the ROC curve; for more than two classes the mean of one against the rest.

    Ties count half. NaN where a class does not occur.
    """
    n_classes = proba.shape[1]
    if n_classes == 2:
        # The difference keeps its rank order where both columns round to 0 or 1.
        return _binary_auroc(proba[:, 1] - proba[:, 0], labels == 1)
    areas = [_binary_auroc(proba[:, index], labels == index) for index in range(n_classes)]
    return float(np.mean(areas))


def brier_score(proba: Floats, labels: Ints, *, weights: Floats | None = None) -> float:
    """Mean squared distance between probabilities and truth (Brier, 1950), 0 to 2.

    Summed over all classes as in the original; half of it is the form with one column for two
    classes.
    """
    truth = np.eye(proba.shape[1])[labels]
    return float(np.average(((proba - truth) ** 2).sum(axis=1), weights=weights))


def expected_calibration_error(
    proba: Floats, labels: Ints, *, weights: Floats | None = None, n_bins: int = 10
) -> float:
    """Expected calibration error over bins of equal mass, mean of the classes.

    In each bin the mean probability is compared with the share that has the class; distances are
    averaged with the bins' weights. It is biased upwards: even perfect probabilities show about
    0.05 at 600 patients and ten bins, more with fewer patients.
    """
    mass = np.ones(len(labels)) if weights is None else weights
    errors = [
        _binary_calibration_error(proba[:, index], labels == index, mass, n_bins)
        for index in range(proba.shape[1])
    ]
    return float(np.mean(errors))


def equal_mass_bins(values: Floats, mass: Floats, *, n_bins: int) -> Ints:
    """Bins of about equal mass in the order of the values; equal values share a bin.

    Parameters
    ----------
    values, mass
        Shape (n,).
    n_bins
        Bins asked for; those that ties leave empty stay empty.

    Returns
    -------
    numpy.ndarray
        Shape (n,), 0 to ``n_bins`` - 1.
    """
    order = np.argsort(values, kind="stable")
    ranked, weights = values[order], mass[order]
    # The bin of a patient is where the middle of its mass falls.
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    of_rank = np.minimum((middle * n_bins).astype(np.int64), n_bins - 1)
    # Equal values belong together, whichever order they were sorted in.
    bins = np.empty(len(values), np.int64)
    bins[order] = of_rank[np.searchsorted(ranked, ranked, side="left")]
    return bins


def accuracy(proba: Floats, labels: Ints, *, weights: Floats | None = None) -> float:
    """Share of patients whose likeliest class is the true one."""
    return float(np.average(proba.argmax(axis=1) == labels, weights=weights))


def balanced_accuracy(proba: Floats, labels: Ints) -> float:
    """Mean over classes of the share of its patients that are found."""
    return accuracy(proba, labels, weights=prior_weights(labels, None, n_classes=proba.shape[1]))


def prior_weights(labels: Ints, prior: Floats | None, *, n_classes: int) -> Floats:
    """Weights that let the sample stand for other class shares.

    Parameters
    ----------
    labels
        Shape (n,); every class must occur.
    prior
        Shape (classes,): the shares; equal ones if None.
    n_classes
        Number of classes.

    Returns
    -------
    numpy.ndarray
        Shape (n,), sums to n.
    """
    shares = np.full(n_classes, 1 / n_classes) if prior is None else prior
    counts = np.bincount(labels, minlength=n_classes)
    return np.asarray((shares * len(labels) / counts)[labels], np.float64)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson, 1927): inside [0, 1] however few they are.

    Parameters
    ----------
    share
        0 to 1.
    n
        Patients it is of; where they are weighed, as many equal ones as tell as much.
    """
    shrink = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / shrink
    half = _Z / shrink * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _binary_auroc(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Mann-Whitney form: the chance that a positive outranks a negative."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = rankdata(scores)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _binary_calibration_error(
    proba: Floats, positive: npt.NDArray[np.bool_], mass: Floats, n_bins: int
) -> float:
    bins = equal_mass_bins(proba, mass, n_bins=n_bins)
    gaps = np.bincount(bins, mass * (proba - positive), minlength=n_bins)
    return float(np.abs(gaps).sum() / mass.sum())


def as_two_columns(proba: Floats) -> Floats:
    """Probabilities of one label, shape (...,), as those of not having and having it, (..., 2)."""
    return np.stack([1 - proba, proba], axis=-1)
