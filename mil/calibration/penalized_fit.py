"""The fit that calibrators share: a log-linear model, every class alike, shrunken by a ridge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from features.utils.text import pluralize
from mil.calibration.base import LEAST_OF_A_CLASS, Floats, Ints
from mil.errors import CalibrationError

__all__ = [
    "RIDGE_BIAS",
    "RIDGE_SLOPE",
    "CalibrationData",
    "bias_terms",
    "class_terms",
    "fit_penalized_softmax",
    "weigh",
]

RIDGE_SLOPE = 0.5
"""Ridge on a slope in units of 1 / spread of the logits."""

RIDGE_BIAS = 2.0
"""Ridge on the bias of a class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationData:
    """Patients to fit on, weighed and smoothed."""

    centred: Floats
    """Logits with a row's mean taken off, shape (n, classes)."""
    spread: float
    """Root mean square of the centred logits, or 1 where they are all 0."""
    truth: Floats
    """Platt's targets, shape (n, classes); rows sum to 1."""
    mass: Floats
    """Shape (n,): the same total for every class, the number of patients for all."""


def weigh(logits: Floats, labels: Ints, groups: Ints | None) -> CalibrationData:
    """Give every class the same weight, and smooth the truth as Platt (1999) did.

    Platt's targets treat a class of n patients as if one more of each class had been seen there,
    so that no probability reaches 0 or 1 however well few patients are separated.

    Parameters
    ----------
    logits, labels, groups
        As for :meth:`mil.calibration.base.Calibrator.fit`.

    Raises
    ------
    CalibrationError
        If a logit is not finite, or a class has fewer than three patients.
    """
    n_classes = logits.shape[1]
    each = np.ones(len(labels))
    if groups is not None:
        _, owner, n_rows = np.unique(groups, return_inverse=True, return_counts=True)
        each = 1 / n_rows[owner]
    per_class: Floats = np.bincount(labels, each, minlength=n_classes).astype(np.float64)
    _refuse(logits, per_class)
    centred = logits - logits.mean(axis=1, keepdims=True)
    smoothing = (n_classes / (per_class + n_classes))[labels, None]
    return CalibrationData(
        centred=centred,
        spread=float(np.sqrt(np.average((centred**2).mean(axis=1), weights=each))) or 1.0,
        truth=np.eye(n_classes)[labels] * (1 - smoothing) + smoothing / n_classes,
        mass=each * (each.sum() / n_classes / per_class)[labels],
    )


def fit_penalized_softmax(
    terms: Floats, evidence: CalibrationData, *, ridge: Floats, positive: Ints
) -> Floats:
    """Factors of terms whose sum is the logit, by penalised maximum likelihood.

    ``softmax(sum_j factor_j * terms_j)``; the loss is convex, so what is found is the minimum.

    Parameters
    ----------
    terms
        Shape (factors, n, classes).
    evidence
        From :func:`weigh`.
    ridge
        Shape (factors,): penalty on the square of each.
    positive
        Which factors must not be negative.

    Returns
    -------
    numpy.ndarray
        Shape (factors,).
    """
    flat = terms.reshape(len(terms), -1)
    weighed = evidence.mass[:, None] * evidence.truth

    def loss(factors: Floats) -> tuple[float, Floats]:
        logs = log_softmax((factors @ flat).reshape(evidence.truth.shape), axis=1)
        value = -float((weighed * logs).sum()) + float(ridge @ factors**2)
        error = evidence.mass[:, None] * np.exp(logs) - weighed
        return value, flat @ error.ravel() + 2 * ridge * factors

    start = np.zeros(len(terms))
    start[positive] = 0.5
    least = np.full(len(terms), -np.inf)
    least[positive] = 0.0
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(float(value), None) for value in least],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return np.asarray(found.x, np.float64)


def bias_terms(n: int, n_classes: int) -> Floats:
    """One constant term a class, shape (classes, n, classes)."""
    return np.repeat(np.eye(n_classes)[:, None], n, axis=1)


def class_terms(values: Floats) -> Floats:
    """One term a class that holds that class's column alone, shape (classes, n, classes)."""
    return np.asarray(np.eye(values.shape[1])[:, None] * values[None], np.float64)


def _refuse(logits: Floats, per_class: Floats) -> None:
    if not np.isfinite(logits).all():
        n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise CalibrationError(
            "calibration", actual=f"{n_bad} rows with NaN or infinity", expected="finite logits"
        )
    if per_class.min() < LEAST_OF_A_CLASS - 1e-9:
        raise CalibrationError(
            "calibration",
            actual=f"{pluralize(round(per_class.min()), 'patients')} of class "
            f"{per_class.argmin() + 1} of {len(per_class)}, in order of names",
            expected=f"at least {LEAST_OF_A_CLASS} of each class",
            hint="Use fewer folds or more patients.",
        )
