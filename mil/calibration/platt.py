"""Regularised Platt scaling: one slope, and one bias per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration.base import Calibrator, read_array, read_slope, register_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    CalibrationData,
    bias_terms,
    fit_penalized_softmax,
)

__all__ = ["PlattScaling"]


@register_calibrator("platt")
class PlattScaling(Calibrator):
    """One slope, and one bias per class, shrunken towards the uniform distribution.

    Probabilities are ``softmax(slope_ * logits + bias_)``, shape (n, classes), with ``slope_ >= 0``
    and biases that sum to 0. For two classes this is Platt's sigmoid (Platt, 1999) on the
    difference of the logits, and with biases of 0 it is temperature scaling (Guo et al., 2017).

    It is fitted by maximum likelihood with the same total weight for every class, so its output is
    for the balanced prior. Platt's targets and a ridge on the slope (in units of the spread of the
    logits) and on the biases shrink it, strongly in small cohorts and hardly with hundreds of
    patients: no probability reaches 0 or 1, and the result is 1 / classes where the logits carry no
    signal. The slope is never negative, so the ranking of patients is never reversed.

    Attributes
    ----------
    slope_
        Factor of the logits, at least 0.
    bias_
        Shape (classes,), sums to 0.
    """

    kind = "shrunken_platt"

    def __init__(self, *, slope: float = 1.0, bias: Sequence[float] = (0.0, 0.0)) -> None:
        self.slope_ = float(slope)
        self.bias_: Floats = np.array(bias, np.float64)

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit slope and biases to logits of shape (n, classes), see :meth:`Calibrator.fit`."""
        data = CalibrationData.of(logits, labels, groups=groups)
        n, n_classes = logits.shape
        coefficients = fit_penalized_softmax(
            np.concatenate([data.centred[None] / data.spread, bias_terms(n, n_classes)]),
            data,
            ridge=np.array([RIDGE_SLOPE, *[RIDGE_BIAS] * n_classes]),
            nonnegative=np.array([0]),
        )
        self.slope_ = float(coefficients[0]) / data.spread
        self.bias_ = coefficients[1:] - coefficients[1:].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        centred = logits - logits.mean(axis=1, keepdims=True)
        return np.asarray(softmax(self.slope_ * centred + self.bias_, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file: slope, and bias of shape (classes,)."""
        return {"kind": self.kind, "slope": self.slope_, "bias": self.bias_.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a calibrator from the result of :meth:`as_dict`."""
        slope = read_slope(values)
        bias = read_array(values, "bias", n_axes=1)
        return cls(slope=slope, bias=bias.tolist())
