"""No calibration: the softmax of the logits as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.calibration.base import Calibrator, Floats, Ints, register_calibrator
from mil.calibration.penalized_fit import weigh
from mil.errors import CalibrationError

__all__ = ["IdentityCalibrator"]


@register_calibrator("none")
class IdentityCalibrator(Calibrator):
    """The logits taken at their word; nothing is fitted."""

    kind = "none"

    @classmethod
    def n_parameters(cls, n_classes: int) -> int:
        """None."""
        del n_classes
        return 0

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Nothing but the checks that all calibrators make."""
        weigh(logits, labels, groups)
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Softmax, shape (n, classes); rows sum to 1."""
        return np.asarray(softmax(logits, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Its kind."""
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        if values.get("kind") != cls.kind:
            raise CalibrationError("calibrator", actual=f"{dict(values)}", expected=cls.kind)
        return cls()
