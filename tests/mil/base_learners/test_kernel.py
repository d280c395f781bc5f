from __future__ import annotations

import numpy as np
import pytest

from mil.base_learners.kernel import PatientKernel


def test_similarity_falls_with_the_sum_of_absolute_differences() -> None:
    rng = np.random.default_rng(0)
    pooled = rng.normal(3, 2, size=(9, 4))
    kernel, similarities = PatientKernel.fit(pooled)
    standard = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    distances = np.abs(standard[:, None] - standard).sum(axis=-1)
    width = np.median(distances[np.triu_indices(9, 1)])
    np.testing.assert_allclose(kernel.features(pooled), np.exp(-distances / width), rtol=5e-3)
    np.testing.assert_allclose(similarities, kernel.features(pooled), rtol=1e-6)
    assert kernel.features(pooled[0]).shape == (9,)
    assert kernel.features(pooled.reshape(3, 3, 4)).shape == (3, 3, 9)


def test_features_that_do_not_vary_count_for_nobody() -> None:
    pooled = np.random.default_rng(0).normal(size=(8, 3))
    pooled[:, 1] = 5
    new = pooled[:2] + np.array([0, 1e6, 0])
    kernel, _ = PatientKernel.fit(pooled)
    np.testing.assert_array_equal(kernel.features(new), kernel.features(pooled[:2]))


def test_a_patient_far_off_is_like_nobody_and_one_value_is_not_decisive() -> None:
    pooled = np.random.default_rng(0).normal(size=(20, 50))
    kernel, _ = PatientKernel.fit(pooled)
    assert kernel.features(np.full(50, 1e30)).max() < 2e-3
    odd = pooled[0].copy()
    odd[7] = 1e30
    assert kernel.features(odd).argmax() == 0
    assert kernel.features(odd)[0] > 0.8


@pytest.mark.parametrize("pooled", [np.ones((5, 3)), np.ones((1, 3)), np.zeros((2, 1))])
def test_equal_patients_are_alike(pooled: np.ndarray) -> None:
    np.testing.assert_array_equal(PatientKernel.fit(pooled)[1], 1)


def test_many_patients_have_anchors_evenly_spaced() -> None:
    pooled = np.arange(1000.0)[:, None] * np.ones(3)
    kernel, _ = PatientKernel.fit(pooled)
    assert kernel.anchors.shape == (256, 3)
    assert (kernel.anchors[0] < kernel.anchors[128]).all()
    assert kernel.features(pooled[-1:])[0, -1] == pytest.approx(1, abs=1e-2)
