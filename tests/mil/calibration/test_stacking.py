from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mil.arrays import Floats, Ints
from mil.calibration import StackedPlattScaling, stacking
from mil.calibration.penalized_fit import (
    CalibrationData,
    bias_terms,
    fit_penalized_softmax,
    leave_one_out_logits,
    log_loss,
)
from mil.errors import CalibrationError


def drawn(strengths: list[float], *, n: int = 60, seed: int = 0) -> tuple[Floats, Ints]:
    """Logits of learners, shape (n, learners, 2), that tell two classes apart by so much."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    difference = rng.normal(size=(n, len(strengths)))
    difference += np.outer(2 * labels - 1, strengths)
    return np.stack([-difference / 2, difference / 2], axis=-1), labels


@pytest.mark.parametrize(("n_classes", "n_copies"), [(2, 1), (3, 1), (2, 3)])
def test_the_loss_on_patients_left_out_is_that_of_fits_without_them(
    n_classes: int, n_copies: int
) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(36) % n_classes
    logits = rng.normal(size=(36, n_classes)) + 1.5 * np.eye(n_classes)[labels]
    groups = np.repeat(np.arange(36), n_copies)
    many, truth = logits[groups], labels[groups]
    data = CalibrationData.of(many, truth, groups=groups)
    terms = np.concatenate([data.centred[None], bias_terms(len(many), n_classes)])
    ridge, nonnegative = np.array([0.5, *[2.0] * n_classes]), np.array([0])
    whole = fit_penalized_softmax(terms, data, ridge=ridge, nonnegative=nonnegative)
    left_out = leave_one_out_logits(
        terms, whole, data, ridge=ridge, nonnegative=nonnegative,
        n_rows=np.full(len(many), float(n_copies)),
    )  # fmt: skip
    assert left_out.shape == (len(many), n_classes)
    found = log_loss(left_out, data)
    exact = 0.0
    for patient in range(36):
        own = groups == patient
        without = replace(data, sample_weight=np.where(own, 0.0, data.sample_weight))
        fit = fit_penalized_softmax(terms, without, ridge=ridge, nonnegative=nonnegative)
        logs = np.tensordot(fit, terms, axes=1)[own]
        logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
        exact -= float((data.sample_weight[own, None] * data.targets[own] * logs).sum())
    inside = np.tensordot(whole, terms, axes=1)
    inside -= np.log(np.exp(inside).sum(axis=1, keepdims=True))
    fitted = -float((data.sample_weight[:, None] * data.targets * inside).sum())
    assert exact > fitted + 0.5  # what the patients' own part in the fit is worth
    assert found == pytest.approx(exact, abs=0.1 * (exact - fitted))


def test_the_learner_that_carries_the_signal_has_most_of_the_weight() -> None:
    logits, labels = drawn([0.0, 2.0, 0.0, 0.0])
    fitted = StackedPlattScaling().fit(logits, labels)
    assert fitted.weights_.sum() == pytest.approx(1)
    assert fitted.weights_[1] > 0.8
    assert (fitted.slopes_ >= 0).all()


def test_learners_that_are_as_good_share_the_weight() -> None:
    logits, labels = drawn([0.7, 0.7, 0.7, 0.7], n=40, seed=3)
    fitted = StackedPlattScaling().fit(logits, labels)
    assert 0.1 < fitted.weights_.min() < fitted.weights_.max() < 0.5


def test_a_prior_for_no_signal_protects_where_one_of_many_fits_looks_right_by_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loss() -> float:
        losses = []
        for seed in range(12):
            logits, labels = drawn([0.0] * 8, n=34, seed=seed)
            others, truth = drawn([0.0] * 8, n=400, seed=100 + seed)
            proba = StackedPlattScaling().fit(logits, labels).predict_proba(others)
            losses.append(-np.log(proba[np.arange(400), truth]).mean())
        return float(np.mean(losses))

    with_prior = loss()
    assert with_prior < np.log(2) + 0.002
    monkeypatch.setattr(stacking, "_PRIOR_OF_NONE", 1 / 11)  # all fits alike
    assert with_prior < loss() - 0.0005


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_grow_by_what_left_out_patients_bear_out(
    monkeypatch: pytest.MonkeyPatch, n_classes: int
) -> None:
    rng = np.random.default_rng(4)
    labels, truth = np.arange(36) % n_classes, np.arange(600) % n_classes
    logits, others = (
        rng.normal(size=(len(own), 4, n_classes)) + 4 * np.eye(n_classes)[own][:, None]
        for own in (labels, truth)
    )
    with_factor = StackedPlattScaling().fit(logits, labels)
    monkeypatch.setattr(stacking, "_RIDGE_OF_FACTOR", 1e9)
    without = StackedPlattScaling().fit(logits, labels)
    factors = with_factor.slopes_ / without.slopes_
    assert factors.min() > 1.05
    np.testing.assert_allclose(factors, factors[0], rtol=1e-6)
    np.testing.assert_allclose(with_factor.bias_, factors[0] * without.bias_, atol=1e-6)
    np.testing.assert_allclose(with_factor.weights_, without.weights_, rtol=1e-6)
    losses = [
        -np.log(own.predict_proba(others)[np.arange(600), truth]).mean()
        for own in (with_factor, without)
    ]
    assert losses[0] < losses[1] - 0.005


def test_logits_do_not_grow_where_there_may_be_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    cohorts = [drawn([0.6, 0.3], n=24, seed=seed) for seed in (2, 3, 5, 7)]
    with_factor = [StackedPlattScaling().fit(*own).slopes_ for own in cohorts]
    monkeypatch.setattr(stacking, "_NONE_AT_MOST", 1e9)
    always = [StackedPlattScaling().fit(*own).slopes_ for own in cohorts]
    monkeypatch.setattr(stacking, "_RIDGE_OF_FACTOR", 1e9)
    without = [StackedPlattScaling().fit(*own).slopes_ for own in cohorts]
    np.testing.assert_allclose(with_factor, without, rtol=1e-6)
    assert np.max(np.array(always) / without) > 1.02


def test_sizes_of_logits_do_not_matter_and_repeated_patients_count_once() -> None:
    logits, labels = drawn([0.5, 1.0, 0.0])
    proba = StackedPlattScaling().fit(logits, labels).predict_proba(logits)
    scaled = logits * np.array([10.0, 0.1, 3.0])[:, None]
    np.testing.assert_allclose(
        StackedPlattScaling().fit(scaled, labels).predict_proba(scaled), proba, atol=1e-3
    )
    groups = np.repeat(np.arange(60), 3)
    repeated = StackedPlattScaling().fit(logits[groups], labels[groups], groups=groups)
    np.testing.assert_allclose(repeated.predict_proba(logits), proba, atol=1e-3)


def test_a_learner_that_says_the_same_of_everyone_has_no_weight() -> None:
    logits, labels = drawn([1.0, 0.0])
    logits[:, 1] = [0.3, -0.3]
    fitted = StackedPlattScaling().fit(logits, labels)
    np.testing.assert_array_equal(fitted.weights_, [1, 0])
    alike = StackedPlattScaling().fit(np.zeros((60, 2, 2)), labels)
    np.testing.assert_array_equal(alike.weights_, 0)
    np.testing.assert_allclose(alike.predict_proba(logits), 0.5, atol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_far_beyond_those_of_the_fit_count_little_more_than_they(n_classes: int) -> None:
    rng = np.random.default_rng(6)
    labels = np.arange(60) % n_classes
    logits = rng.normal(size=(60, 3, n_classes)) + 2 * np.eye(n_classes)[labels][:, None]
    fitted = StackedPlattScaling().fit(logits, labels)
    usual = np.tile(4 * np.eye(n_classes)[0], (1, 3, 1))
    far, farther = usual.copy(), usual.copy()
    far[0, 1] *= -30
    farther[0, 1] *= -1000
    np.testing.assert_allclose(fitted.combine(far), fitted.combine(farther), atol=1e-3)
    assert fitted.predict_proba(farther)[0, 0] > 1 / n_classes  # the two others outvote it
    part = fitted.parts(farther)[0, 1]
    most = np.abs(fitted.parts(logits)[:, 1]).max()
    assert most < np.abs(part).max() < 2 * most
    assert part.sum() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused_without_a_warning(value: float) -> None:
    logits, labels = drawn([0.5, 1.0, 0.0])
    logits[3, 1, 0] = value
    with pytest.raises(CalibrationError, match="1 rows with NaN or infinity"):
        StackedPlattScaling().fit(logits, labels)


def test_parts_are_factors_times_centred_logits_and_sum_to_the_combined_logit() -> None:
    logits, labels = drawn([0.5, 1.0, 0.0])
    fitted = StackedPlattScaling().fit(logits, labels)
    centred = logits - logits.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(
        fitted.parts(logits), fitted.factors(logits)[..., None] * centred, rtol=1e-12
    )
    np.testing.assert_allclose(fitted.parts(logits).sum(axis=1), fitted.combine(logits), rtol=1e-12)
    assert (fitted.factors(logits) <= fitted.slopes_).all()
    np.testing.assert_allclose(fitted.factors(1e-12 * logits), np.tile(fitted.slopes_, (60, 1)))


def test_calibrators_of_earlier_runs_have_no_limits() -> None:
    logits, labels = drawn([0.5, 1.0, 0.0])
    values = StackedPlattScaling().fit(logits, labels).as_dict()
    again = StackedPlattScaling.from_dict(values)
    assert again.as_dict() == values
    del values["limits"]
    earlier = StackedPlattScaling.from_dict(values)
    np.testing.assert_allclose(earlier.combine(7 * logits), 7 * earlier.combine(logits))
    assert earlier.as_dict() == values
