"""Beta calibration: a slope for each side of two classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import log_softmax, softmax

from mil.calibration.base import Calibrator, Floats, Ints, read_numbers, register_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    bias_terms,
    class_terms,
    fit_penalized_softmax,
    weigh,
)
from mil.errors import CalibrationError

__all__ = ["BetaCalibration"]


@register_calibrator("beta")
class BetaCalibration(Calibrator):
    """``logit q = a ln p - b ln(1 - p) + c`` with ``a, b >= 0`` (Kull et al., 2017); two classes.

    The family holds the identity (a = b = 1, c = 0) and, with a = b, Platt's sigmoid; a and b that
    differ bend the map where one class is overconfident and the other is not. Targets, weights and
    ridge are those of :class:`mil.calibration.platt.PlattScaling`, half of its ridge for either
    slope. Neither slope is negative, so patients are never re-ranked in reverse.

    Attributes
    ----------
    slopes_
        Shape (2,): factor of each class's log probability, (b, a) above; at least 0.
    bias_
        Shape (2,), sums to 0; c is their difference.
    """

    kind = "beta"

    def __init__(
        self, *, slopes: Sequence[float] = (1.0, 1.0), bias: Sequence[float] = (0.0, 0.0)
    ) -> None:
        self.slopes_: Floats = np.array(slopes, np.float64)
        self.bias_: Floats = np.array(bias, np.float64)

    @classmethod
    def serves(cls, n_classes: int) -> bool:
        """Two classes only."""
        return n_classes == 2

    @classmethod
    def n_parameters(cls, n_classes: int) -> int:
        """Two slopes and one difference of biases."""
        return n_classes + 1

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit slopes and biases, see :meth:`mil.calibration.base.Calibrator.fit`."""
        evidence = weigh(logits, labels, groups)
        terms = class_terms(log_softmax(logits, axis=1) / evidence.spread)
        found = fit_penalized_softmax(
            np.concatenate([terms, bias_terms(len(logits), 2)]),
            evidence,
            ridge=np.array([RIDGE_SLOPE / 2] * 2 + [RIDGE_BIAS] * 2),
            positive=np.array([0, 1]),
        )
        self.slopes_ = found[:2] / evidence.spread
        self.bias_ = found[2:] - found[2:].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, 2); rows sum to 1."""
        scaled = self.slopes_ * log_softmax(logits, axis=1) + self.bias_
        return np.asarray(softmax(scaled, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"kind": self.kind, "slopes": self.slopes_.tolist(), "bias": self.bias_.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        slopes = read_numbers(values, "slopes", n_axes=1)
        bias = read_numbers(values, "bias", n_axes=1)
        if values.get("kind") != cls.kind or len(slopes) != 2 or (slopes < 0).any():
            raise CalibrationError("calibrator", actual=f"{dict(values)}", expected="two slopes")
        return cls(slopes=slopes.tolist(), bias=bias.tolist())
