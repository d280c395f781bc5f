"""Whether a difference is real: paired bootstrap of two sets of predictions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mil.evaluation.metrics import Interval, auroc, weighted_log_loss

__all__ = ["paired_differences"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_METRICS = {"weighted_log_loss": (weighted_log_loss, -1.0), "auroc": (auroc, 1.0)}


def paired_differences(
    proba: Floats, baselines: Mapping[str, Floats], labels: Ints, *, n_resamples: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """How much better predictions are than each baseline, with 95 % intervals.

    Both are scored on the same resampled patients, class counts kept, so that what makes a
    resample easy or hard for both cancels (Efron and Tibshirani, 1993). A gain is positive where
    the predictions are better, for losses too.

    Parameters
    ----------
    proba, labels
        The predictions, shape (repeats, n, classes), and the truth, shape (n,). Scores are means
        over repeats, and each resample takes the next repeat.
    baselines
        By name, predictions of the same shape.
    n_resamples, seed
        Resamples, and what decides them.

    Returns
    -------
    dict
        By baseline and by metric (``weighted_log_loss`` in nats, ``auroc``).
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == index) for index in range(proba.shape[2])]
    sets = np.stack([proba, *baselines.values()], axis=1)
    draws = np.empty((n_resamples, len(baselines), len(_METRICS)))
    for index in range(n_resamples):
        rows = np.concatenate([rng.choice(part, len(part)) for part in members])
        draws[index] = _differences(sets[index % len(sets)][:, rows], labels[rows])
    values = np.mean([_differences(one, labels) for one in sets], axis=0)
    lows, highs = np.percentile(draws, [2.5, 97.5], axis=0)
    return {
        name: {
            metric: Interval(
                value=float(values[row, column]),
                low=float(lows[row, column]),
                high=float(highs[row, column]),
            )
            for column, metric in enumerate(_METRICS)
        }
        for row, name in enumerate(baselines)
    }


def _differences(proba: Floats, labels: Ints) -> Floats:
    """Of the first predictions from each of the others, more is better: (baselines, metrics)."""
    columns = []
    for metric, sign in _METRICS.values():
        own, *others = (metric(one, labels) for one in proba)
        columns.append([sign * (own - other) for other in others])
    return np.array(columns, np.float64).T
