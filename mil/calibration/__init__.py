"""Calibration: logits into probabilities that mean what they say.

One calibrator a file; importing the package makes all of them known.
"""

from mil.calibration.automatic import Automatic
from mil.calibration.base import (
    LEAST_OF_A_CLASS,
    Calibrator,
    build_calibrator,
    calibrator_from_dict,
    calibrator_names,
    logits_of,
    register_calibrator,
)
from mil.calibration.beta import Beta
from mil.calibration.crossfit import CrossFitted, cross_fit
from mil.calibration.dirichlet import Dirichlet
from mil.calibration.line import calibration_line, intercept_of
from mil.calibration.platt import ShrunkenPlatt
from mil.calibration.temperature import Temperature
from mil.calibration.uncalibrated import Uncalibrated

__all__ = [
    "LEAST_OF_A_CLASS",
    "Automatic",
    "Beta",
    "Calibrator",
    "CrossFitted",
    "Dirichlet",
    "ShrunkenPlatt",
    "Temperature",
    "Uncalibrated",
    "build_calibrator",
    "calibration_line",
    "calibrator_from_dict",
    "calibrator_names",
    "cross_fit",
    "intercept_of",
    "logits_of",
    "register_calibrator",
]
