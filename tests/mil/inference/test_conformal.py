"""Arithmetic of prediction sets; :mod:`tests.mil.inference.test_prediction_sets` trains for
them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from mil.errors import CalibrationError
from mil.inference.conformal import CrossConformal, cross_fitted_sets, min_calibration_size


def drawn(
    n: int, n_classes: int, n_folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_classes)), np.arange(n) % n_classes, np.arange(n) % n_folds


@given(
    n=st.integers(6, 60), n_classes=st.integers(2, 4), n_folds=st.integers(1, 5),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_a_p_value_counts_patients_of_the_class_that_with_a_score_at_least_as_high(
    n: int, n_classes: int, n_folds: int, seed: int
) -> None:
    logits, labels, folds = drawn(n, n_classes, n_folds, seed)
    new = np.random.default_rng(seed + 1).normal(size=(folds.max() + 1, 3, n_classes))
    p_values = CrossConformal.fit(logits, labels, folds).p_values(new)
    own = -log_softmax(logits, axis=1)[np.arange(n), labels]
    new_scores = -log_softmax(new, axis=2)
    for patient in range(3):
        for index in range(n_classes):
            of = np.flatnonzero(labels == index)
            n_at_least = sum(own[i] >= new_scores[folds[i], patient, index] for i in of)
            assert p_values[patient, index] == pytest.approx((1 + n_at_least) / (len(of) + 1))


def test_a_tie_never_rules_a_class_out() -> None:
    logits, labels, folds = np.zeros((40, 2)), np.arange(40) % 2, np.arange(40) % 4
    sets = CrossConformal.fit(logits, labels, folds).sets(np.zeros((4, 1, 2)), coverage=0.9)
    assert sets.all()


def test_sets_grow_with_the_coverage_and_do_not_depend_on_the_slope_of_the_logits() -> None:
    logits, labels, folds = drawn(90, 2, 3, 0)
    new = np.random.default_rng(1).normal(size=(3, 50, 2))
    conformal = CrossConformal.fit(logits, labels, folds)
    small, large = (conformal.sets(new, coverage=coverage) for coverage in (0.6, 0.9))
    assert (large >= small).all()
    assert large.sum() > small.sum()
    stretched = CrossConformal.fit(3 * logits + [0, 1], labels, folds)
    np.testing.assert_array_equal(stretched.sets(3 * new + [0, 1], coverage=0.6), small)


@pytest.mark.parametrize(("coverage", "least"), [(0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_a_class_with_too_few_patients_leaves_every_set_full(coverage: float, least: int) -> None:
    assert min_calibration_size(coverage) == least
    new = np.array([[[9.0, -9.0], [-9.0, 9.0]]])
    for n_of_second, full in ((least - 1, True), (least, False)):
        labels = np.repeat([0, 1], [200, n_of_second])
        logits = np.where(labels[:, None] == [0, 1], 2.0, 0.0)
        conformal = CrossConformal.fit(logits, labels, np.zeros(len(labels), np.int64))
        assert conformal.undersized(coverage).tolist() == [False, full]
        assert conformal.sets(new, coverage=coverage).all() == full
        assert (conformal.guaranteed_coverage(coverage) == 1).all() == full
        assert (conformal.coverage_of_most_cohorts(coverage) == 1).all() == full


def test_the_guarantee_is_that_of_twice_a_mean_of_p_values() -> None:
    labels = np.repeat([0, 1], [463, 169])
    folds = np.arange(632) % 5
    conformal = CrossConformal.fit(np.zeros((632, 2)), labels, folds)
    # (46 + 4) / 468 and (17 + 4) / 174, doubled.
    np.testing.assert_allclose(conformal.guaranteed_coverage(0.9), [1 - 100 / 468, 1 - 42 / 174])
    one_fold = CrossConformal.fit(np.zeros((632, 2)), labels, np.zeros(632, np.int64))
    assert (one_fold.guaranteed_coverage(0.9) > conformal.guaranteed_coverage(0.9)).all()


@pytest.mark.parametrize(
    ("n", "missed"),
    [
        (10, 2 / 12),  # none of the 10 may score higher: 0 twice, and folds of 2
        (20, 6 / 24),  # 1 of the 20 may: 1 twice, and folds of 4
        (40, 14 / 48),
        (80, 2 * 12 / 85),  # twice the mean is better from here on
        (21, 6 / 20),  # four folds of 4, with which a fifth can be exchanged, but not that of 5
    ],
)
def test_few_patients_are_guaranteed_what_can_be_exchanged(n: int, missed: float) -> None:
    labels = np.repeat([0, 1], [n, 40])
    folds = np.concatenate([np.arange(n) % 5, np.arange(40) % 5])
    conformal = CrossConformal.fit(np.zeros((n + 40, 2)), labels, folds)
    assert conformal.guaranteed_coverage(0.9)[0] == pytest.approx(1 - missed)


@pytest.mark.parametrize("model", ["mean", "nearest", "memory"])
@pytest.mark.parametrize(("n", "n_folds", "coverage"), [(10, 5, 0.9), (20, 5, 0.9), (12, 3, 0.7)])
def test_the_guarantee_holds_for_models_that_change_with_every_fold(
    model: str, n: int, n_folds: int, coverage: float
) -> None:
    rng = np.random.default_rng(n)
    folds = np.arange(n) % n_folds

    def scores(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        distance = np.abs(test[:, None] - train[None])
        if model == "mean":
            return np.abs(test - train.mean())
        if model == "nearest":
            return distance.min(axis=1)
        return np.mod(1e3 * test * train.sum(), 1.0)  # another random order for each fold

    def logits(score: np.ndarray) -> np.ndarray:
        score = score + 1e-3
        return np.stack([np.zeros_like(score), np.log(np.expm1(score))], axis=-1)

    n_cohorts, missed = 120, 0
    for _ in range(n_cohorts):
        values, new = rng.standard_normal(n), rng.standard_normal(20)
        own = np.empty(n)
        for k in range(n_folds):
            own[folds == k] = scores(values[folds != k], values[folds == k])
        conformal = CrossConformal.fit(logits(own), np.zeros(n, np.int64), folds)
        of_new = [logits(scores(values[folds != k], new)) for k in range(n_folds)]
        missed += (conformal.p_values(np.stack(of_new))[:, 0] <= 1 - coverage + 1e-9).sum()
    lengths = tuple((of[0], of[0]) for of in conformal.scores)  # as if of two such classes
    bound = CrossConformal(scores=lengths).guaranteed_coverage(coverage)[0]
    assert 1 - missed / (20 * n_cohorts) > bound - 0.02


@pytest.mark.parametrize("n", [9, 20, 60])
def test_nine_in_ten_cohorts_reach_the_planned_coverage_of_a_fixed_model(n: int) -> None:
    rng = np.random.default_rng(n)
    conformal = CrossConformal(scores=((np.arange(float(n)), np.arange(float(n))),))
    planned = conformal.coverage_of_most_cohorts(0.9)[0]
    # A class is ruled out above the k-th highest of n uniform scores.
    k = int(round(0.1 * (n + 1), 9))
    reached = np.sort(rng.uniform(size=(20_000, n)), axis=1)[:, n - k]
    assert (reached >= planned).mean() == pytest.approx(0.9, abs=0.01)
    assert planned < 0.9


def test_the_guarantee_holds_where_folds_disagree_most() -> None:
    # Each fold's p-value is uniform; they depend on each other as badly as can be: the mean of two
    # is either about 1/4 or about 3/4.
    rng = np.random.default_rng(0)
    n_fold, n_new = 400, 4000
    grid = (np.arange(n_fold) + 0.5) / n_fold
    scores = -np.log(grid)  # of logits (0, log(1 / p - 1)), whose probability of the first is p
    conformal = CrossConformal(scores=((np.sort(scores), np.zeros(n_fold)),) * 2)
    first = rng.uniform(size=n_new)
    second = np.where(first < 0.5, 0.5 - first, 1.5 - first)
    shares = np.stack([first, second])
    new = np.stack([np.zeros_like(shares), np.log(1 / shares - 1)], axis=-1)
    for coverage in (0.6, 0.75, 0.9):
        missed = 1 - conformal.sets(new, coverage=coverage)[:, 0].mean()
        assert missed <= 1 - conformal.guaranteed_coverage(coverage)[0] + 0.02
    # And it is not idle: such folds really miss twice the level.
    assert 1 - conformal.sets(new, coverage=0.74)[:, 0].mean() > 0.45


def test_plain_values_come_back() -> None:
    conformal = CrossConformal.fit(*drawn(30, 3, 4, 2))
    described = conformal.as_dict("abc")
    again = CrossConformal.from_dict(described, "abc")
    assert again.as_dict("abc") == described
    new = np.random.default_rng(3).normal(size=(4, 5, 3))
    np.testing.assert_array_equal(again.p_values(new), conformal.p_values(new))
    for damage in ({"a": [], "b": [], "c": []}, {"a": [[1.0]]}, {**described, "c": [[1.0]]},
                   {"a": [[1.0]], "b": [[1.0]], "c": [[float("nan")]]}):  # fmt: skip
        with pytest.raises(CalibrationError, match="prediction sets"):
            CrossConformal.from_dict(damage, "abc")


@given(patient=st.integers(0, 59), seed=st.integers(0, 999))
def test_a_patients_own_label_never_reaches_its_set(patient: int, seed: int) -> None:
    logits, labels, folds = drawn(60, 2, 4, seed)
    proba = np.exp(log_softmax(logits, axis=1))
    turned = labels.copy()
    turned[patient] = 1 - turned[patient]
    before, after = (
        cross_fitted_sets(proba, truth, folds, coverage=0.8) for truth in (labels, turned)
    )
    np.testing.assert_array_equal(before[patient], after[patient])
