"""Temperature scaling: one slope for all logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration.base import Calibrator, read_slope, register_calibrator
from mil.calibration.penalized_fit import RIDGE_SLOPE, CalibrationData, fit_penalized_softmax

__all__ = ["TemperatureScaling"]


@register_calibrator("temperature")
class TemperatureScaling(Calibrator):
    """``softmax(slope_ * logits)``, shape (n, classes), with ``slope_ >= 0`` (Guo et al., 2017).

    The slope is the inverse temperature: it stays finite where the logits carry no signal and the
    temperature would be infinite. It is shrunken as in
    :class:`mil.calibration.platt.PlattScaling`. There are no biases, so a shift that all patients
    share stays uncorrected.

    Attributes
    ----------
    slope_
        Factor of the logits, at least 0.
    """

    kind = "temperature"

    def __init__(self, *, slope: float = 1.0) -> None:
        self.slope_ = float(slope)

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit the slope to logits of shape (n, classes), see :meth:`Calibrator.fit`."""
        data = CalibrationData.of(logits, labels, groups=groups)
        coefficients = fit_penalized_softmax(
            data.centred[None] / data.spread,
            data,
            ridge=np.array([RIDGE_SLOPE]),
            nonnegative=np.array([0]),
        )
        self.slope_ = float(coefficients[0]) / data.spread
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        return np.asarray(softmax(self.slope_ * logits, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file."""
        return {"kind": self.kind, "slope": self.slope_}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a calibrator from the result of :meth:`as_dict`."""
        slope = read_slope(values)
        return cls(slope=slope)
