from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import softmax

from mil.evaluation.calibration_slope import calibration_slope_and_intercepts
from mil.evaluation.metrics import weighted_log_loss
from tests.benchmarks import calibrators
from tests.benchmarks._calibrators import (
    AutoCalibrator,
    BetaCalibration,
    DirichletCalibration,
    PlainPlattScaling,
)
from tests.benchmarks.calibrators import Distortion
from tests.mil.calibration.drawn import honest_logits, normal_scores

MIXING = np.array([[1.0, 0.6, -0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 1.6]])
"""Corrects :func:`confused_logits`; rows have one sum, as ln p is known up to a constant."""


def confused_logits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of three classes, mixed by a matrix; with labels and true probabilities."""
    honest, labels = honest_logits(n, seed, n_classes=3)
    mixed = np.log(softmax(honest, axis=1)) @ np.linalg.inv(MIXING).T
    return mixed, labels, softmax(honest, axis=1)


def test_calibrators_are_compared_with_raw_and_with_what_nobody_can_beat(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kinds = "none,right,mixed,three classes"
    assert calibrators.main(["--cohorts", "6", "--kinds", kinds]) == 0
    rows = json.loads(capsys.readouterr().out)
    result = {(row["kind"], row["calibrator"]): row for row in rows}
    assert len(result) == 4 * 4
    for kind in ("none", "right", "mixed"):
        raw, platt = result[kind, "none"], result[kind, "platt"]
        assert raw["above_raw"] == {"mean": 0, "standard_error": 0, "highest_twentieth": 0}
        assert platt["above_raw"]["mean"] == pytest.approx(platt["log_loss"] - raw["log_loss"])
        assert platt["above_raw"]["mean"] < 0.005
    assert result["right", "none"]["excess"] == pytest.approx(0)
    assert result["right", "platt"]["excess"] < result["right", "plain platt"]["excess"]
    assert result["mixed", "platt"]["excess"] < result["mixed", "none"]["excess"]
    assert result["none", "none"]["slope"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("kind", calibrators.KINDS)
def test_a_cohort_follows_its_seed_alone(kind: str) -> None:
    one, again, other = (calibrators.draw(kind, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.logits, again.logits)
    assert one.logits.shape[1] == 2 + (kind == "three classes")
    assert one.logits[0, 0] != other.logits[0, 0]
    assert np.bincount(one.labels).min() >= 7


@pytest.mark.parametrize(
    ("words", "named"), [(["--kinds", "dense,odd"], "odd"), (["--calibrators", "x"], "x")]
)
def test_an_unknown_kind_or_calibrator_is_named(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        calibrators.main(words)
    assert f"unknown: {named}" in capsys.readouterr().err


def test_logits_are_the_evidence_stretched_bent_and_moved() -> None:
    drawn = Distortion(strength=2.0, scale=2.0, lean=0.5, bend=3.0)
    labels = np.arange(4000) % 2
    evidence, logits = drawn.patients(labels, np.random.default_rng(0))
    plain, moved = (each[:, 1] - each[:, 0] for each in (evidence, logits))
    np.testing.assert_allclose(moved, np.where(plain > 0, 6 * plain, 2 * plain) + 0.5)
    assert plain[labels == 1].mean() == pytest.approx(2.0, abs=0.2)
    assert plain[labels == 0].mean() == pytest.approx(-2.0, abs=0.2)


def test_the_evidence_of_a_share_of_a_class_is_calibrated() -> None:
    drawn = Distortion(strength=3.0, scale=1.0, lean=0.0, share=0.5)
    labels = np.arange(20_000) % 2
    evidence, _ = drawn.patients(labels, np.random.default_rng(0))
    slope, intercepts = calibration_slope_and_intercepts(softmax(evidence, axis=1), labels)
    assert slope == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(intercepts, 0, atol=0.05)


def test_beta_is_the_identity_on_calibrated_logits() -> None:
    logits, labels = honest_logits(60_000, 1)
    fitted = BetaCalibration().fit(logits, labels)
    np.testing.assert_allclose(fitted.slopes_, 1, atol=0.05)
    np.testing.assert_allclose(fitted.bias_, 0, atol=0.03)


def test_beta_bends_where_one_class_is_overconfident_and_the_other_is_not() -> None:
    honest, labels = honest_logits(30_000, 2)
    logs = np.log(softmax(honest, axis=1))
    # Undo a = 2, b = 0.5: solve a ln p - b ln(1 - p) = honest logit for p.
    grid = np.linspace(-30, 30, 200_001)
    bent = np.interp(
        logs[:, 1] - logs[:, 0],
        -2 * np.logaddexp(0, -grid) + 0.5 * np.logaddexp(0, grid),
        grid,
    )
    logits = np.stack([np.zeros_like(bent), bent], axis=1)
    fitted = BetaCalibration().fit(logits, labels)
    np.testing.assert_allclose(fitted.slopes_, [0.5, 2.0], rtol=0.1)
    platt = PlainPlattScaling().fit(logits, labels)
    assert weighted_log_loss(fitted.predict_proba(logits), labels) < weighted_log_loss(
        platt.predict_proba(logits), labels
    )


def test_dirichlet_corrects_classes_that_are_taken_for_each_other() -> None:
    logits, labels, truth = confused_logits(30_000, 3)
    fitted = DirichletCalibration().fit(logits, labels)
    np.testing.assert_allclose(fitted.predict_proba(logits), truth, atol=0.03)
    platt = PlainPlattScaling().fit(logits, labels)
    assert np.abs(platt.predict_proba(logits) - truth).max() > 0.1


def test_dirichlet_in_a_small_cohort_stays_near_the_diagonal() -> None:
    logits, labels, _ = confused_logits(30, 4)
    matrix = DirichletCalibration().fit(logits, labels).matrix_
    assert (np.diag(matrix) >= 0).all()
    assert np.abs(matrix[~np.eye(3, dtype=bool)]).max() < 0.3


def test_auto_takes_the_plainest_that_is_good_enough() -> None:
    logits, labels = honest_logits(300, 6)
    scaled = AutoCalibrator().fit(4 * logits, labels)
    assert scaled.name_ == "temperature"
    assert set(scaled.losses_) == {"temperature", "plain platt", "beta"}
    shifted = AutoCalibrator().fit(logits + np.array([0.0, 3.0]), labels)
    assert shifted.name_ == "plain platt"
    assert shifted.losses_["plain platt"] < shifted.losses_["temperature"] - 0.01
    logits, labels, _ = confused_logits(3000, 6)
    assert AutoCalibrator().fit(logits, labels).name_ == "dirichlet"


def test_auto_does_not_choose_among_a_handful() -> None:
    fitted = AutoCalibrator().fit(*honest_logits(18, 7))
    assert fitted.name_ == "plain platt"
    assert fitted.losses_ == {}


def test_auto_keeps_the_rows_of_a_patient_on_one_side() -> None:
    logits, labels = normal_scores(90, 1.0, 8)
    once = AutoCalibrator().fit(logits, labels)
    thrice = AutoCalibrator().fit(
        np.tile(logits, (3, 1)), np.tile(labels, 3), groups=np.tile(np.arange(90), 3)
    )
    # A copy of a held-out patient among those fitted on would lower the losses.
    for name, loss in once.losses_.items():
        assert thrice.losses_[name] == pytest.approx(loss, abs=1e-6)
