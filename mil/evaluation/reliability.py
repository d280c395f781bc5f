"""Reliability tables, expected calibration error, and decomposition of the Brier score.

All are computed at a stated prior: ``proba``, shape (n, classes), is for it, and patients are
weighted so that the sample represents it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil.arrays import Floats, Ints
from mil.calibration.priors import shift_prior
from mil.evaluation.metrics import (
    equal_mass_bins,
    expected_calibration_error,
    prior_weights,
    wilson_interval,
)

__all__ = [
    "BrierDecomposition",
    "ExpectedError",
    "ReliabilityBin",
    "bin_count",
    "brier_parts",
    "expected_error",
    "reliability_table",
]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Bin of patients with neighbouring probabilities of a class, from ``low`` to ``high``.

    ``promised`` is their mean probability, ``observed`` the share with the class at the stated
    prior, with its 95 percent interval (Wilson, 1927).
    """

    n_patients: int
    low: float
    high: float
    promised: float
    observed: float
    observed_low: float
    observed_high: float


@dataclass(frozen=True, kw_only=True)
class ExpectedError:
    """Expected calibration error, with its distribution under perfect calibration.

    ``if_perfect``, the upward bias, is the mean over labels drawn from the probabilities
    themselves, and ``if_perfect_high`` the 95th percentile: a ``value`` below it shows no
    miscalibration.
    """

    value: float
    if_perfect: float
    if_perfect_high: float


@dataclass(frozen=True, kw_only=True)
class BrierDecomposition:
    """Decomposition of one class's Brier score; ``brier`` is the exact signed sum.

    Attributes
    ----------
    brier
        Mean squared error of the class's probability, 0 to 1.
    reliability
        Squared difference of mean probability and observed share over bins; smaller is better.
    resolution
        Variance of the observed shares of the bins, subtracted; larger is better.
    uncertainty
        Variance of the prior; no prediction changes it.
    within_bins
        Variance of probabilities within bins, less twice their covariance with the truth.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


def bin_count(n_patients: int) -> int:
    """Return the number of bins on a page: 3 to 10, of a dozen patients or more if possible."""
    return int(np.clip(n_patients // 12, 3, 10))


def reliability_table(
    proba: Floats, labels: Ints, index: int, *, prior: Floats, n_bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Return bins of equal weight of one class's probability, lowest first.

    ``proba``, shape (n, classes), is at ``prior``, shape (classes,). Equal probabilities share a
    bin, so there may be fewer than ``n_bins``.
    """
    sample_weight = prior_weights(labels, prior, n_classes=proba.shape[1])
    values, truth = proba[:, index], labels == index
    bins = equal_mass_bins(values, sample_weight, n_bins=n_bins)
    table = []
    for number in np.unique(bins):
        inside = bins == number
        weights = sample_weight[inside]
        observed = float(np.average(truth[inside], weights=weights))
        # Unequal weights have the variance of this many equal ones (Kish, 1965).
        n_effective = float(weights.sum() ** 2 / (weights**2).sum())
        low, high = wilson_interval(observed, n_effective)
        table.append(
            ReliabilityBin(
                n_patients=int(inside.sum()),
                low=float(values[inside].min()),
                high=float(values[inside].max()),
                promised=float(np.average(values[inside], weights=weights)),
                observed=observed,
                observed_low=low,
                observed_high=high,
            )
        )
    return tuple(table)


def expected_error(
    proba: Floats, labels: Ints, *, prior: Floats, n_draws: int = 200, seed: int, n_bins: int = 10
) -> ExpectedError:
    """Return the expected calibration error of ``proba``, shape (n, classes), at ``prior``.

    The error averages absolute differences, so chance alone raises it above 0. This bias is
    estimated by drawing labels from the probabilities themselves (Bröcker and Smith, 2007).
    """
    n, n_classes = proba.shape
    shares = np.bincount(labels, minlength=n_classes) / n
    factors = prior / shares
    drawn_from = shift_prior(proba, old=prior, new=shares).cumsum(axis=1)
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(n_draws):
        below = rng.uniform(size=(n, 1)) >= drawn_from[:, :-1]
        drawn = below.sum(axis=1).astype(np.int64)
        errors.append(
            expected_calibration_error(proba, drawn, weights=factors[drawn], n_bins=n_bins)
        )
    return ExpectedError(
        value=expected_calibration_error(proba, labels, weights=factors[labels], n_bins=n_bins),
        if_perfect=float(np.mean(errors)),
        if_perfect_high=float(np.quantile(errors, 0.95)),
    )


def brier_parts(
    proba: Floats, labels: Ints, index: int, *, prior: Floats, n_bins: int = 10
) -> BrierDecomposition:
    """Return the decomposition of one class's Brier score (Murphy, 1973; Stephenson et al., 2008).

    ``brier = reliability - resolution + uncertainty + within_bins``. Over all classes the scores
    sum to :func:`mil.evaluation.metrics.brier_score`; for two classes each is half of it.
    ``proba``, shape (n, classes), is at ``prior``, shape (classes,).
    """
    sample_weight = prior_weights(labels, prior, n_classes=proba.shape[1])
    sample_weight = sample_weight / sample_weight.sum()
    values, truth = proba[:, index], (labels == index).astype(np.float64)
    _, bins = np.unique(equal_mass_bins(values, sample_weight, n_bins=n_bins), return_inverse=True)
    of_bin = np.bincount(bins, sample_weight)
    promised = np.bincount(bins, sample_weight * values) / of_bin
    observed = np.bincount(bins, sample_weight * truth) / of_bin
    overall = float(sample_weight @ truth)
    residual = values - promised[bins]
    return BrierDecomposition(
        brier=float(sample_weight @ (values - truth) ** 2),
        reliability=float(of_bin @ (promised - observed) ** 2),
        resolution=float(of_bin @ (observed - overall) ** 2),
        uncertainty=overall * (1 - overall),
        within_bins=float(sample_weight @ (residual**2 - 2 * residual * (truth - observed[bins]))),
    )
