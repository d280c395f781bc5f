"""Calibration: logits into probabilities that mean what they say.

One calibrator a file; importing the package makes all of them known.
"""

from mil.calibration.auto import Automatic
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
from mil.calibration.cross_fit import CrossFitted, cross_fit
from mil.calibration.dirichlet import Dirichlet
from mil.calibration.identity import Uncalibrated
from mil.calibration.platt import ShrunkenPlatt
from mil.calibration.temperature import Temperature

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
    "calibrator_from_dict",
    "calibrator_names",
    "cross_fit",
    "logits_of",
    "register_calibrator",
]
