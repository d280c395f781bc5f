"""Slope and intercept of held-out probabilities: how far they are from meaning what they say."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from mil.calibration.base import Floats, Ints, clipped_log
from mil.evaluation.metrics import prior_weights

__all__ = ["calibration_slope_and_intercepts", "intercept_of"]

_N_STEPS = 30
_TOLERANCE = 1e-8


def calibration_slope_and_intercepts(proba: Floats, labels: Ints) -> tuple[float, Floats]:
    """Slope and intercepts that would bring probabilities right (Cox, 1958).

    Maximum likelihood of ``softmax(slope * ln p + intercepts)``, every class weighed alike, so
    ``proba`` is meant for the balanced prior. Perfect probabilities have slope 1 and intercepts 0;
    a slope below 1 says overconfident, above 1 too timid. For two classes this is the logistic
    regression of the truth on the logit.

    Parameters
    ----------
    proba
        Shape (n, classes), of patients that neither heads nor calibrator had seen.
    labels
        Shape (n,), index of the true class; every class must occur.

    Returns
    -------
    slope
        NaN, as the intercepts, where all probabilities are equal or the classes are separated.
    intercepts
        Shape (classes,), sum to 0. For two classes, Cox's intercept is their difference.
    """
    n_classes = proba.shape[1]
    logs = clipped_log(proba)
    logs = logs - logs.mean(axis=1, keepdims=True)
    mass = prior_weights(labels, None, n_classes=n_classes)
    truth = np.eye(n_classes)[labels]
    nothing = float("nan"), np.full(n_classes, np.nan)
    if np.ptp(logs, axis=0).max() < _TOLERANCE:
        return nothing
    # The first class's intercept is 0 while fitting; Newton's steps on a convex loss.
    found = np.zeros(n_classes)
    for _ in range(_N_STEPS):
        intercepts = np.concatenate([[0.0], found[1:]])
        p = softmax(found[0] * logs + intercepts, axis=1)
        step = _newton_step(p, logs, truth, mass)
        if step is None or not np.isfinite(found - step).all():
            return nothing
        found = found - step
        if np.abs(step).max() < _TOLERANCE * (1 + np.abs(found).max()):
            intercepts = np.concatenate([[0.0], found[1:]])
            return float(found[0]), intercepts - intercepts.mean()
    return nothing


def intercept_of(intercepts: Floats) -> float:
    """One number for all intercepts of :func:`calibration_slope_and_intercepts`.

    Of two classes, Cox's intercept for the second: above 0, its probabilities are too low. Of more,
    the largest distance of any from 0.

    Parameters
    ----------
    intercepts
        Shape (classes,).
    """
    if len(intercepts) == 2:
        return float(intercepts[1] - intercepts[0])
    return float(np.abs(intercepts).max())


def _newton_step(p: Floats, logs: Floats, truth: Floats, mass: Floats) -> Floats | None:
    """Solution of Hessian and gradient, shape (classes,): slope, then intercepts but the first."""
    error = mass[:, None] * (p - truth)
    gradient = np.concatenate([[(error * logs).sum()], error.sum(axis=0)[1:]])
    weighed = mass[:, None] * p
    mean = (p * logs).sum(axis=1)
    hessian = np.empty((len(gradient), len(gradient)))
    hessian[0, 0] = (weighed * logs**2).sum() - mass @ mean**2
    hessian[0, 1:] = hessian[1:, 0] = (weighed * (logs - mean[:, None])).sum(axis=0)[1:]
    hessian[1:, 1:] = (np.diag(weighed.sum(axis=0)) - weighed.T @ p)[1:, 1:]
    try:
        return np.asarray(np.linalg.solve(hessian, gradient), np.float64)
    except np.linalg.LinAlgError:
        return None
