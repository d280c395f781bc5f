"""Bootstrap intervals over patients: of scores, and of differences between predictions.

Patients are resampled within their classes, so that class counts stay as they are. The intervals
cover the choice of patients, not the variance of training. Equal class counts, numbers of resamples
and seeds give equal draws, so that intervals of several kinds of predictions are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from mil.arrays import Bools, Floats, Ints
from mil.evaluation.metrics import (
    Interval,
    Metric,
    auroc,
    balanced_brier_score,
    log_losses,
    one_vs_rest,
    squared_errors,
    weighted_log_loss,
)

__all__ = [
    "MIN_RESAMPLED_PATIENTS",
    "paired_differences",
    "resampled_confusions",
    "resampled_scores",
    "stratified_bootstrap",
]


MIN_RESAMPLED_PATIENTS = 5
"""Fewest patients of each class; the bootstrap of fewer has no meaning."""

_DEFINED_SHARE = 0.95
"""Least share of resamples with a score, for an interval."""

_VALUES_PER_BLOCK = 2**20  # A block of resamples occupies less than about 10 MB.
_PAIRED_METRICS: Mapping[str, tuple[Metric, float]] = {
    "weighted_log_loss": (weighted_log_loss, -1.0),
    "auroc": (auroc, 1.0),
}


def stratified_bootstrap(
    metrics: Mapping[str, Metric], proba: Floats, labels: Ints, *, n_resamples: int, seed: int
) -> dict[str, Interval]:
    """Return 95 percent percentile intervals of scores over resampled patients, by metric.

    ``proba`` has shape (patients, classes), ``labels`` shape (patients,). Of ``proba`` of shape
    (repeats, patients, classes) a score is the mean over repeats, and each resample takes the next
    repeat, so that the choice of folds varies as well. Without resamples the limits are NaN.
    """
    repeats = proba if proba.ndim == 3 else proba[None]
    return {
        name: _interval(
            np.mean([metric(one, labels) for one in repeats]),
            resampled_scores(metric, repeats, labels, n_resamples=n_resamples, seed=seed),
        )
        for name, metric in metrics.items()
    }


def paired_differences(
    proba: Floats, baselines: Mapping[str, Floats], labels: Ints, *, n_resamples: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Return how much better predictions are than each baseline, with 95 percent intervals.

    Both are scored on the same resampled patients, so that what makes a resample easy or hard for
    both cancels (Efron and Tibshirani, 1993). A difference is positive where the predictions are
    better, for losses too. ``proba`` and each baseline have shape (repeats, patients, classes);
    ``labels`` has shape (patients,). Scores are means over repeats, and each resample takes the
    next repeat. Results are by baseline and metric: ``weighted_log_loss`` in nats, ``auroc``.
    """
    values, samples = [], []
    for metric, sign in _PAIRED_METRICS.values():
        own, *others = (
            (
                np.array([metric(one, labels) for one in kind]),
                resampled_scores(metric, kind, labels, n_resamples=n_resamples, seed=seed),
            )
            for kind in (proba, *baselines.values())
        )
        values.append([np.mean(sign * (own[0] - other[0])) for other in others])
        samples.append([sign * (own[1] - other[1]) for other in others])
    return {
        name: {
            metric: _interval(values[column][row], samples[column][row])
            for column, metric in enumerate(_PAIRED_METRICS)
        }
        for row, name in enumerate(baselines)
    }


def resampled_confusions(
    predicted: Ints, labels: Ints, *, n_columns: int, n_resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Return confusion matrices of each repeat and of resampled patients.

    ``predicted``, shape (repeats, patients), is the index of the predicted column, below
    ``n_columns``, and ``labels``, shape (patients,), that of the true class. Matrices have the
    shape (repeats, classes, columns) and (resamples, classes, columns), rows being true classes;
    each resample takes the next repeat, as for :func:`stratified_bootstrap`.
    """
    counts = np.bincount(labels)
    n_cells = len(counts) * n_columns
    by_class = np.argsort(labels, kind="stable")
    cells = (labels * n_columns + predicted)[:, by_class]
    positions = _draw_positions(tuple(counts.tolist()), n_resamples, seed)
    resampled = np.empty((n_resamples, n_cells))
    n_rows = max(1, _VALUES_PER_BLOCK // max(1, len(labels)))
    for index, of_repeat in enumerate(cells):
        chosen = np.arange(index, n_resamples, len(cells))
        for start in range(0, len(chosen), n_rows):
            block = chosen[start : start + n_rows]
            resampled[block] = _count_by(of_repeat[positions[block]], n_cells)
    shape = (-1, len(counts), n_columns)
    return _count_by(cells, n_cells).reshape(shape), resampled.reshape(shape)


def _interval(value: np.floating, samples: Floats) -> Interval:
    # A slope is undefined in the rare resample whose classes are separated.
    defined = samples[~np.isnan(samples)]
    is_rare = len(defined) > _DEFINED_SHARE * len(samples)
    low, high = np.percentile(defined, [2.5, 97.5]) if is_rare else (np.nan, np.nan)
    return Interval(value=float(value), low=float(low), high=float(high))


def resampled_scores(
    metric: Metric, repeats: Floats, labels: Ints, *, n_resamples: int, seed: int
) -> Floats:
    """Return the score of each resample, shape (resamples,); each takes the next repeat.

    ``repeats`` are probabilities of shape (repeats, patients, classes), ``labels`` has shape
    (patients,). The same labels, number of resamples and seed give the same patients.
    """
    by_class = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=repeats.shape[-1])
    positions = _draw_positions(tuple(counts.tolist()), n_resamples, seed)
    # Resamples keep class counts and are ordered by class: all have the same labels.
    ordered, truth = repeats[:, by_class], labels[by_class]
    score = _BLOCK_SCORES.get(metric, _loop_over(metric))
    samples = np.empty(n_resamples)
    n_rows = max(1, _VALUES_PER_BLOCK // max(1, ordered[0].size))
    for index, predicted in enumerate(ordered):
        chosen = np.arange(index, n_resamples, len(repeats))
        for start in range(0, len(chosen), n_rows):
            block = chosen[start : start + n_rows]
            samples[block] = score(predicted, truth, positions[block])
    return samples


@lru_cache(maxsize=1)
def _draw_positions(counts: tuple[int, ...], n_resamples: int, seed: int) -> npt.NDArray[np.int32]:
    """Return resampled patients as positions in an order by class, shape (resamples, patients).

    They are cached, because a run scores many kinds of predictions for the same patients.
    """
    sizes, starts = np.array(counts), np.cumsum((0, *counts[:-1]))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, np.repeat(sizes, sizes), size=(n_resamples, sum(counts)))
    positions: npt.NDArray[np.int32] = (drawn + np.repeat(starts, sizes)).astype(np.int32)
    positions.flags.writeable = False
    return positions


_BlockScores = Callable[[Floats, Ints, npt.NDArray[np.int32]], Floats]
_PatientLosses = Callable[[Floats, Ints], Floats]


def _loop_over(metric: Metric) -> _BlockScores:
    def score(proba: Floats, labels: Ints, positions: npt.NDArray[np.int32]) -> Floats:
        return np.array([metric(proba[rows], labels) for rows in positions])

    return score


def _mean_over_classes(of_patient: _PatientLosses) -> _BlockScores:
    """Return a score that is the mean over classes of each class's mean loss."""

    def score(proba: Floats, labels: Ints, positions: npt.NDArray[np.int32]) -> Floats:
        n_classes = proba.shape[1]
        losses = of_patient(proba, labels)[positions]
        classes = np.broadcast_to(labels, positions.shape)
        means = _count_by(classes, n_classes, losses) / np.bincount(labels, minlength=n_classes)
        return np.asarray(np.average(means, axis=1, weights=np.ones(n_classes)), np.float64)

    return score


def _block_aurocs(proba: Floats, labels: Ints, positions: npt.NDArray[np.int32]) -> Floats:
    """Return :func:`auroc` of each resample, shape (resamples,)."""
    areas = [_block_binary_aurocs(*pair, positions) for pair in one_vs_rest(proba, labels)]
    return np.asarray(np.mean(areas, axis=0), np.float64)


def _block_binary_aurocs(
    scores: Floats, positive: Bools, positions: npt.NDArray[np.int32]
) -> Floats:
    """Return the share of pairs whose positive outranks the negative, shape (resamples,)."""
    n_pairs = int(positive.sum()) * int((~positive).sum())
    if not n_pairs:
        return np.full(len(positions), np.nan)
    ranks = rankdata(scores, method="dense").astype(np.int64) - 1
    n_levels = int(ranks.max()) + 1
    positives = _count_by(ranks[positions[:, positive]], n_levels)
    negatives = _count_by(ranks[positions[:, ~positive]], n_levels)
    below = np.cumsum(negatives, axis=1) - negatives / 2  # ties count half
    return np.asarray((positives * below).sum(axis=1) / n_pairs, np.float64)


def _count_by(levels: Ints, n_levels: int, weights: Floats | None = None) -> Floats:
    """Return :func:`numpy.bincount` of each row, shape (rows, levels)."""
    offsets = np.arange(len(levels))[:, None] * n_levels
    flat = None if weights is None else weights.ravel()
    counts = np.bincount((levels + offsets).ravel(), flat, minlength=len(levels) * n_levels)
    return counts.reshape(len(levels), n_levels).astype(np.float64)


_BLOCK_SCORES: Mapping[Metric, _BlockScores] = {
    weighted_log_loss: _mean_over_classes(log_losses),
    auroc: _block_aurocs,
    balanced_brier_score: _mean_over_classes(squared_errors),
}
"""Metrics that have a form for many resamples at once; the others are computed one by one."""
