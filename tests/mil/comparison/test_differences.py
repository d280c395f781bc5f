from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, wilcoxon

from mil.comparison.agreement import compare_patients, shared_errors
from mil.comparison.differences import METRICS, compare_models, holm, two_sided_p_value
from mil.comparison.models import AlignedModels, ModelPredictions, same_folds
from mil.evaluation.bootstrap import resampled_scores
from mil.evaluation.metrics import balanced_brier_score, brier_score, prior_weights


def models_of(labels: np.ndarray, *logits: np.ndarray) -> AlignedModels:
    """Models named a, b, … of two classes; logits of the second have shape (repeats, patients)."""
    proba = [1 / (1 + np.exp(-own)) for own in logits]
    return AlignedModels(
        classes=("CE", "LAA"),
        patient_ids=tuple(f"p{row}" for row in range(len(labels))),
        centres=("",) * len(labels),
        labels=labels,
        models=tuple(
            ModelPredictions(name="abcdef"[index], proba=np.stack([1 - p, p], axis=2))
            for index, p in enumerate(proba)
        ),
        n_left_out=(0,) * len(proba),
        notes=(),
    )


def draw(rng: np.random.Generator, n: int, *signals: float, n_repeats: int = 1) -> AlignedModels:
    """Models of equal noise and some signal each, for n patients with something in common."""
    labels = np.arange(n) % 2
    common = rng.normal(size=n)
    return models_of(
        labels,
        *(s * (2 * labels - 1) + 0.7 * common + 0.7 * rng.normal(size=(n_repeats, n))
          for s in signals),
    )  # fmt: skip


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    p_values = np.array(p)
    adjusted = holm(p_values)
    assert (adjusted >= p_values - 1e-12).all()
    assert (adjusted <= np.minimum(1, p_values * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p_values, kind="stable")]) >= -1e-12).all()
    # Rejecting less than the false discovery rate does is what a familywise error costs.
    assert (adjusted >= false_discovery_control(p_values) - 1e-12).all()


def test_a_better_model_is_shown_as_better_from_both_sides_and_by_every_metric() -> None:
    compared = compare_models(draw(np.random.default_rng(0), 200, 2.0, 0.2), n_resamples=1000)
    for metric in METRICS:
        difference, verdict = compared.find("a", "b", metric)
        turned, other = compared.find("b", "a", metric)
        assert (verdict, other) == ("better", "worse")
        assert 0 < difference.low < difference.value < difference.high
        assert (turned.low, turned.value) == (-difference.high, -difference.value)


def test_a_model_against_a_copy_of_itself_shows_no_difference() -> None:
    models = draw(np.random.default_rng(0), 40, 1.0)
    twice = models_of(models.labels, *[np.log(m.proba[..., 1] / m.proba[..., 0])
                                       for m in (*models.models, *models.models)])  # fmt: skip
    for one in compare_models(twice, n_resamples=200).differences:
        assert (one.difference.value, one.p_value, one.verdict) == (0, 1, "no difference shown")


def test_repeats_widen_the_interval_by_the_variance_of_training() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(120) % 2
    steady = rng.normal(size=(1, 120)) + labels
    shaken = steady + np.array([-1.5, 0.0, 1.5])[:, None] * (2 * labels - 1)
    widths = []
    for repeats in (shaken[1:2], shaken):
        (one, *_) = compare_models(models_of(labels, repeats, steady), n_resamples=900).differences
        widths.append(one.difference.high - one.difference.low)
    assert widths[1] > 2 * widths[0] + 0.1


def test_p_values_of_the_bootstrap_agree_with_a_test_of_another_kind() -> None:
    rng = np.random.default_rng(3)
    differences = rng.normal(0.2, 1, size=100)
    means = differences[rng.integers(0, 100, size=(5000, 100))].mean(axis=1)
    assert two_sided_p_value(means) == pytest.approx(wilcoxon(differences).pvalue, abs=0.05)


def test_resampled_brier_scores_are_those_of_the_patients_one_by_one() -> None:
    models = draw(np.random.default_rng(4), 30, 1.0)
    proba = models.models[0].proba

    def one_by_one(p: np.ndarray, y: np.ndarray) -> float:
        return brier_score(p, y, weights=prior_weights(y, None, n_classes=2))

    options = {"n_resamples": 20, "seed": 5}
    fast = resampled_scores(balanced_brier_score, proba, models.labels, **options)
    assert np.allclose(fast, resampled_scores(one_by_one, proba, models.labels, **options))


def test_agreement_counts_every_patient_once_and_lists_those_all_get_wrong() -> None:
    labels = np.array([0, 0, 1, 1])
    logits = [np.array([own], float) for own in ([-1, -1, 1, -2], [-1, 1, -1, -1])]
    models = models_of(labels, *logits)
    (pair,) = compare_patients(models)
    assert (pair.both_right, pair.only_first_wrong, pair.only_second_wrong, pair.both_wrong) == (
        1, 0, 2, 1,
    )  # fmt: skip
    assert [models.patient_ids[row] for row in shared_errors(models)] == ["p3"]


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ([[0, 0, 1, 1]], [[1, 1, 0, 0]], True),
        ([[0, 0, 1, 1]], [[0, 1, 0, 1]], False),
        ([[0, 0, 1, 1]], [[0, 0, 1, 2]], False),
        ([[0, 0, 1, 1], [0, 1, 0, 1]], [[0, 0, 1, 1]], True),
        ([[0, 0, 1, 1], [0, 1, 0, 1]], [[0, 0, 1, 1], [0, 1, 1, 0]], False),
    ],
)
def test_folds_are_compared_as_partitions(first: list, other: list, same: bool) -> None:
    assert same_folds(np.array(first), np.array(other)) == same


@pytest.mark.slow
def test_equal_models_are_called_different_no_more_often_than_the_level() -> None:
    rng = np.random.default_rng(7)
    n = 200
    wrong = sum(
        any(
            one.verdict != "no difference shown"
            for one in compare_models(draw(rng, 60, 0.7, 0.7, 0.7), n_resamples=2000).differences
        )
        for _ in range(n)
    )
    assert wrong <= 0.05 * n + 2 * np.sqrt(0.05 * 0.95 * n), wrong
