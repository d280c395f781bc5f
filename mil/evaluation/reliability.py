"""Reliability: what probabilities promise beside what came true, and what the Brier score is of.

All is read at a stated prior: ``proba``, shape (n, classes), is for it, and patients are weighed so
that the sample stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    "brier_parts",
    "expected_error",
    "reliability_table",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Patients with neighbouring probabilities of a class."""

    n_patients: int
    """How many they are."""
    low: float
    """Their lowest probability."""
    high: float
    """Their highest probability."""
    promised: float
    """Their mean probability."""
    observed: float
    """Share of them that has the class, at the stated prior."""
    observed_low: float
    """Lower end of the share's 95 % interval (Wilson, 1927)."""
    observed_high: float
    """Upper end of it."""


@dataclass(frozen=True, kw_only=True)
class ExpectedError:
    """Expected calibration error, with what it would be if nothing were wrong."""

    value: float
    """As found."""
    if_perfect: float
    """Mean over samples drawn from the probabilities themselves: the upward bias."""
    if_perfect_high: float
    """95th percentile over those samples: an error below it shows no miscalibration."""


@dataclass(frozen=True, kw_only=True)
class BrierDecomposition:
    """Parts of one class's Brier score; ``brier`` is their signed sum, exactly."""

    brier: float
    """Mean squared distance of the class's probability and truth, 0 to 1."""
    reliability: float
    """Distance of promise and observation between bins; smaller is better."""
    resolution: float
    """How far the bins' shares lie from the prior; larger is better, it is taken off."""
    uncertainty: float
    """The prior's own variance; no prediction changes it."""
    within_bins: float
    """What the bins hide: variance of probabilities inside them, less what of it was right."""


def reliability_table(
    proba: Floats, labels: Ints, index: int, *, prior: Floats, n_bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Bins of equal mass of one class's probability, lowest first.

    Parameters
    ----------
    proba, labels
        Predictions at ``prior``, shape (n, classes), and truth, shape (n,).
    index
        The class.
    prior
        Class shares, shape (classes,).
    n_bins
        Bins asked for; equal probabilities share a bin, so there may be fewer.
    """
    mass = prior_weights(labels, prior, n_classes=proba.shape[1])
    values, truth = proba[:, index], labels == index
    bins = equal_mass_bins(values, mass, n_bins=n_bins)
    table = []
    for number in np.unique(bins):
        inside = bins == number
        weights = mass[inside]
        observed = float(np.average(truth[inside], weights=weights))
        # Unequal weights tell as much as this many equal ones (Kish, 1965).
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
    """Expected calibration error beside what perfect probabilities would show.

    The error takes distances without their sign, so chance alone lifts it above 0. How far is
    found by drawing the truth from the probabilities, as if they were perfect, and measuring again
    (Bröcker and Smith, 2007).

    Parameters
    ----------
    proba, labels, prior, n_bins
        As for :func:`reliability_table`.
    n_draws, seed
        Of the simulation.
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
    """Brier score of one class in parts (Murphy, 1973; within bins Stephenson et al., 2008).

    ``brier = reliability - resolution + uncertainty + within_bins``. Over all classes the scores
    sum to :func:`mil.evaluation.metrics.brier_score`; for two classes each is half of it.

    Parameters
    ----------
    proba, labels, index, prior, n_bins
        As for :func:`reliability_table`.
    """
    mass = prior_weights(labels, prior, n_classes=proba.shape[1])
    mass = mass / mass.sum()
    values, truth = proba[:, index], (labels == index).astype(np.float64)
    _, bins = np.unique(equal_mass_bins(values, mass, n_bins=n_bins), return_inverse=True)
    of_bin = np.bincount(bins, mass)
    promised = np.bincount(bins, mass * values) / of_bin
    observed = np.bincount(bins, mass * truth) / of_bin
    overall = float(mass @ truth)
    apart = values - promised[bins]
    return BrierDecomposition(
        brier=float(mass @ (values - truth) ** 2),
        reliability=float(of_bin @ (promised - observed) ** 2),
        resolution=float(of_bin @ (observed - overall) ** 2),
        uncertainty=overall * (1 - overall),
        within_bins=float(mass @ (apart**2 - 2 * apart * (truth - observed[bins]))),
    )
