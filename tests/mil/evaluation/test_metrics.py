from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
)

from features.errors import MilError
from mil.evaluation.metrics import (
    Interval,
    accuracy,
    auroc,
    balanced_accuracy,
    brier_score,
    expected_calibration_error,
    prior_weights,
    weighted_log_loss,
)


def draw(n_classes: int, seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    proba = rng.dirichlet(np.ones(n_classes), n)
    return proba, labels


@settings(max_examples=30)
@given(n_classes=st.integers(2, 4), seed=st.integers(0, 10_000))
def test_scores_agree_with_scikit_learn(n_classes: int, seed: int) -> None:
    proba, labels = draw(n_classes, seed)
    weights = prior_weights(labels, None, n_classes=n_classes)
    assert weighted_log_loss(proba, labels) == pytest.approx(
        log_loss(labels, proba, sample_weight=weights)
    )
    expected = (
        roc_auc_score(labels, proba[:, 1])
        if n_classes == 2
        else roc_auc_score(labels, proba, multi_class="ovr", average="macro")
    )
    assert auroc(proba, labels) == pytest.approx(expected)
    assert accuracy(proba, labels) == pytest.approx(accuracy_score(labels, proba.argmax(axis=1)))
    assert balanced_accuracy(proba, labels) == pytest.approx(
        balanced_accuracy_score(labels, proba.argmax(axis=1))
    )
    if n_classes == 2:
        assert brier_score(proba, labels) / 2 == pytest.approx(
            brier_score_loss(labels, proba[:, 1])
        )


def test_a_constant_scores_the_logarithm_of_the_number_of_classes() -> None:
    labels = np.array([0] * 9 + [1])
    assert weighted_log_loss(np.full((10, 2), 0.5), labels) == pytest.approx(0.693147, abs=1e-6)
    # Two equal columns mean 0.5 whatever their size: rows are rescaled first.
    assert weighted_log_loss(np.full((10, 2), 0.2699), labels) == pytest.approx(0.693147, abs=1e-6)


def test_rows_are_rescaled_before_they_are_clipped() -> None:
    tiny = np.array([[1e-20, 1e-20], [1e-20, 3e-20]])
    expected = -(np.log(0.5) + np.log(0.75)) / 2
    assert weighted_log_loss(tiny, np.array([0, 1])) == pytest.approx(expected)
    certain = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert weighted_log_loss(certain, np.array([0, 1])) == pytest.approx(-np.log(1e-15) / 2)


def test_a_row_of_zeros_has_no_score() -> None:
    with pytest.raises(MilError, match="row 1: probabilities that sum to 0"):
        weighted_log_loss(np.array([[0.5, 0.5], [0.0, 0.0]]), np.array([0, 1]))


def test_ties_count_half_and_a_missing_class_has_no_auroc() -> None:
    proba = np.full((4, 2), 0.5)
    assert auroc(proba, np.array([0, 1, 0, 1])) == 0.5
    assert np.isnan(auroc(proba, np.zeros(4, int)))


def test_calibrated_probabilities_have_a_small_calibration_error_and_wrong_ones_a_large() -> None:
    rng = np.random.default_rng(0)
    share = rng.uniform(0, 1, 40_000)
    labels = (rng.uniform(size=40_000) < share).astype(int)
    proba = np.stack([1 - share, share], axis=1)
    assert expected_calibration_error(proba, labels) < 0.01
    assert expected_calibration_error(proba[:, ::-1], labels) > 0.4


def test_equal_probabilities_are_one_bin_whatever_their_order() -> None:
    proba = np.full((100, 2), 0.5)
    labels = np.array([0] * 50 + [1] * 50)
    assert expected_calibration_error(proba, labels) == pytest.approx(0.0, abs=1e-12)


def test_weights_let_the_sample_stand_for_other_shares() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    weights = prior_weights(labels, np.array([0.2, 0.8]), n_classes=2)
    assert weights.sum() == pytest.approx(40)
    assert weights[labels == 1].sum() == pytest.approx(32)


def test_an_interval_without_ends_says_so() -> None:
    assert str(Interval(value=0.5, low=0.4, high=0.6)) == "0.5000 [0.4000, 0.6000]"
    assert str(Interval(value=2.38, low=np.nan, high=np.nan)) == "2.3800 [not estimable]"
    assert str(Interval(value=-1e-9, low=-1e-7, high=1e-9)) == "0.0000 [0.0000, 0.0000]"
