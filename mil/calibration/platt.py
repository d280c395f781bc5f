"""Platt scaling, shrunken: one slope and a bias for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.calibration.base import Calibrator, Floats, Ints, read_numbers, register_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    bias_terms,
    fit_penalized_softmax,
    weigh,
)
from mil.errors import CalibrationError

__all__ = ["PlattScaling"]


@register_calibrator("platt")
class PlattScaling(Calibrator):
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

    kind = "shrunken_platt"

    def __init__(self, *, slope: float = 1.0, bias: Sequence[float] = (0.0, 0.0)) -> None:
        self.slope_ = float(slope)
        self.bias_: Floats = np.array(bias, np.float64)

    @classmethod
    def n_parameters(cls, n_classes: int) -> int:
        """The slope and all biases but one, as they sum to 0."""
        return n_classes

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit slope and biases, see :meth:`mil.calibration.base.Calibrator.fit`."""
        evidence = weigh(logits, labels, groups)
        n, n_classes = logits.shape
        found = fit_penalized_softmax(
            np.concatenate([evidence.centred[None] / evidence.spread, bias_terms(n, n_classes)]),
            evidence,
            ridge=np.array([RIDGE_SLOPE, *[RIDGE_BIAS] * n_classes]),
            positive=np.array([0]),
        )
        self.slope_ = float(found[0]) / evidence.spread
        self.bias_ = found[1:] - found[1:].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        centred = logits - logits.mean(axis=1, keepdims=True)
        return np.asarray(softmax(self.slope_ * centred + self.bias_, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"kind": self.kind, "slope": self.slope_, "bias": self.bias_.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        slope = float(read_numbers(values, "slope", n_axes=0))
        bias = read_numbers(values, "bias", n_axes=1)
        if values.get("kind") != cls.kind or slope < 0:
            raise CalibrationError("calibrator", actual=f"{dict(values)}", expected="a Platt slope")
        return cls(slope=slope, bias=bias.tolist())
