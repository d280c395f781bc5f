from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from mil.evaluation.classification import score_classification
from mil.evaluation.metrics import prior_weights

CLASSES = ("A", "B", "C")


def cohort(seed: int, counts: tuple[int, ...] = (40, 25, 10)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return rng.dirichlet(np.ones(len(counts)), len(labels)) + 0.3 * np.eye(len(counts))[
        labels
    ], labels


@pytest.mark.parametrize("shares", [None, np.array([0.2, 0.2, 0.6])])
def test_scores_are_those_of_scikit_learn(shares: np.ndarray | None) -> None:
    proba, labels = cohort(0)
    weights = None if shares is None else prior_weights(labels, shares, n_classes=3)
    scores = score_classification(proba, labels, CLASSES, shares=shares, n_resamples=50, seed=0)

    def expected(average: str | None) -> tuple[np.ndarray, ...]:
        return precision_recall_fscore_support(
            labels, proba.argmax(axis=1), average=average, sample_weight=weights
        )[:3]

    for index, name in enumerate(CLASSES):
        actual = [score.value for _, score in scores.classes[name].items()]
        np.testing.assert_allclose(actual, [of[index] for of in expected(None)])
    for average in ("macro", "weighted"):
        actual = [score.value for _, score in scores.averages[average].items()]
        np.testing.assert_allclose(actual, expected(average))
    assert scores.n_patients == {"A": 40, "B": 25, "C": 10}
    assert sum(scores.n_predicted.values()) == len(labels)


def test_intervals_hold_the_score_and_shrink_with_more_patients() -> None:
    widths = []
    for counts in ((12, 12, 12), (300, 300, 300)):
        proba, labels = cohort(1, counts)
        scores = score_classification(proba, labels, CLASSES, n_resamples=200, seed=0)
        f1 = scores.averages["macro"].f1
        assert f1.low < f1.value < f1.high
        widths.append(f1.high - f1.low)
    assert widths[1] < widths[0] / 2


def test_a_class_that_is_never_predicted_scores_zero() -> None:
    labels = np.array([0, 0, 1])
    scores = score_classification(
        np.array([[0.9, 0.1]] * 3), labels, ("A", "B"), n_resamples=20, seed=0
    )
    assert [score.value for _, score in scores.classes["B"].items()] == [0, 0, 0]
    assert scores.n_predicted == {"A": 3, "B": 0}


def test_a_predicted_class_that_no_patient_has_is_a_miss_and_no_false_alarm() -> None:
    labels = np.array([0, 0, 1, 1])
    proba = np.array([[0.2, 0.1, 0.7], [0.6, 0.2, 0.2], [0.1, 0.6, 0.3], [0.4, 0.3, 0.3]])
    scores = score_classification(proba, labels, ("A", "B"), n_resamples=20, seed=0)
    assert scores.classes["A"].recall.value == 0.5
    assert scores.classes["A"].precision.value == 0.5
    assert scores.classes["B"].precision.value == 1


def test_scores_of_repeats_are_means_over_them() -> None:
    (one, labels), (two, _) = cohort(2), cohort(3)
    repeats = np.stack([one, two])
    both = score_classification(repeats, labels, CLASSES, n_resamples=40, seed=0)
    each = [score_classification(p, labels, CLASSES, n_resamples=40, seed=0) for p in repeats]
    assert both.classes["B"].f1.value == pytest.approx(
        np.mean([scores.classes["B"].f1.value for scores in each])
    )


def test_without_resamples_there_are_no_limits() -> None:
    proba, labels = cohort(4)
    scores = score_classification(proba, labels, CLASSES, n_resamples=0, seed=0)
    assert np.isnan(scores.averages["macro"].f1.low)


@pytest.mark.parametrize("oddness", ["ties", "never predicted", "other classes", "rounded"])
@pytest.mark.parametrize("shares", [None, np.array([0.7, 0.1, 0.2])])
def test_scores_of_odd_predictions_are_those_of_scikit_learn(
    oddness: str, shares: np.ndarray | None
) -> None:
    proba, labels = cohort(5, (9, 4, 2))
    if oddness == "ties":
        proba[::2] = [0.5, 0.5, 0]
    elif oddness == "never predicted":
        proba[:, 1] = 0
    elif oddness == "other classes":
        proba = np.column_stack([proba, np.random.default_rng(0).random((15, 2))])
    else:
        proba = np.round(proba, 1)
    weights = None if shares is None else prior_weights(labels, shares, n_classes=3)
    scores = score_classification(proba, labels, CLASSES, shares=shares, n_resamples=20, seed=0)
    for average in (None, "macro", "weighted"):
        expected = precision_recall_fscore_support(
            labels, proba.argmax(axis=1), labels=[0, 1, 2], average=average,
            sample_weight=weights, zero_division=0,
        )[:3]  # fmt: skip
        found = list(scores.classes.values()) if average is None else [scores.averages[average]]
        actual = [[score.value for _, score in one.items()] for one in found]
        np.testing.assert_allclose(np.squeeze(np.transpose(actual)), expected, atol=1e-12)


def scores_by_counting(
    predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray, mixes: np.ndarray
) -> np.ndarray:
    """Precision, recall and F1, by class and as means over classes, shape (3, classes + 2)."""
    scores = np.zeros((3, mixes.shape[1]))
    for index in range(mixes.shape[1]):
        hits, found, there = (
            weights[which].sum()
            for which in ((predicted == index) & (labels == index), predicted == index,
                          labels == index)
        )  # fmt: skip
        scores[:, index] = hits / found if found else 0, hits / there, 2 * hits / (found + there)
    return np.column_stack([scores, scores @ mixes.T])


@pytest.mark.parametrize("seed", range(100))
def test_intervals_are_those_of_patients_drawn_and_counted_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 60, rng.integers(2, 6))
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    n_others, n_repeats, n_resamples = rng.integers(0, 3), rng.integers(1, 4), 60
    proba = rng.dirichlet(np.ones(len(counts) + n_others), (n_repeats, len(labels)))
    proba[..., : len(counts)] += rng.random() * np.eye(len(counts))[labels]
    shares = rng.dirichlet(3 * np.ones(len(counts))) if seed % 2 else None
    given = counts / counts.sum() if shares is None else shares
    weights = (given / counts)[labels]
    mixes = np.stack([np.full(len(counts), 1 / len(counts)), given])
    of_class = [np.flatnonzero(labels == index) for index in range(len(counts))]
    drawn = np.random.default_rng(seed).integers(
        0, np.repeat(counts, counts), size=(n_resamples, len(labels))
    )
    samples = []
    for number, places in enumerate(drawn):
        ends = np.cumsum(counts)
        rows = np.concatenate([
            own[places[end - len(own) : end]] for own, end in zip(of_class, ends, strict=True)
        ])  # fmt: skip
        predicted = proba[number % n_repeats].argmax(axis=1)
        samples.append(scores_by_counting(predicted[rows], labels[rows], weights[rows], mixes))
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    names = [f"class {index}" for index in range(len(counts))]
    scores = score_classification(
        proba, labels, names, shares=shares, n_resamples=n_resamples, seed=seed
    )
    found = [*scores.classes.values(), *scores.averages.values()]
    for column, one in enumerate(found):
        for row, (_, interval) in enumerate(one.items()):
            assert interval.low == pytest.approx(low[row, column], abs=1e-12)
            assert interval.high == pytest.approx(high[row, column], abs=1e-12)
