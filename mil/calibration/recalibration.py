"""Recalibration: a calibrator followed by Platt scaling that was fitted on other patients."""

from __future__ import annotations

from mil.calibration.base import Calibrator
from mil.calibration.identity import IdentityCalibrator
from mil.calibration.platt import PlattScaling
from mil.calibration.stacking import StackedPlattScaling
from mil.calibration.temperature import TemperatureScaling
from mil.errors import CalibrationError

__all__ = ["recalibrated"]


def recalibrated(calibrator: Calibrator, local: PlattScaling) -> Calibrator:
    """Return one calibrator that does what two do, one after the other.

    ``local`` maps the log probabilities of the first, shape (n, classes). Both are linear in the
    logits, so the result is a calibrator of the usual kind, with the same weights of learners.

    Raises
    ------
    CalibrationError
        If the first is of a kind without slope and bias.
    """
    slope, bias = local.slope_, local.bias_
    if isinstance(calibrator, StackedPlattScaling):
        return StackedPlattScaling(
            slopes=(slope * calibrator.slopes_).tolist(),
            bias=(slope * calibrator.bias_ + bias).tolist(),
            weights=calibrator.weights_.tolist(),
            limits=calibrator.limits_.tolist(),
        )
    if isinstance(calibrator, PlattScaling):
        return PlattScaling(
            slope=slope * calibrator.slope_, bias=(slope * calibrator.bias_ + bias).tolist()
        )
    if isinstance(calibrator, TemperatureScaling):
        return PlattScaling(slope=slope * calibrator.slope_, bias=bias.tolist())
    if isinstance(calibrator, IdentityCalibrator):
        return PlattScaling(slope=slope, bias=bias.tolist())
    raise CalibrationError(
        "recalibration", actual=f"a calibrator of kind {calibrator.kind!r}",
        expected="one with slope and bias",
        hint="Train the run again with 'mil train --calibrator platt'.",
    )  # fmt: skip
