from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from mil.evaluation.calibration_slope import calibration_slope_and_intercepts, intercept_of
from tests.mil.calibration.drawn import honest_logits, normal_scores


@pytest.mark.parametrize("n_classes", [2, 3])
def test_perfect_probabilities_lie_on_the_line(n_classes: int) -> None:
    logits, labels = honest_logits(60_000, 0, n_classes=n_classes)
    slope, intercepts = calibration_slope_and_intercepts(softmax(logits, axis=1), labels)
    assert slope == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(intercepts, 0, atol=0.03)


def test_overconfidence_is_a_slope_below_one_and_a_tilt_an_intercept() -> None:
    logits, labels = honest_logits(60_000, 1)
    slope, intercepts = calibration_slope_and_intercepts(
        softmax(3 * logits + np.array([0.0, 0.9]), axis=1), labels
    )
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert intercepts[1] - intercepts[0] == pytest.approx(-0.3, abs=0.04)


def test_it_is_balanced_logistic_regression_on_the_logit() -> None:
    logits, labels = normal_scores(200, 1.0, 2)
    slope, intercepts = calibration_slope_and_intercepts(softmax(logits, axis=1), labels)
    difference = (logits[:, 1] - logits[:, 0])[:, None]
    oracle = LogisticRegression(C=np.inf, class_weight="balanced", tol=1e-10).fit(
        difference, labels
    )
    assert slope == pytest.approx(float(oracle.coef_[0, 0]), rel=1e-4)
    assert intercepts[1] - intercepts[0] == pytest.approx(float(oracle.intercept_[0]), abs=1e-4)


def test_three_classes_agree_with_multinomial_regression_of_the_likelihood() -> None:
    # At the maximum, promised and observed agree in the mean of every class and along the logit.
    logits, labels = honest_logits(300, 3, n_classes=3)
    logs = np.log(softmax(2 * logits, axis=1))
    slope, intercepts = calibration_slope_and_intercepts(np.exp(logs), labels)
    error = softmax(slope * logs + intercepts, axis=1) - np.eye(3)[labels]
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-5)
    assert (error * logs).sum() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    "proba",
    [np.full((8, 2), 0.5), np.repeat([[0.9, 0.1], [0.1, 0.9]], 4, axis=0)],
)
def test_there_is_no_line_through_equal_or_separated_patients(proba: np.ndarray) -> None:
    slope, intercepts = calibration_slope_and_intercepts(proba, np.repeat([0, 1], 4))
    assert np.isnan(slope)
    assert np.isnan(intercepts).all()


def test_one_intercept_is_told_of_two_classes_and_the_largest_of_more() -> None:
    assert intercept_of(np.array([0.2, -0.2])) == pytest.approx(-0.4)
    assert intercept_of(np.array([0.2, -0.5, 0.3])) == pytest.approx(0.5)
    assert np.isnan(intercept_of(np.full(3, np.nan)))
