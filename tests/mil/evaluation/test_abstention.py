"""Risk against coverage, and the point that is chosen on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mil.evaluation.abstention import AbstentionPoint, choose_abstention, risk_coverage


def two_columns(of_second: list[float]) -> np.ndarray:
    second = np.array(of_second)
    return np.stack([1 - second, second], axis=1)


def test_the_curve_counts_errors_among_the_most_certain() -> None:
    proba = two_columns([0.9, 0.2, 0.7, 0.4])
    curve = risk_coverage(proba, np.array([1, 0, 0, 1]))
    np.testing.assert_allclose(curve.threshold, [0.9, 0.8, 0.7, 0.6])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 2])


def test_classes_weigh_the_same_and_equal_confidence_is_kept_together() -> None:
    curve = risk_coverage(two_columns([0.9, 0.1, 0.1, 0.1]), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(curve.threshold, [0.9])
    np.testing.assert_allclose(curve.risk, [(1 / 3 + 1) / 2])
    assert curve.n_kept.tolist() == [4]


def cohort(n_patients: int, *, strength: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n_patients) % 2
    logit = rng.normal(strength * (2 * labels - 1), 1.0) * 2 * strength
    return two_columns(list(1 / (1 + np.exp(-logit)))), labels, np.arange(n_patients) // 2 % 5


def test_the_chosen_point_halves_the_errors_of_new_patients() -> None:
    proba, labels, folds = cohort(400, strength=0.8)
    point = choose_abstention(proba, labels, folds)
    assert point is not None
    new, truth, _ = cohort(4000, strength=0.8, seed=1)
    kept = new.max(axis=1) >= point.threshold
    risk = (new.argmax(axis=1) != truth)[kept].mean()
    assert risk == pytest.approx(point.risk, abs=0.04)
    assert point.risk_at_most is not None
    assert max(risk, point.risk) < point.risk_at_most < point.risk_of_all
    assert kept.mean() == pytest.approx(point.coverage, abs=0.1)
    assert risk < 0.65 * (new.argmax(axis=1) != truth).mean()


@pytest.mark.parametrize("n_patients", [8, 40])
def test_nothing_is_chosen_without_signal_or_patients(n_patients: int) -> None:
    proba, labels, folds = cohort(n_patients, strength=0.0)
    assert choose_abstention(proba, labels, folds) is None


@pytest.mark.parametrize(("n_in_first_fold", "is_chosen"), [(4, False), (10, True)])
def test_a_point_is_measured_on_ten_patients_at_least(
    n_in_first_fold: int, is_chosen: bool
) -> None:
    # All but ten certain patients of the second fold are alike, and half of them wrong. Only they
    # give other folds a threshold, above which the first fold keeps what it has of the certain.
    labels = np.arange(60) % 2
    folds = np.repeat([0, 1, 2], 20)
    certain = np.concatenate([np.arange(n_in_first_fold), np.arange(20, 30)])
    of_second = np.where(np.arange(60) % 4 < 2, 0.6, 0.4)
    of_second[certain] = np.where(labels[certain] == 1, 0.999, 0.001)
    point = choose_abstention(two_columns(list(of_second)), labels, folds)
    assert (point is not None) == is_chosen
    if point is not None:
        assert point.risk == 0
        assert point.risk_at_most == pytest.approx(1 - 0.01 ** (1 / 20), abs=0.003)
        assert point.coverage == pytest.approx((n_in_first_fold + 10) / 60)


def test_a_fold_has_no_part_in_the_threshold_it_is_measured_with() -> None:
    proba, labels, folds = cohort(200, strength=0.8)
    point = choose_abstention(proba, labels, folds)
    assert point is not None
    spoilt = proba.copy()
    spoilt[folds == 0] = spoilt[folds == 0][:, ::-1]  # certain and wrong
    other = choose_abstention(spoilt, labels, folds)
    assert other is None or other.risk > point.risk


def test_patients_that_share_a_slide_are_as_in_one_fold() -> None:
    proba, labels, folds = cohort(200, strength=0.8)
    groups = np.where(folds < 2, 0, np.arange(200))  # the patients of two folds share slides
    point = choose_abstention(proba, labels, folds, groups=groups)
    assert point == choose_abstention(proba, labels, np.where(folds < 2, 0, folds))
    assert point != choose_abstention(proba, labels, folds)


def test_a_point_is_stored_as_plain_values() -> None:
    before = AbstentionPoint(threshold=0.7, coverage=0.5, risk=0.1, risk_of_all=0.3)
    point = replace(before, risk_at_most=0.2, confidence=0.99)
    for each in (before, point):
        assert AbstentionPoint.from_dict(each.as_dict()) == each
    assert "risk_at_most" not in before.as_dict()
    earlier = {name: value for name, value in point.as_dict().items() if name != "confidence"}
    assert AbstentionPoint.from_dict(earlier) == replace(point, confidence=0.95)
    limits = {"risk_low": 0.0, "risk_high": 0.1}  # bootstrap limits of earlier versions
    assert AbstentionPoint.from_dict({**before.as_dict(), **limits}) == before
    with pytest.raises(ValueError, match="abstention"):
        AbstentionPoint.from_dict({**point.as_dict(), "risk": float("nan")})
