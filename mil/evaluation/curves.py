"""Curves over thresholds with bootstrap bands: ROC, precision and recall, net benefit.

All are of one class against the rest. ``values``, shape (n,), is its probability and ``positive``,
shape (n,), bool, says who has it. Bands are pointwise 95 % intervals over resampled patients, class
counts kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Curve", "net_benefit_curve", "precision_recall_curve", "roc_curve", "treat_all"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_GRID = np.linspace(0, 1, 101)
_THRESHOLDS = np.arange(1, 100) / 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A curve and its band, all of shape (points,)."""

    x: Floats
    """Where it is read: false positive share, recall, or threshold."""
    y: Floats
    """The curve."""
    low: Floats
    """2.5th percentile over resamples."""
    high: Floats
    """97.5th percentile over resamples."""


def roc_curve(values: Floats, positive: Bools, *, seed: int, n_resamples: int = 500) -> Curve:
    """Share of the class that is found against share of the others that is taken for it."""
    counts = _bootstrap_counts(positive, n_resamples=n_resamples, seed=seed)
    true, false = _rates(values, positive, counts)
    found = [np.interp(_GRID, x, y) for x, y in zip(false, true, strict=True)]
    return _with_band(_GRID, np.stack(found))


def precision_recall_curve(
    values: Floats, positive: Bools, *, seed: int, n_resamples: int = 500
) -> Curve:
    """Share of the patients taken for the class that has it, against share of the class found.

    Precision depends on class shares; it is for those of the sample. At a recall between two
    thresholds the precision of the lower one is given (Davis and Goadrich, 2006: a straight line
    would flatter).
    """
    counts = _bootstrap_counts(positive, n_resamples=n_resamples, seed=seed)
    true, false = _rates(values, positive, counts)
    n_positive = positive.sum()
    n_negative = len(positive) - n_positive
    recalls = _GRID[1:]
    found = []
    for recall, fallout in zip(true, false, strict=True):
        places = np.searchsorted(recall, recalls - 1e-9)
        hits = recall[places] * n_positive
        found.append(hits / (hits + fallout[places] * n_negative))
    return _with_band(recalls, np.stack(found))


def net_benefit_curve(
    values: Floats, positive: Bools, *, seed: int, n_resamples: int = 500
) -> Curve:
    """Net benefit of acting above a threshold (Vickers and Elkin, 2006), at 0.01 to 0.99.

    True positives less false positives weighed by the odds of the threshold, a patient. ``values``
    must be for the class shares of the sample.
    """
    counts = _bootstrap_counts(positive, n_resamples=n_resamples, seed=seed).astype(np.float64)
    acts = (values[:, None] >= _THRESHOLDS).astype(np.float64)
    hits = (counts * positive) @ acts
    alarms = (counts * ~positive) @ acts
    odds = _THRESHOLDS / (1 - _THRESHOLDS)
    return _with_band(_THRESHOLDS, (hits - alarms * odds) / len(values))


def treat_all(thresholds: Floats, share: float) -> Floats:
    """Net benefit of acting on everyone, where ``share`` of all has the class."""
    return np.asarray(share - (1 - share) * thresholds / (1 - thresholds), np.float64)


def _bootstrap_counts(positive: Bools, *, n_resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """How often each patient is in each sample, shape (1 + resamples, n); first all once."""
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + n_resamples, len(positive)), np.int64)
    for side in (positive, ~positive):
        n = int(side.sum())
        counts[1:, side] = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return counts


def _rates(values: Floats, positive: Bools, counts: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """True and false positive shares from the highest threshold down, shape (samples, points)."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    # Equal values are taken together: only the last of them is a threshold.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    shares = []
    for side in (positive[order], ~positive[order]):
        sums = np.cumsum(counts[:, order] * side, axis=1)[:, last]
        shares.append(np.pad(sums / sums[:, -1:], ((0, 0), (1, 0))))
    return shares[0], shares[1]


def _with_band(x: Floats, samples: Floats) -> Curve:
    low, high = np.percentile(samples[1:], [2.5, 97.5], axis=0)
    return Curve(x=x, y=samples[0], low=low, high=high)
