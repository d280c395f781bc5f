from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from mil.calibration import PlattScaling
from mil.calibration.penalized_fit import CalibrationData
from mil.calibration.platt import fit_platt
from mil.errors import CalibrationError
from mil.evaluation.metrics import auroc, weighted_log_loss
from tests.mil.calibration.drawn import honest_logits
from tests.mil.calibration.drawn import normal_scores as scores


def test_logits_that_point_the_wrong_way_give_the_prior() -> None:
    logits, labels = scores(90, 2.0, seed=0)
    proba = PlattScaling().fit(-logits, labels).predict_proba(-logits)
    np.testing.assert_allclose(proba, 0.5, atol=0.06)
    assert weighted_log_loss(proba, labels) == pytest.approx(np.log(2), abs=0.01)


def test_with_many_patients_it_is_balanced_logistic_regression() -> None:
    logits, labels = scores(60_000, 1.0, seed=1)
    calibrator = PlattScaling().fit(logits, labels)
    difference = (logits[:, 1] - logits[:, 0])[:, None]
    oracle = LogisticRegression(C=np.inf, class_weight="balanced").fit(difference, labels)
    expected = oracle.predict_proba(difference)
    np.testing.assert_allclose(calibrator.predict_proba(logits), expected, atol=0.005)


def test_it_is_right_where_the_truth_is_known() -> None:
    # Two unit normals one apart have the balanced posterior expit(x - 1/2).
    logits, labels = scores(60_000, 1.0, seed=2)
    truth = expit((logits[:, 1] - logits[:, 0]) - 0.5)
    proba = PlattScaling().fit(logits, labels).predict_proba(logits)
    np.testing.assert_allclose(proba[:, 1], truth, atol=0.02)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("size", [0.5, 3.0, 10.0])
def test_few_patients_that_are_separated_are_as_certain_as_they_were(
    size: float, n_classes: int
) -> None:
    labels = np.repeat(np.arange(n_classes), 8)
    logits = size * np.eye(n_classes)[labels]
    proba = PlattScaling().fit(logits, labels).predict_proba(logits)
    raw = softmax(logits, axis=1)
    assert weighted_log_loss(proba, labels) < weighted_log_loss(raw, labels) + 0.005
    slope, bias = fit_platt(CalibrationData.of(logits, labels, groups=None))
    by_fit = softmax(slope * logits + bias, axis=1)
    assert proba.max() <= max(by_fit.max(), raw.max()) + 1e-9


@pytest.mark.parametrize("n", [30, 100])
def test_logits_that_are_right_are_left_nearly_as_they_are(n: int) -> None:
    slopes = []
    for seed in range(40):
        logits, labels = honest_logits(n, seed)
        slopes.append(PlattScaling().fit(logits, labels).slope_)
    assert np.quantile(slopes, 0.25) > 0.8
    assert np.quantile(slopes, 0.75) < 1.2


@pytest.mark.parametrize("n_classes", [2, 3])
def test_few_patients_do_not_keep_logits_that_are_far_too_large(n_classes: int) -> None:
    for seed in range(20):
        logits, labels = honest_logits(45, seed, n_classes=n_classes)
        assert PlattScaling().fit(8 * logits, labels).slope_ < 0.3


def test_without_signal_held_out_loss_stays_near_chance() -> None:
    losses = []
    for seed in range(60):
        logits, labels = scores(48, 0.0, seed)
        calibrator = PlattScaling().fit(logits, labels)
        fresh, truth = scores(3000, 0.0, seed + 1000)
        losses.append(weighted_log_loss(calibrator.predict_proba(fresh), truth))
    assert np.mean(losses) < np.log(2) + 0.02


def test_overconfident_logits_are_brought_down() -> None:
    logits, labels = scores(600, 1.0, seed=3)
    raw = 1 / (1 + np.exp(-8 * (logits[:, 1] - logits[:, 0])))
    proba = PlattScaling().fit(8 * logits, labels).predict_proba(8 * logits)
    assert weighted_log_loss(np.stack([1 - raw, raw], 1), labels) > 1
    assert weighted_log_loss(proba, labels) < 0.65
    assert auroc(proba, labels) == pytest.approx(auroc(logits, labels))


def test_more_than_two_classes_work() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    logits = rng.normal(size=(300, 3)) + 2 * np.eye(3)[labels]
    proba = PlattScaling().fit(logits, labels).predict_proba(logits)
    assert proba.shape == (300, 3)
    assert weighted_log_loss(proba, labels) < 0.75


def test_repeats_of_a_patient_count_once() -> None:
    logits, labels = scores(60, 1.0, seed=4)
    once = PlattScaling().fit(logits, labels)
    thrice = PlattScaling().fit(
        np.tile(logits, (3, 1)), np.tile(labels, 3), groups=np.tile(np.arange(60), 3)
    )
    assert thrice.slope_ == pytest.approx(once.slope_, rel=1e-3)


def test_files_of_earlier_versions_are_read() -> None:
    back = PlattScaling.from_dict({"kind": "shrunken_platt", "slope": 0.5, "bias": [0.1, -0.1]})
    proba = back.predict_proba(np.array([[0.0, 2.0]]))
    assert proba[0, 1] == pytest.approx(expit(1.0 - 0.2))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((6, 2)), np.array([0, 0, 0, 0, 1, 1]), "2 patients of class 2 of 2"),
        (np.zeros((6, 2)), np.zeros(6, int), "0 patients of class 2 of 2"),
        (np.full((6, 2), np.nan), np.array([0, 0, 0, 1, 1, 1]), "6 rows with NaN"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    logits: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        PlattScaling().fit(logits, labels)
