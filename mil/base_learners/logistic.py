"""Penalised logistic regression on pooled features, with many more features than patients."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Self

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from mil.arrays import Bools, Float32s, Floats, Ints

__all__ = ["LEAST_SPREAD", "LinearModel"]

_C = 7.0  # decision 0019
_MEAN_SQUARED_NORM = 16.0
_MAX_DEVIATION = 8.0  # training standard deviations, of new patients
_LEAST_DEVIATION = 1e-6  # of the largest: smaller ones are rounding errors
LEAST_SPREAD = 1e-12  # of the largest value
"""Standard deviations below this share of the largest value are rounding errors of float64."""
_MOST_NEWTON_COEFFICIENTS = 1024
_MOST_PATIENTS_PER_FEATURE = 2  # of two classes, for a fit on the patients' Gram matrix
_TILES_PER_BLOCK = 8192
_JITTER = 1e-10  # of the mean squared norm: centred patients have a singular Gram matrix
_MOST_NEWTON_STEPS = 50
_LEAST_STEP = 1e-4
_LEAST_GAIN = 1e-12  # of the value; a Newton step with this gain has squared the error
_ONE_AT_A_TIME = Lock()  # scikit-learn's Newton steps set the filters of warnings of all threads


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """Linear model of pooled features: logits are ``clip((x - centre) / scale) @ weights + bias``.

    Attributes
    ----------
    centre, scale
        Shape (features,): means and standard deviations of the training patients, or ones.
    limit
        Largest standardised value of a new patient; infinity for no limit.
    weights, bias
        Shapes (features, classes) and (classes,). Features that do not vary have weights of 0.
    """

    centre: Floats
    scale: Floats
    limit: float
    weights: Floats
    bias: Floats

    @property
    def is_constant(self) -> bool:
        """Whether no feature has a weight: all training patients had the same features."""
        return not self.weights.any()

    @classmethod
    def fit(
        cls,
        pooled: Floats,
        labels: Ints,
        *,
        n_classes: int,
        balanced: bool,
        standardise: bool,
        emphasis: Floats | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Fit an L2-penalised logistic regression, which is convex, with a free bias.

        Features are centred and scaled to a mean squared norm of 16, so that one penalty fits any
        number of features. With more features than patients, the patients span the solution: the
        fit is that of the kernel form, on their Gram matrix, which has the same minimum; of two
        classes it is so with half as many features, too, since it takes less time. With more than
        two classes the model is multinomial.

        Parameters
        ----------
        pooled
            Features of training patients, shape (patients, features).
        labels
            Class indices, shape (patients,), every class at least once.
        n_classes
            Number of classes.
        balanced
            Give every class the same total weight.
        standardise
            Divide each feature by its standard deviation, and limit those of new patients to 8.
        emphasis
            Factor of each feature before the penalty, shape (features,): of 0 it has no weight.
        overwrite
            Change ``pooled``, which the caller no longer needs, if it is float64: less memory.
        """
        # The only copy, if any, changed in place: it may be large.
        x = pooled.astype(np.float64, copy=not overwrite)
        largest = float(np.abs(x).max())
        centre = x.mean(axis=0)
        x -= centre
        deviation = np.sqrt(np.einsum("ij,ij->j", x, x) / len(x))
        least = max(_LEAST_DEVIATION * deviation.max(), LEAST_SPREAD * largest)
        varies = deviation > least
        scale = np.where(varies, deviation, 1.0) if standardise else np.ones(x.shape[1])
        if standardise:
            x /= scale
        factors = np.ones(x.shape[1]) if emphasis is None else emphasis
        if emphasis is not None:
            x *= factors
            varies &= factors > 0
        if not varies.all():
            x = x[:, varies]
        weights = np.zeros((len(varies), n_classes))
        bias = np.zeros(n_classes)
        if varies.any():
            norm = np.sqrt(_MEAN_SQUARED_NORM / (float(np.vdot(x, x)) / len(x)))
            x *= norm
            most = _MOST_PATIENTS_PER_FEATURE if n_classes == 2 else 1
            is_wide = most * x.shape[1] > len(x)
            fitted = _fit_logistic_by_gram if is_wide else _fit_logistic
            own, bias = fitted(x, labels, n_classes=n_classes, balanced=balanced)
            weights[varies] = norm * factors[varies, None] * own
        limit = _MAX_DEVIATION if standardise else np.inf
        return cls(centre=centre, scale=scale, limit=limit, weights=weights, bias=bias)

    def logits(self, pooled: Floats) -> Floats:
        """Return logits, shape (..., classes), of pooled features, shape (..., features)."""
        standard = np.clip((pooled - self.centre) / self.scale, -self.limit, self.limit)
        return np.asarray(standard @ self.weights + self.bias, np.float64)

    def contributions(
        self, of_tiles: Floats | Float32s, *, pooled: Floats | Float32s | None = None
    ) -> Floats:
        """Return summands of the logits, shape (tiles, classes), where features are tile means.

        ``of_tiles`` has shape (tiles, features); the pooled features are its mean over the tiles,
        or ``pooled``, shape (features,), if that was rounded before the logits were computed. The
        sum over tiles is exactly the logit: the bias and the rounding are divided equally, and
        where the limit shortens a pooled feature, the parts of its tiles are shortened alike.
        """
        mean = of_tiles.mean(axis=0, dtype=np.float64)
        standard = (mean - self.centre) / self.scale
        kept = np.minimum(self.limit / np.maximum(np.abs(standard), 1e-300), 1.0)
        weights = (kept / self.scale)[:, None] * self.weights
        offset = self.bias - self.centre @ weights
        blocks = [
            of_tiles[at : at + _TILES_PER_BLOCK].astype(np.float64) @ weights
            for at in range(0, len(of_tiles), _TILES_PER_BLOCK)
        ]
        rounding = 0.0 if pooled is None else (pooled - mean) @ weights
        return np.asarray((np.concatenate(blocks) + offset + rounding) / len(of_tiles), np.float64)


def _fit_logistic(
    x: Floats, labels: Ints, *, n_classes: int, balanced: bool
) -> tuple[Floats, Floats]:
    """Return weights (features, classes) and biases (classes,), which sum to 0 over classes.

    The penalty on a difference of logits is the same for any number of classes.
    """
    n_coefficients = x.shape[1] * (1 if n_classes == 2 else n_classes)
    model = LogisticRegression(
        C=_C if n_classes == 2 else _C / 2,
        class_weight="balanced" if balanced else None,
        solver="newton-cholesky" if n_coefficients <= _MOST_NEWTON_COEFFICIENTS else "lbfgs",
        tol=1e-6,
        max_iter=1000,
    )
    with _ONE_AT_A_TIME:
        model.fit(x, labels)
    weights, bias = model.coef_.T, model.intercept_
    if n_classes == 2:
        weights, bias = np.hstack([-weights, weights]) / 2, np.array([-bias[0], bias[0]]) / 2
    return (
        np.asarray(weights - weights.mean(axis=1, keepdims=True), np.float64),
        np.asarray(bias - bias.mean(), np.float64),
    )


def _fit_logistic_by_gram(
    x: Floats, labels: Ints, *, n_classes: int, balanced: bool
) -> tuple[Floats, Floats]:
    """Return what :func:`_fit_logistic` does, of many features, in less time.

    Weights are ``x.T @ dual``, and all steps are on the Gram matrix of the patients.
    """
    gram = x @ x.T
    if n_classes > 2:
        root = np.linalg.cholesky(gram + _JITTER * gram.trace() / len(x) * np.eye(len(x)))
        own, bias = _fit_logistic(root, labels, n_classes=n_classes, balanced=balanced)
        return x.T @ solve_triangular(root, own, lower=True, trans="T"), bias
    cost = np.full(len(x), _C)
    if balanced:
        cost *= (len(x) / n_classes / np.bincount(labels))[labels]
    dual, bias_of_second = _solve_dual(gram, labels == 1, cost)
    halves = np.array([-0.5, 0.5])
    return np.outer(x.T @ dual, halves), bias_of_second * halves


def _solve_dual(gram: Floats, truth: Bools, cost: Floats) -> tuple[Floats, float]:
    """Return the dual, shape (patients,), and the bias of a logistic regression of two classes.

    They minimise ``cost @ log_loss(gram @ dual + bias) + dual @ gram @ dual / 2`` by Newton steps
    (Rasmussen and Williams, 2006, algorithm 3.1, with a free bias); a step that is too long is
    halved. ``cost``, shape (patients,), is above 0.
    """
    dual, bias = np.zeros(len(gram)), 0.0
    sign = np.where(truth, 1.0, -1.0)

    def objective(logit: Floats, dual: Floats, bias: float) -> float:
        return float(cost @ np.logaddexp(0, -sign * logit) + dual @ (logit - bias) / 2)

    logit = np.zeros(len(gram))
    value = objective(logit, dual, bias)
    system = np.empty_like(gram)  # the only other matrix of patients by patients: it may be large
    for _ in range(_MOST_NEWTON_STEPS):
        proba = expit(logit)
        curvature = cost * np.maximum(proba * (1 - proba), 1e-12)
        root = np.sqrt(curvature)
        # Inverse of gram + diag(1 / curvature), by a matrix whose eigenvalues are at least 1.
        np.multiply(root[:, None], gram, out=system)
        system *= root
        system[np.diag_indices_from(system)] += 1
        factor = cho_factor(system.T, lower=True, overwrite_a=True)
        target = logit + cost * (truth - proba) / curvature
        both = np.stack([target, np.ones(len(gram))], axis=1)
        solved = root[:, None] * cho_solve(factor, root[:, None] * both)
        new_bias = solved[:, 0].sum() / solved[:, 1].sum()
        step, bias_step = solved[:, 0] - new_bias * solved[:, 1] - dual, new_bias - bias
        change = gram @ step + bias_step
        length, gain = 1.0, -np.inf
        while length > _LEAST_STEP:
            trial = dual + length * step, bias + length * bias_step
            gain = value - objective(logit + length * change, *trial)
            if gain >= 0:
                break
            length /= 2
        if gain < 0:
            break
        (dual, bias), logit, value = trial, logit + length * change, value - gain
        if gain <= _LEAST_GAIN * value:
            break
    return dual, bias
