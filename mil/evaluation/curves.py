"""Curves over thresholds with bootstrap bands: ROC, precision and recall, net benefit.

All are of one class against the rest. ``values``, shape (n,), is the probability of the class and
``positive``, shape (n,), bool, marks its patients. Bands are pointwise 95 % intervals over
resampled patients, class counts kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil.arrays import Bools, Floats, Ints

__all__ = ["Curve", "net_benefit_curve", "precision_recall_curve", "roc_curve", "treat_all"]


_GRID = np.linspace(0, 1, 101)
_THRESHOLDS = np.arange(1, 100) / 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Curve with a bootstrap band: arrays of shape (points,).

    ``x`` is the false positive rate, the recall, or the threshold; ``y`` the value on all patients,
    ``low`` and ``high`` the 2.5th and 97.5th percentiles over resamples.
    """

    x: Floats
    y: Floats
    low: Floats
    high: Floats


def roc_curve(values: Floats, positive: Bools, *, seed: int, n_resamples: int = 500) -> Curve:
    """Return the true over the false positive rate, at 101 points, from values of shape (n,)."""
    counts = _bootstrap_counts(positive, n_resamples=n_resamples, seed=seed)
    true, false = _rates(values, positive, counts)
    curves = [np.interp(_GRID, x, y) for x, y in zip(false, true, strict=True)]
    return _with_band(_GRID, np.stack(curves))


def precision_recall_curve(
    values: Floats, positive: Bools, *, seed: int, n_resamples: int = 500
) -> Curve:
    """Return the precision over the recall, at recalls 0.01 to 1, from values of shape (n,).

    Precision is for the class shares of the sample. Between two thresholds it is that of the lower
    one, because linear interpolation would be too optimistic (Davis and Goadrich, 2006).
    """
    counts = _bootstrap_counts(positive, n_resamples=n_resamples, seed=seed)
    true, false = _rates(values, positive, counts)
    n_positive = positive.sum()
    n_negative = len(positive) - n_positive
    recalls = _GRID[1:]
    curves = []
    for recall, fallout in zip(true, false, strict=True):
        points = np.searchsorted(recall, recalls - 1e-9)
        hits = recall[points] * n_positive
        curves.append(hits / (hits + fallout[points] * n_negative))
    return _with_band(recalls, np.stack(curves))


def net_benefit_curve(
    values: Floats, positive: Bools, *, seed: int, n_resamples: int = 500
) -> Curve:
    """Return the net benefit at thresholds 0.01 to 0.99 (Vickers and Elkin, 2006).

    It is the number of true positives, less that of false positives times the odds of the
    threshold, per patient. ``values``, shape (n,), must be for the class shares of the sample.
    """
    counts = _bootstrap_counts(positive, n_resamples=n_resamples, seed=seed).astype(np.float64)
    acts = (values[:, None] >= _THRESHOLDS).astype(np.float64)
    hits = (counts * positive) @ acts
    alarms = (counts * ~positive) @ acts
    odds = _THRESHOLDS / (1 - _THRESHOLDS)
    return _with_band(_THRESHOLDS, (hits - alarms * odds) / len(values))


def treat_all(thresholds: Floats, share: float) -> Floats:
    """Return the net benefit of treating everyone, shape (points,); ``share`` have the class."""
    return np.asarray(share - (1 - share) * thresholds / (1 - thresholds), np.float64)


def _bootstrap_counts(positive: Bools, *, n_resamples: int, seed: int) -> Ints:
    """Return how often a sample holds each patient, shape (1 + resamples, n); first all once."""
    rng = np.random.default_rng(seed)
    counts = np.ones((1 + n_resamples, len(positive)), np.int64)
    for side in (positive, ~positive):
        n = int(side.sum())
        counts[1:, side] = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return counts


def _rates(values: Floats, positive: Bools, counts: Ints) -> tuple[Floats, Floats]:
    """Return true and false positive rates by falling threshold, shape (samples, points)."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    # Equal values cannot be separated: only the last of them is a threshold.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    shares = []
    for side in (positive[order], ~positive[order]):
        sums = np.cumsum(counts[:, order] * side, axis=1)[:, last]
        shares.append(np.pad(sums / sums[:, -1:], ((0, 0), (1, 0))))
    return shares[0], shares[1]


def _with_band(x: Floats, samples: Floats) -> Curve:
    low, high = np.percentile(samples[1:], [2.5, 97.5], axis=0)
    return Curve(x=x, y=samples[0], low=low, high=high)
