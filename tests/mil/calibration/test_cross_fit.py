from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.calibration import build_calibrator, calibrator_names, cross_fit
from mil.data.splits import stratified_fold_ids
from mil.errors import CalibrationError
from tests.mil.calibration.drawn import normal_scores


def drawn_folds(labels: np.ndarray, n_repeats: int) -> np.ndarray:
    return np.stack([stratified_fold_ids(labels, n_folds=4, seed=(r,)) for r in range(n_repeats)])


@settings(max_examples=12)
@given(
    name=st.sampled_from(calibrator_names()),
    patient=st.integers(0, 47),
    seed=st.integers(0, 1000),
)
def test_a_patients_own_label_never_reaches_its_calibrator(
    name: str, patient: int, seed: int
) -> None:
    logits, labels = normal_scores(48, 0.7, seed)
    folds = drawn_folds(labels, 2)
    turned = labels.copy()
    turned[patient] = 1 - turned[patient]
    stack = np.stack([logits, logits])
    before, after = (cross_fit(stack, truth, folds, calibrator=name) for truth in (labels, turned))
    np.testing.assert_array_equal(before[:, patient], after[:, patient])


def test_each_fold_is_calibrated_by_the_others_of_its_repeat() -> None:
    logits, labels = normal_scores(60, 1.0, 1)
    folds = drawn_folds(labels, 3)
    proba = cross_fit(np.stack([logits, 2 * logits, -logits]), labels, folds, calibrator="platt")
    outside = folds[1] != 2
    by_hand = build_calibrator("platt").fit(2 * logits[outside], labels[outside])
    np.testing.assert_array_equal(proba[1, ~outside], by_hand.predict_proba(2 * logits[~outside]))


def test_a_fold_that_leaves_too_few_patients_is_refused() -> None:
    logits, labels = normal_scores(9, 1.0, 3)
    with pytest.raises(CalibrationError, match="2 patients of class 2 of 2"):
        cross_fit(logits[None], labels, drawn_folds(labels, 1), calibrator="platt")
