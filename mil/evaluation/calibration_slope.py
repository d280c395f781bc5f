"""Calibration slope and intercept of held-out probabilities (Cox, 1958)."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration.base import clipped_log
from mil.evaluation.metrics import prior_weights

__all__ = ["calibration_slope_and_intercepts", "intercept_of"]

_N_STEPS = 30
_TOLERANCE = 1e-8


def calibration_slope_and_intercepts(proba: Floats, labels: Ints) -> tuple[float, Floats]:
    """Return the slope and intercepts that would correct the probabilities (Cox, 1958).

    They maximise the likelihood of ``softmax(slope * ln p + intercepts)`` with balanced classes, so
    held-out ``proba``, shape (n, classes), should be for the balanced prior. Perfect probabilities
    have slope 1 and intercepts 0; a slope below 1 means overconfidence, above 1 underconfidence.
    For two classes this is the logistic regression of the truth on the logit. The intercepts, shape
    (classes,), sum to 0. All are NaN where probabilities are equal or the classes are separated.
    """
    n_classes = proba.shape[1]
    logs = clipped_log(proba)
    logs = logs - logs.mean(axis=1, keepdims=True)
    weights = prior_weights(labels, None, n_classes=n_classes)
    truth = np.eye(n_classes)[labels]
    undefined = float("nan"), np.full(n_classes, np.nan)
    if np.ptp(logs, axis=0).max() < _TOLERANCE:
        return undefined
    # Newton's method solves this convex problem, with the first class's intercept fixed at 0.
    slope, intercepts = 0.0, np.zeros(n_classes)
    for _ in range(_N_STEPS):
        p = softmax(slope * logs + intercepts, axis=1)
        step = _newton_step(p, logs, truth, weights)
        if step is None:
            return undefined
        slope -= float(step[0])
        intercepts[1:] -= step[1:]
        largest = max(abs(slope), np.abs(intercepts).max())
        if not np.isfinite(largest):
            return undefined
        if np.abs(step).max() < _TOLERANCE * (1 + largest):
            return slope, intercepts - intercepts.mean()
    return undefined


def intercept_of(intercepts: Floats) -> float:
    """Return one number for the intercepts, shape (classes,), of a calibration line.

    For two classes it is Cox's intercept of the second: above 0, its probabilities are too low. For
    more it is the largest absolute intercept.
    """
    if len(intercepts) == 2:
        return float(intercepts[1] - intercepts[0])
    return float(np.abs(intercepts).max())


def _newton_step(p: Floats, logs: Floats, truth: Floats, weights: Floats) -> Floats | None:
    """Return the Newton step, shape (classes,): slope, then all intercepts but the first."""
    error = weights[:, None] * (p - truth)
    gradient = np.concatenate([[(error * logs).sum()], error.sum(axis=0)[1:]])
    weighted = weights[:, None] * p
    mean = (p * logs).sum(axis=1)
    hessian = np.empty((len(gradient), len(gradient)))
    hessian[0, 0] = (weighted * logs**2).sum() - weights @ mean**2
    hessian[0, 1:] = hessian[1:, 0] = (weighted * (logs - mean[:, None])).sum(axis=0)[1:]
    hessian[1:, 1:] = (np.diag(weighted.sum(axis=0)) - weighted.T @ p)[1:, 1:]
    try:
        return np.asarray(np.linalg.solve(hessian, gradient), np.float64)
    except np.linalg.LinAlgError:
        return None
