from __future__ import annotations

import numpy as np
import pytest

from mil.calibration.penalized_fit import CalibrationData
from mil.calibration.shrinkage import akaike_weights
from tests.mil.calibration.drawn import honest_logits


def weights(n_per_class: list[int], *, copies: int = 1, n_parameters: int = 2) -> np.ndarray:
    """Weights of the right logits and of none, on patients of so many of each class."""
    drawn, of = honest_logits(600, 0, n_classes=len(n_per_class))
    rows = np.concatenate([np.flatnonzero(of == c)[:n] for c, n in enumerate(n_per_class)])
    rows = np.tile(rows, copies)
    data = CalibrationData.of(drawn[rows], of[rows], groups=rows)
    return akaike_weights([data.centred, np.zeros_like(data.centred)], [n_parameters, 0], data)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_weights_are_a_share_of_each_map_and_follow_the_evidence(n_classes: int) -> None:
    few, many = weights([4] * n_classes), weights([100] * n_classes)
    np.testing.assert_allclose([few.sum(), many.sum()], 1)
    assert 0 < few[0] < many[0]
    assert many[0] > 0.999


def test_each_parameter_costs_one_nat() -> None:
    without, with_two = weights([10, 10], n_parameters=0), weights([10, 10], n_parameters=2)
    odds = [own[0] / own[1] for own in (without, with_two)]
    assert odds[1] / odds[0] == pytest.approx(np.exp(-2))


def test_rows_of_a_patient_count_once() -> None:
    np.testing.assert_allclose(weights([8, 8], copies=3), weights([8, 8]))


@pytest.mark.parametrize(
    ("n_per_class", "worth"), [([8, 8], 16), ([8, 200], 30.8), ([4, 8, 8], 18)]
)
def test_patients_of_a_large_class_are_little_more_evidence(
    n_per_class: list[int], worth: float
) -> None:
    labels = np.repeat(np.arange(len(n_per_class)), n_per_class)
    logits = 0.3 * np.eye(len(n_per_class))[labels]
    data = CalibrationData.of(logits, labels, groups=None)
    right, none = akaike_weights([logits, np.zeros_like(logits)], [0, 0], data)
    gain = logits[0, 0] - np.log(np.exp(logits[0]).sum()) + np.log(len(n_per_class))
    assert np.log(right / none) / gain == pytest.approx(worth, rel=0.01)
