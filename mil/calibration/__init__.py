"""Calibration: logits into probabilities that mean what they say.

One calibrator a file; importing the package makes all of them known.
"""

from mil.calibration.auto import AutoCalibrator
from mil.calibration.base import (
    LEAST_OF_A_CLASS,
    Calibrator,
    build_calibrator,
    calibrator_from_dict,
    calibrator_names,
    logits_of,
    register_calibrator,
)
from mil.calibration.beta import BetaCalibration
from mil.calibration.cross_fit import CrossFitted, cross_fit
from mil.calibration.dirichlet import DirichletCalibration
from mil.calibration.identity import IdentityCalibrator
from mil.calibration.platt import PlattScaling
from mil.calibration.temperature import TemperatureScaling

__all__ = [
    "LEAST_OF_A_CLASS",
    "AutoCalibrator",
    "BetaCalibration",
    "Calibrator",
    "CrossFitted",
    "DirichletCalibration",
    "IdentityCalibrator",
    "PlattScaling",
    "TemperatureScaling",
    "build_calibrator",
    "calibrator_from_dict",
    "calibrator_names",
    "cross_fit",
    "logits_of",
    "register_calibrator",
]
