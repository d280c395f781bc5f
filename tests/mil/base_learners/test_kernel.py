from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from mil.base_learners.kernel import RANKS, VALUES, PatientKernels
from mil.base_learners.logistic import LinearModel


def fit(
    pooled: np.ndarray, labels: np.ndarray | None = None, *, n_classes: int = 2
) -> tuple[PatientKernels, dict[str, LinearModel]]:
    labels = np.arange(len(pooled)) % 2 if labels is None else labels
    return PatientKernels.fit(pooled, labels, n_classes=n_classes, balanced=True)


def test_similarities_are_gaussians_of_values_and_of_ranks() -> None:
    rng = np.random.default_rng(0)
    pooled = rng.normal(3, 2, size=(9, 4))
    pooled[3, 1] = pooled[5, 1]  # ties have the mean of their ranks
    kernels, _ = fit(pooled)
    similar = kernels.features(pooled)
    standard = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    ranks = (rankdata(pooled, axis=0) - 0.5) / 9
    for name, values, share in ((VALUES, standard, 0.25), (RANKS, ranks, 0.5)):
        distances = ((values[:, None] - values) ** 2).sum(axis=-1)
        width = share * np.median(distances[np.triu_indices(9, 1)])
        np.testing.assert_allclose(similar[name], np.exp(-distances / width), rtol=1e-2)
        one = kernels.features(pooled[0])[name]
        assert one.shape == (9,)
        np.testing.assert_allclose(one, similar[name][0], atol=1e-12)
        assert kernels.features(pooled.reshape(3, 3, 4))[name].shape == (3, 3, 9)


@pytest.mark.parametrize("n_features", [3, 400, 3840])
def test_patients_that_are_mostly_alike_leave_the_width_at_1(n_features: int) -> None:
    pooled = np.random.default_rng(0).normal(size=(60, n_features)).astype(np.float32)
    pooled[10:] = pooled[10]
    kernels, _ = fit(pooled)
    assert kernels.widths == {VALUES: 1.0, RANKS: 1.0}
    assert kernels.features(pooled)[VALUES][10:, 10:].min() > 0.99
    pooled[10:] += 0.1 * np.random.default_rng(1).normal(size=(50, n_features))
    similar, _ = fit(pooled)
    assert 0 < similar.widths[VALUES] != 1  # patients that are only similar are compared


def test_a_new_value_ranks_between_those_of_training_patients() -> None:
    pooled = np.array([[1.0], [2.0], [4.0], [8.0]])
    kernels, _ = fit(pooled)
    new = np.array([[0.5], [3.0], [4.0], [9.0]])
    ranks = np.array([0, 2, 2.5, 4]) / 4
    own = (np.arange(4) + 0.5) / 4
    expected = np.exp(-((ranks[:, None] - own) ** 2) / kernels.widths[RANKS])
    np.testing.assert_allclose(kernels.features(new)[RANKS], expected)


@pytest.mark.parametrize("n_new", [60, 33_000])
def test_many_patients_rank_as_each_by_itself(n_new: int) -> None:
    rng = np.random.default_rng(0)
    pooled = np.round(rng.normal(size=(30, 40)), 1)  # many ties
    pooled[:, :9] -= pooled[:, :9].mean(axis=0)
    kernels, _ = fit(pooled)
    few = np.concatenate([pooled, rng.normal(size=(20, 40)), np.full((1, 40), -1e-30)])
    many = np.resize(few, (n_new, 40))
    alone = np.concatenate([kernels.features(one[None])[RANKS] for one in few])
    np.testing.assert_array_equal(kernels.features(many)[RANKS], np.resize(alone, (n_new, 30)))


def test_features_that_do_not_vary_count_for_nobody() -> None:
    pooled = np.random.default_rng(0).normal(size=(8, 3))
    pooled[:, 1] = 5
    new = pooled[:2] + np.array([0, 1e6, 0])
    kernels, _ = fit(pooled)
    for name, similar in kernels.features(new).items():
        np.testing.assert_array_equal(similar, kernels.features(pooled[:2])[name])


def test_a_patient_far_off_is_like_nobody_and_one_value_is_not_decisive() -> None:
    pooled = np.random.default_rng(0).normal(size=(20, 50))
    kernels, _ = fit(pooled)
    assert kernels.features(np.full(50, 1e30))[VALUES].max() < 1e-9
    odd = pooled[0].copy()
    odd[7] = 1e30
    similar = kernels.features(odd)
    assert {own.argmax() for own in similar.values()} == {0}
    assert similar[RANKS][0] > 0.8


@pytest.mark.parametrize("pooled", [np.ones((5, 3)), np.ones((2, 3)), np.zeros((2, 1))])
def test_equal_patients_are_alike_and_teach_nothing(pooled: np.ndarray) -> None:
    kernels, models = fit(pooled)
    for name, similar in kernels.features(pooled).items():
        np.testing.assert_array_equal(similar, 1)
        assert models[name].is_constant
        np.testing.assert_allclose(models[name].logits(similar), 0, atol=1e-9)


def test_many_patients_have_anchors_evenly_spaced() -> None:
    pooled = np.arange(1000.0)[:, None] * np.ones(3)
    kernels, _ = fit(pooled)
    assert kernels.anchors.shape == (256, 3)
    assert (kernels.anchors[0] < kernels.anchors[128]).all()
    assert kernels.features(pooled[-1:])[VALUES][0, -1] == pytest.approx(1, abs=1e-2)


def test_what_is_penalised_is_the_norm_in_the_space_of_the_kernel() -> None:
    rng = np.random.default_rng(0)
    pooled, labels = rng.normal(size=(40, 6)), np.arange(40) % 2
    pooled[:, 0] += labels
    kernels, models = fit(pooled, labels)
    for name, similar in kernels.features(pooled).items():
        # Of a minimum of C · loss + ½ ‖f‖², whose scale makes the mean squared norm of patients 16.
        centred = similar - similar.mean(axis=0)
        gram = centred @ np.linalg.solve(similar, centred.T)
        gram *= 16 / np.trace(gram) * len(gram)
        logits = models[name].logits(similar)
        odds = logits[:, 1] - logits[:, 0]
        residuals = labels - 1 / (1 + np.exp(-odds))
        expected = 7 * gram @ residuals
        np.testing.assert_allclose(odds - odds.mean(), expected - expected.mean(), atol=2e-2)


def test_more_patients_than_anchors_are_learned_from() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    pooled = rng.normal(size=(300, 4)) + 3 * np.eye(3, 4)[labels]
    kernels, models = fit(pooled, labels, n_classes=3)
    for name, similar in kernels.features(pooled).items():
        assert models[name].weights.shape == (256, 3)
        predicted = models[name].logits(similar).argmax(axis=1)
        assert (predicted == labels).mean() > 0.9
