"""Shared fit of the calibrators: softmax regression with balanced classes and a ridge penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from features.utils.text import pluralize
from mil.arrays import Floats, Ints
from mil.calibration.base import MIN_PATIENTS_PER_CLASS
from mil.errors import CalibrationError

__all__ = [
    "RIDGE_BIAS",
    "RIDGE_SLOPE",
    "CalibrationData",
    "bias_terms",
    "fit_penalized_softmax",
    "leave_one_out_logits",
    "log_loss",
]

RIDGE_SLOPE = 0.5
"""Ridge on a slope in units of 1 / spread of the logits."""

RIDGE_BIAS = 2.0
"""Ridge on the bias of a class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationData:
    """Logits, smoothed targets and weights of the patients that a calibrator is fitted on.

    ``centred`` are the logits less the mean of their row, and ``targets`` Platt's targets, whose
    rows sum to 1, both of shape (n, classes). ``spread`` is the root mean square of the centred
    logits, or 1 where they are all 0. ``sample_weight``, shape (n,), has the same total for every
    class and sums to the number of patients. ``labels``, shape (n,), are the true classes, and
    ``n_per_class``, shape (classes,), the patients of each.
    """

    centred: Floats
    spread: float
    targets: Floats
    sample_weight: Floats
    labels: Ints
    n_per_class: Floats

    @classmethod
    def of(cls, logits: Floats, labels: Ints, *, groups: Ints | None) -> Self:
        """Check the logits, balance the classes, and smooth the targets as Platt (1999) did.

        Platt's targets add one patient of each class to each class, so that no probability reaches
        0 or 1 even where few patients are separated perfectly. Logits have shape (n, classes),
        labels and groups shape (n,), as for :meth:`mil.calibration.base.Calibrator.fit`.

        Raises
        ------
        CalibrationError
            If a logit is not finite, or a class has fewer than three patients.
        """
        n_classes = logits.shape[1]
        weights = np.ones(len(labels))
        if groups is not None:
            _, patient, n_rows = np.unique(groups, return_inverse=True, return_counts=True)
            weights = 1 / n_rows[patient]
        per_class: Floats = np.bincount(labels, weights, minlength=n_classes).astype(np.float64)
        _check(logits, per_class)
        centred = logits - logits.mean(axis=1, keepdims=True)
        smoothing = (n_classes / (per_class + n_classes))[labels, None]
        return cls(
            centred=centred,
            spread=float(np.sqrt(np.average((centred**2).mean(axis=1), weights=weights))) or 1.0,
            targets=np.eye(n_classes)[labels] * (1 - smoothing) + smoothing / n_classes,
            sample_weight=weights * (weights.sum() / n_classes / per_class)[labels],
            labels=labels,
            n_per_class=per_class,
        )


def fit_penalized_softmax(
    terms: Floats,
    data: CalibrationData,
    *,
    ridge: Floats,
    nonnegative: Ints,
    towards: float = 0.0,
) -> Floats:
    """Return the coefficients of terms whose sum is the logit, by penalised maximum likelihood.

    The model is ``softmax(sum_j coefficient_j * terms_j)``; its loss is convex, so the result is
    the global minimum. ``terms`` have shape (coefficients, n, classes); ``ridge``, the penalty on
    the square of each coefficient less ``towards``, and the result shape (coefficients,). The
    coefficients with an index in ``nonnegative`` are at least 0.
    """
    flat = terms.reshape(len(terms), -1)
    weighted = data.sample_weight[:, None] * data.targets

    def loss_and_gradient(coefficients: Floats) -> tuple[float, Floats]:
        logs = log_softmax((coefficients @ flat).reshape(data.targets.shape), axis=1)
        excess = coefficients - towards
        value = -float((weighted * logs).sum()) + float(ridge @ excess**2)
        error = data.sample_weight[:, None] * np.exp(logs) - weighted
        return value, flat @ error.ravel() + 2 * ridge * excess

    start = np.zeros(len(terms))
    start[nonnegative] = 0.5
    lowest = np.full(len(terms), -np.inf)
    lowest[nonnegative] = 0.0
    result = minimize(
        loss_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(float(value), None) for value in lowest],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return np.asarray(result.x, np.float64)


def leave_one_out_logits(
    terms: Floats,
    coefficients: Floats,
    data: CalibrationData,
    *,
    ridge: Floats,
    nonnegative: Ints,
    n_rows: Floats,
) -> Floats:
    """Return the logits of patients left out of a fit, approximately and without fitting again.

    One Newton step from the fit to that without the patient (Rad and Maleki, 2020), which is exact
    for a quadratic loss; coefficients that are 0 for being nonnegative stay 0. The result has shape
    (n, classes). Arguments are those of :func:`fit_penalized_softmax` and its result; ``n_rows``,
    shape (n,), is the number of rows of each row's patient, who is left out as a whole.
    """
    is_free = np.ones(len(terms), bool)
    is_free[nonnegative] = coefficients[nonnegative] > 0
    x = terms[is_free].transpose(1, 2, 0)  # (n, classes, coefficients)
    logits = x @ coefficients[is_free]
    proba = softmax(logits, axis=1)
    curvature = proba[:, :, None] * (np.eye(proba.shape[1]) - proba[:, None])
    curvature *= data.sample_weight[:, None, None]  # (n, classes, classes)
    hessian = np.einsum("ica,icd,idb->ab", x, curvature, x, optimize=True)
    hessian += 2 * np.diag(ridge[is_free])
    leverage = x @ np.linalg.solve(hessian, x.transpose(0, 2, 1))  # (n, classes, classes)
    patient = n_rows[:, None, None]
    error = (data.sample_weight[:, None] * (proba - data.targets))[:, :, None] * patient
    remaining = np.eye(proba.shape[1]) - patient * curvature @ leverage
    without = logits + (leverage @ np.linalg.solve(remaining, error))[:, :, 0]
    return np.asarray(without, np.float64)


def log_loss(logits: Floats, data: CalibrationData) -> float:
    """Return the sum over patients, in nats, with the targets and weights of ``data``.

    Logits have shape (n, classes).
    """
    losses = -(data.targets * log_softmax(logits, axis=1)).sum(axis=1)
    return float(data.sample_weight @ losses)


def bias_terms(n: int, n_classes: int) -> Floats:
    """Return one constant term per class, shape (classes, n, classes)."""
    return np.repeat(np.eye(n_classes)[:, None], n, axis=1)


def _check(logits: Floats, per_class: Floats) -> None:
    if not np.isfinite(logits).all():
        n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise CalibrationError(
            "calibration", actual=f"{n_bad} rows with NaN or infinity", expected="finite logits"
        )
    if per_class.min() < MIN_PATIENTS_PER_CLASS - 1e-9:
        raise CalibrationError(
            "calibration",
            actual=f"{pluralize(round(per_class.min()), 'patients')} of class "
            f"{per_class.argmin() + 1} of {len(per_class)}, in order of names",
            expected=f"at least {MIN_PATIENTS_PER_CLASS} of each class",
            hint="Use fewer folds or more patients.",
        )
