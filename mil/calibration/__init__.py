"""Calibrators: from out-of-fold logits to probabilities at the balanced prior.

There is one calibrator per file; importing the package registers all of them.
"""

from mil.calibration.base import (
    MIN_PATIENTS_PER_CLASS,
    Calibrator,
    build_calibrator,
    calibrator_from_dict,
    calibrator_names,
    clipped_log,
    register_calibrator,
)
from mil.calibration.cross_fit import cross_fit, fit_per_fold
from mil.calibration.identity import IdentityCalibrator
from mil.calibration.platt import PlattScaling
from mil.calibration.stacking import StackedPlattScaling
from mil.calibration.temperature import TemperatureScaling

__all__ = [
    "MIN_PATIENTS_PER_CLASS",
    "Calibrator",
    "IdentityCalibrator",
    "PlattScaling",
    "StackedPlattScaling",
    "TemperatureScaling",
    "build_calibrator",
    "calibrator_from_dict",
    "calibrator_names",
    "clipped_log",
    "cross_fit",
    "fit_per_fold",
    "register_calibrator",
]
