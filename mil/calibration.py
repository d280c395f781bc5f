"""Logits into probabilities that mean what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from mil.errors import CalibrationError

__all__ = ["ShrunkenPlatt"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST_PER_CLASS = 3
_RIDGE_SLOPE = 0.5
_RIDGE_BIAS = 2.0


class ShrunkenPlatt:
    """One slope and a bias for each class, shrunken towards "I do not know".

    ``probabilities = softmax(slope_ * logits + bias_)`` with ``slope_ >= 0`` and biases that sum to
    0. For two classes this is Platt's sigmoid (Platt, 1999) on the difference of the logits, and
    with biases of 0 it is temperature scaling (Guo et al., 2017).

    It is fitted by maximum likelihood in which every class has the same total weight, so its
    output is for the balanced prior. Two things shrink it, by much in small cohorts and by next to
    nothing against hundreds of patients: Platt's targets, which treat a class of n patients as if
    one more of each class had been seen there, so that no probability reaches 0 or 1 however well
    few patients are separated; and a ridge on the slope (in units of the logits' own spread) and on
    the biases, which makes the answer 1 / classes where the logits say nothing. The slope is never
    negative, so patients are never re-ranked in reverse.

    Attributes
    ----------
    slope_
        Factor of the logits, at least 0.
    bias_
        Shape (classes,), sums to 0.
    """

    def __init__(self, *, slope: float = 1.0, bias: Sequence[float] = (0.0, 0.0)) -> None:
        self.slope_ = float(slope)
        self.bias_: Floats = np.array(bias, np.float64)

    def fit(self, logits: Floats, labels: Ints, *, weights: Floats | None = None) -> ShrunkenPlatt:
        """Fit on logits of patients that the heads had not seen.

        Parameters
        ----------
        logits
            Shape (n, classes), float64.
        labels
            Shape (n,), index of the true class.
        weights
            Shape (n,), e.g. 1 / repeats where a patient has a row a repeat; 1 by default.

        Raises
        ------
        CalibrationError
            If a logit is not finite, or a class has fewer than three patients.
        """
        n_classes = logits.shape[1]
        mass = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
        _check(logits, labels, mass)
        centred = logits - logits.mean(axis=1, keepdims=True)
        spread = float(np.sqrt(np.average((centred**2).mean(axis=1), weights=mass))) or 1.0
        per_class = np.bincount(labels, mass, minlength=n_classes)
        # Equal classes, and the sum of all weights is the number of patients.
        balanced = mass * (mass.sum() / n_classes / per_class)[labels]
        smoothing = n_classes / (per_class + n_classes)
        truth = np.eye(n_classes)[labels] * (1 - smoothing[labels, None])
        truth += smoothing[labels, None] / n_classes

        def loss(parameters: Floats) -> tuple[float, Floats]:
            slope, bias = parameters[0], parameters[1:] - parameters[1:].mean()
            logs = log_softmax(slope * centred / spread + bias, axis=1)
            value = -float((balanced[:, None] * truth * logs).sum())
            value += _RIDGE_SLOPE * slope**2 + _RIDGE_BIAS * float((bias**2).sum())
            error = balanced[:, None] * (np.exp(logs) - truth)
            d_slope = float((error * centred / spread).sum()) + 2 * _RIDGE_SLOPE * slope
            d_bias = error.sum(axis=0) + 2 * _RIDGE_BIAS * bias
            return value, np.concatenate([[d_slope], d_bias - d_bias.mean()])

        found = minimize(
            loss,
            np.concatenate([[0.5], np.zeros(n_classes)]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, None), *[(None, None)] * n_classes],
        )
        self.slope_ = float(found.x[0]) / spread
        self.bias_ = found.x[1:] - found.x[1:].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        centred = logits - logits.mean(axis=1, keepdims=True)
        return np.asarray(softmax(self.slope_ * centred + self.bias_, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"kind": "shrunken_platt", "slope": self.slope_, "bias": self.bias_.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShrunkenPlatt:
        """Read what :meth:`as_dict` gave.

        Raises
        ------
        CalibrationError
            If it is of another kind or its numbers cannot be.
        """
        slope, bias = values.get("slope"), values.get("bias")
        fits = isinstance(slope, (int, float)) and isinstance(bias, list) and slope >= 0
        if values.get("kind") != "shrunken_platt" or slope is None or bias is None or not fits:
            raise CalibrationError("calibrator", found=f"{dict(values)}", expected="a Platt slope")
        return cls(slope=slope, bias=bias)


def _check(logits: Floats, labels: Ints, mass: Floats) -> None:
    if not np.isfinite(logits).all():
        n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise CalibrationError(
            "calibration", found=f"{n_bad} rows with NaN or infinity", expected="finite logits"
        )
    per_class = np.bincount(labels, mass, minlength=logits.shape[1])
    if per_class.min() < _LEAST_PER_CLASS - 1e-9:
        raise CalibrationError(
            "calibration",
            found=f"{per_class.min():.0f} patients of class {int(per_class.argmin())}",
            expected=f"at least {_LEAST_PER_CLASS} of each class",
            advice="Use fewer folds or more patients.",
        )
