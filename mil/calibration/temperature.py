"""Temperature scaling: one slope for all logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.calibration.base import Calibrator, Floats, Ints, read_numbers, register_calibrator
from mil.calibration.penalized_fit import RIDGE_SLOPE, fit_penalized_softmax, weigh
from mil.errors import CalibrationError

__all__ = ["TemperatureScaling"]


@register_calibrator("temperature")
class TemperatureScaling(Calibrator):
    """``softmax(slope_ * logits)`` with ``slope_ >= 0`` (Guo et al., 2017).

    The slope is 1 / temperature: it stays a number where the logits say nothing and the temperature
    would be infinite. It is shrunken as in :class:`mil.calibration.platt.PlattScaling`; no class
    is favoured, so a shift common to all patients stays uncorrected.

    Attributes
    ----------
    slope_
        Factor of the logits, at least 0.
    """

    kind = "temperature"

    def __init__(self, *, slope: float = 1.0) -> None:
        self.slope_ = float(slope)

    @classmethod
    def n_parameters(cls, n_classes: int) -> int:
        """One, however many classes there are."""
        del n_classes
        return 1

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit the slope, see :meth:`mil.calibration.base.Calibrator.fit`."""
        evidence = weigh(logits, labels, groups)
        found = fit_penalized_softmax(
            evidence.centred[None] / evidence.spread,
            evidence,
            ridge=np.array([RIDGE_SLOPE]),
            positive=np.array([0]),
        )
        self.slope_ = float(found[0]) / evidence.spread
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        return np.asarray(softmax(self.slope_ * logits, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"kind": self.kind, "slope": self.slope_}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        slope = float(read_numbers(values, "slope", n_axes=0))
        if values.get("kind") != cls.kind or slope < 0:
            raise CalibrationError("calibrator", actual=f"{dict(values)}", expected="a slope >= 0")
        return cls(slope=slope)
