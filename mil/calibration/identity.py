"""No calibration: the softmax of the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration.base import Calibrator, register_calibrator
from mil.calibration.penalized_fit import CalibrationData

__all__ = ["IdentityCalibrator"]


@register_calibrator("none")
class IdentityCalibrator(Calibrator):
    """Softmax of the logits, shape (n, classes), without any parameter."""

    kind = "none"

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Check logits, shape (n, classes), and labels, shape (n,); nothing is fitted."""
        CalibrationData.of(logits, labels, groups=groups)
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Return the softmax, shape (n, classes); rows sum to 1."""
        return np.asarray(softmax(logits, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return the kind."""
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a calibrator; it has no numbers."""
        del values
        return cls()
