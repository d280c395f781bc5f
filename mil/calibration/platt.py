"""Platt scaling that changes little where little speaks for a change: slope and biases."""

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
from mil.calibration.shrinkage import akaike_weights

__all__ = ["PlattScaling", "fit_platt"]


@register_calibrator("platt")
class PlattScaling(Calibrator):
    """Platt scaling, averaged with no calibration and with equal probabilities by evidence.

    Probabilities are ``softmax(slope_ * logits + bias_)``, shape (n, classes), with ``slope_ >= 0``
    and biases that sum to 0. For two classes this is Platt's sigmoid (Platt, 1999) on the
    difference of the logits, and with biases of 0 it is temperature scaling (Guo et al., 2017).

    It is fitted in two steps. :func:`fit_platt` finds slope and biases. The calibrated logits are
    then the mean of the logits of three maps: these, the logits as they are (slope 1, biases 0),
    and 0 (slope 0); the weights are those of :func:`mil.calibration.shrinkage.akaike_weights`. In a
    small cohort whose labels do not speak against the logits, little is changed; where the logits
    carry no signal, the result is about 1 / classes; with hundreds of patients it is the fit. The
    slope is never negative, so the ranking of patients is never reversed, and a probability is
    never more extreme than both the fitted and the uncalibrated one.

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
        slope, bias = fit_platt(data)
        raw = data.centred
        of_fit, of_raw, _ = akaike_weights(
            [slope * raw + bias, raw, np.zeros_like(raw)], [len(bias), 0, 0], data
        )
        self.slope_ = float(of_fit * slope + of_raw)
        self.bias_ = of_fit * bias
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


def fit_platt(data: CalibrationData) -> tuple[float, Floats]:
    """Return the slope and the biases, shape (classes,), of Platt scaling by itself.

    It is fitted by maximum likelihood with the same total weight for every class, so its output is
    for the balanced prior. Platt's targets and a ridge on the slope (in units of the spread of the
    logits) and on the biases shrink it towards 1 / classes, strongly in small cohorts and hardly
    with hundreds of patients.
    """
    n, n_classes = data.targets.shape
    coefficients = fit_penalized_softmax(
        np.concatenate([data.centred[None] / data.spread, bias_terms(n, n_classes)]),
        data,
        ridge=np.array([RIDGE_SLOPE, *[RIDGE_BIAS] * n_classes]),
        nonnegative=np.array([0]),
    )
    return float(coefficients[0]) / data.spread, coefficients[1:] - coefficients[1:].mean()
