from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mil.calibration import (
    BetaCalibration,
    DirichletCalibration,
    TemperatureScaling,
    build_calibrator,
    calibrator_from_dict,
    calibrator_names,
    logits_of,
)
from mil.calibration.priors import shift_prior
from mil.errors import CalibrationError
from mil.evaluation.metrics import weighted_log_loss
from tests.mil.calibration.drawn import confused_logits, honest_logits, normal_scores

MONOTONE = ("auto", "beta", "none", "platt", "temperature")


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(calibrator_names())),
    n=st.integers(15, 60),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 1000),
)
def test_rows_sum_to_one(name: str, n: int, scale: float, seed: int) -> None:
    n_classes = 2 if name in calibrator_names(2) else 3
    logits, labels = honest_logits(n, seed, n_classes=n_classes)
    fitted = build_calibrator(name, n_classes=n_classes).fit(logits * scale, labels)
    proba = fitted.predict_proba(logits * scale)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (proba >= 0).all()


@settings(max_examples=25)
@given(
    name=st.sampled_from(MONOTONE),
    n=st.integers(30, 80),
    distance=st.floats(-3, 3),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 1000),
)
def test_ranks_of_two_classes_are_never_reversed(
    name: str, n: int, distance: float, offset: float, seed: int
) -> None:
    logits, labels = normal_scores(n, distance, seed)
    logits = logits + np.array([0.0, offset])
    proba = build_calibrator(name, n_classes=2).fit(logits, labels).predict_proba(logits)
    order = np.argsort(logits[:, 1] - logits[:, 0])
    assert (np.diff(proba[order, 1]) >= -1e-12).all()


@settings(max_examples=25)
@given(
    name=st.sampled_from(MONOTONE),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
def test_another_prior_is_an_exact_shift_of_the_logit(name: str, share: float, seed: int) -> None:
    logits, labels = normal_scores(60, 1.0, seed)
    proba = build_calibrator(name, n_classes=2).fit(logits, labels).predict_proba(logits)
    even, new = np.array([0.5, 0.5]), np.array([1 - share, share])
    shifted = shift_prior(proba, old=even, new=new)
    moved = np.log(shifted[:, 1] / shifted[:, 0]) - np.log(proba[:, 1] / proba[:, 0])
    np.testing.assert_allclose(moved, np.log(share / (1 - share)), atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0])
def test_a_planted_temperature_is_found(temperature: float) -> None:
    logits, labels = honest_logits(30_000, 0)
    found = TemperatureScaling().fit(logits * temperature, labels)
    assert 1 / found.slope_ == pytest.approx(temperature, rel=0.03)


def test_beta_leaves_what_is_right_as_it_is() -> None:
    logits, labels = honest_logits(60_000, 1)
    found = BetaCalibration().fit(logits, labels)
    np.testing.assert_allclose(found.slopes_, 1, atol=0.05)
    np.testing.assert_allclose(found.bias_, 0, atol=0.03)


def test_beta_bends_where_one_class_is_overconfident_and_the_other_is_not() -> None:
    honest, labels = honest_logits(30_000, 2)
    logs = np.log(softmax(honest, axis=1))
    # Undo a = 2, b = 0.5: find p whose a ln p - b ln(1 - p) is the honest logit.
    grid = np.linspace(-30, 30, 200_001)
    bent = np.interp(
        logs[:, 1] - logs[:, 0],
        -2 * np.logaddexp(0, -grid) + 0.5 * np.logaddexp(0, grid),
        grid,
    )
    logits = np.stack([np.zeros_like(bent), bent], axis=1)
    found = BetaCalibration().fit(logits, labels)
    np.testing.assert_allclose(found.slopes_, [0.5, 2.0], rtol=0.1)
    platt = build_calibrator("platt", n_classes=2).fit(logits, labels)
    assert weighted_log_loss(found.predict_proba(logits), labels) < weighted_log_loss(
        platt.predict_proba(logits), labels
    )


def test_dirichlet_finds_which_class_is_taken_for_which() -> None:
    logits, labels, truth = confused_logits(30_000, 3)
    found = DirichletCalibration().fit(logits, labels)
    np.testing.assert_allclose(found.predict_proba(logits), truth, atol=0.03)
    platt = build_calibrator("platt", n_classes=3).fit(logits, labels)
    assert np.abs(platt.predict_proba(logits) - truth).max() > 0.1


def test_dirichlet_in_a_small_cohort_stays_near_the_diagonal() -> None:
    logits, labels, _ = confused_logits(30, 4)
    matrix = DirichletCalibration().fit(logits, labels).matrix_
    off = matrix[~np.eye(3, dtype=bool)]
    assert (np.diag(matrix) >= 0).all()
    assert np.abs(off).max() < 0.3


def test_auto_takes_the_plainest_that_does() -> None:
    logits, labels = honest_logits(300, 6)
    found = build_calibrator("auto", n_classes=2).fit(4 * logits, labels).as_dict()
    assert found["picked"]["kind"] == "temperature"
    assert set(found["losses"]) == {"temperature", "platt", "beta"}
    shifted = (
        build_calibrator("auto", n_classes=2).fit(logits + np.array([0.0, 3.0]), labels).as_dict()
    )
    assert shifted["picked"]["kind"] == "shrunken_platt"
    assert shifted["losses"]["platt"] < shifted["losses"]["temperature"] - 0.01


def test_auto_takes_the_rich_one_where_it_pays() -> None:
    logits, labels, _ = confused_logits(3000, 6)
    found = build_calibrator("auto", n_classes=3).fit(logits, labels).as_dict()
    assert found["picked"]["kind"] == "dirichlet"


def test_auto_does_not_choose_among_a_handful() -> None:
    logits, labels = honest_logits(18, 7)
    found = build_calibrator("auto", n_classes=2).fit(logits, labels).as_dict()
    assert found["picked"]["kind"] == "shrunken_platt"
    assert found["losses"] == {}


def test_auto_keeps_the_rows_of_a_patient_on_one_side() -> None:
    logits, labels = normal_scores(90, 1.0, 8)
    once = build_calibrator("auto", n_classes=2).fit(logits, labels)
    thrice = build_calibrator("auto", n_classes=2).fit(
        np.tile(logits, (3, 1)), np.tile(labels, 3), groups=np.tile(np.arange(90), 3)
    )
    # A copy of a held-out patient among those fitted on would lower the losses.
    for name, loss in once.as_dict()["losses"].items():
        assert thrice.as_dict()["losses"][name] == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("name", sorted(calibrator_names()))
def test_it_comes_back_from_a_file(name: str) -> None:
    n_classes = 2 if name in calibrator_names(2) else 3
    logits, labels = honest_logits(60, 9, n_classes=n_classes)
    fitted = build_calibrator(name, n_classes=n_classes).fit(logits, labels)
    back = calibrator_from_dict(json.loads(json.dumps(fitted.as_dict())))
    assert type(back) is type(fitted)
    np.testing.assert_array_equal(back.predict_proba(logits), fitted.predict_proba(logits))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "kind None"),
        ({"kind": "isotonic"}, "kind 'isotonic'"),
        ({"kind": "temperature"}, "slope = None"),
        ({"kind": "temperature", "slope": -1.0}, "a slope >= 0"),
        ({"kind": "shrunken_platt", "slope": "x", "bias": [0, 0]}, "slope = 'x'"),
        ({"kind": "shrunken_platt", "slope": -1.0, "bias": [0, 0]}, "a Platt slope"),
        ({"kind": "beta", "slopes": [1.0], "bias": [0.0, 0.0]}, "two slopes"),
        ({"kind": "beta", "slopes": [1.0, float("nan")], "bias": [0.0, 0.0]}, "finite numbers"),
        ({"kind": "dirichlet", "matrix": [[1.0]], "bias": [0.0, 0.0]}, "a matrix"),
        ({"kind": "auto", "picked": 1, "losses": {}}, "what it picked"),
    ],
)
def test_what_cannot_be_a_calibrator_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        calibrator_from_dict(values)


def test_a_calibrator_is_for_its_number_of_classes() -> None:
    with pytest.raises(CalibrationError, match="not for 2 classes; expected auto or beta or none"):
        build_calibrator("dirichlet", n_classes=2)
    with pytest.raises(CalibrationError, match="not for 3 classes"):
        build_calibrator("beta", n_classes=3)
    with pytest.raises(CalibrationError, match="unknown"):
        build_calibrator("isotonic", n_classes=2)


def test_probabilities_that_were_rounded_to_certainty_are_no_infinite_logits() -> None:
    logits = logits_of(np.array([[0.0, 1.0], [0.3, 0.7]]))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(softmax(logits, axis=1), [[1e-7, 1], [0.3, 0.7]], atol=1e-7)
