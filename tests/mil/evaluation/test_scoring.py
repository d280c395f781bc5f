from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mil.calibration.priors import shift_prior
from mil.data.cohort import Cohort, Patient, read_cohort
from mil.errors import CalibrationError
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import expected_calibration_error, weighted_log_loss
from mil.evaluation.predictions import average_predictions, read_predictions
from mil.evaluation.scoring import (
    ScoreSettings,
    baseline_losses,
    calibrate_predictions,
    describe_reliability,
    score_model,
    score_predictions,
)
from tests.fakes import real_data

HALF = np.array([0.5, 0.5])


def cohort_of(counts: dict[str, int]) -> Cohort:
    labels = [name for name, count in counts.items() for _ in range(count)]
    patients = tuple(
        Patient(patient_id=f"p{n}", slide_ids=(f"s{n}",), label=label, center_id=None)
        for n, label in enumerate(labels)
    )
    return Cohort(path=Path("train.csv"), patients=patients, classes=tuple(sorted(counts)))


def overconfident(cohort: Cohort, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n_classes = len(cohort.classes)
    logits = rng.normal(size=(len(cohort.patients), n_classes)) + np.eye(n_classes)[cohort.labels]
    raised = np.exp(4 * logits)
    return raised / raised.sum(axis=1, keepdims=True)


def settings_of(**changes: object) -> ScoreSettings:
    plain: dict[str, object] = {
        "file_prior": HALF, "prior": HALF, "calibrator": "platt", "n_folds": 4, "n_repeats": 3,
        "reliability": True, "n_resamples": 100, "seed": 0,
    }  # fmt: skip
    return ScoreSettings(**{**plain, **changes})  # type: ignore[arg-type]


def test_the_metric_is_at_the_balanced_prior_whatever_the_file_is_for() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0] * 70 + [1] * 30)
    even = rng.dirichlet([2, 2], 100)
    shares, half = np.array([0.7, 0.3]), np.array([0.5, 0.5])
    cohort = shift_prior(even, old=half, new=shares)
    one, other = (
        score_predictions(p, labels, settings_of(file_prior=of, prior=shares))
        for p, of in ((even, half), (cohort, shares))
    )
    for name, score in one.items():
        assert other[name].value == pytest.approx(score.value)
    assert one["weighted_log_loss"].value == pytest.approx(weighted_log_loss(even, labels))


def test_baselines_are_what_arithmetic_gives() -> None:
    losses = baseline_losses(cohort_of({"CE": 2, "LAA": 1}))
    assert losses["constant"] == pytest.approx(np.log(2))
    assert losses["cohort_prior"] == pytest.approx(-(np.log(2 / 3) + np.log(1 / 3)) / 2)


def test_calibrated_scores_accompany_raw_ones() -> None:
    cohort = cohort_of({"CE": 80, "LAA": 40})
    report = score_model(overconfident(cohort, 1), cohort, settings_of())
    raw, calibrated = report.scores["raw"], report.scores["calibrated"]
    assert calibrated["weighted_log_loss"].high < raw["weighted_log_loss"].value
    assert raw["calibration_slope"].value < 0.5
    assert 0.7 < calibrated["calibration_slope"].value < 1.4
    assert abs(calibrated["calibration_intercept"].value) < 0.3
    for name in calibrated.keys() - {"calibration_error"}:
        score = calibrated[name]
        assert score.low <= score.value <= score.high
    plain = report.as_dict()
    assert set(plain) == {"raw", "calibrated", "calibrators", "reliability"}
    assert plain["calibrators"] == {"shrunken_platt": 12}


def test_the_score_is_the_mean_over_the_repeats() -> None:
    cohort = cohort_of({"CE": 40, "LAA": 20})
    proba = overconfident(cohort, 2)
    calibrated = calibrate_predictions(proba, cohort.labels, settings_of())
    assert calibrated.shape == (3, 60, 2)
    losses = [weighted_log_loss(one, cohort.labels) for one in calibrated]
    assert np.ptp(losses) > 0
    report = score_model(proba, cohort, settings_of())
    assert report.scores["calibrated"]["weighted_log_loss"].value == pytest.approx(np.mean(losses))


def test_calibration_does_not_care_which_prior_the_file_is_for() -> None:
    cohort = cohort_of({"CE": 60, "LAA": 30})
    shares = np.array([2 / 3, 1 / 3])
    proba = overconfident(cohort, 3)
    shifted = shift_prior(proba, old=HALF, new=shares)
    one, other = (
        score_model(p, cohort, settings_of(calibrator="temperature", file_prior=of, prior=shares))
        for p, of in ((proba, HALF), (shifted, shares))
    )
    for name, score in one.scores["calibrated"].items():
        assert other.scores["calibrated"][name].value == pytest.approx(score.value, abs=1e-6)


def test_three_classes_are_calibrated_and_described_each() -> None:
    cohort = cohort_of({"a": 40, "b": 40, "c": 40})
    even = np.full(3, 1 / 3)
    settings = settings_of(file_prior=even, prior=even)
    report = score_model(overconfident(cohort, 4), cohort, settings)
    assert set(report.reliability["calibrated"]["classes"]) == {"a", "b", "c"}
    raw, calibrated = (report.scores[kind]["weighted_log_loss"] for kind in ("raw", "calibrated"))
    assert calibrated.value < raw.value
    assert report.scores["raw"]["calibration_intercept"].value >= 0


def test_of_two_classes_the_second_is_described() -> None:
    cohort = cohort_of({"CE": 30, "LAA": 30})
    described = describe_reliability(overconfident(cohort, 5), cohort, settings_of())
    assert list(described["classes"]) == ["LAA"]
    assert sum(row["n_patients"] for row in described["classes"]["LAA"]["bins"]) == 60
    error = described["calibration_error"]
    assert error["value"] > error["if_perfect_high"] > error["if_perfect"] > 0


def test_the_calibration_error_has_no_interval_as_resampling_raises_it() -> None:
    labels = np.array([0, 0, 0, 1] * 5 + [1, 1, 1, 0] * 5)
    second = np.repeat([0.25, 0.75], 20)
    proba = np.stack([1 - second, second], axis=1)
    resampled = stratified_bootstrap(
        {"error": expected_calibration_error}, proba, labels, n_resamples=200, seed=0
    )["error"]
    assert resampled.low > resampled.value
    scores = score_predictions(proba, labels, settings_of())
    assert scores["calibration_error"].value == pytest.approx(resampled.value)
    assert np.isnan(scores["calibration_error"].low)
    assert all(np.isfinite(scores[name].low) for name in ("brier_score", "accuracy"))


def test_nothing_is_calibrated_or_described_unasked() -> None:
    cohort = cohort_of({"CE": 10, "LAA": 10})
    report = score_model(
        overconfident(cohort, 6), cohort, settings_of(calibrator=None, reliability=False)
    )
    assert set(report.as_dict()) == {"raw"}


def test_too_few_patients_of_a_class_are_refused() -> None:
    cohort = cohort_of({"CE": 30, "LAA": 3})
    with pytest.raises(CalibrationError, match="2 patients of class 2 of 2"):
        score_model(overconfident(cohort, 7), cohort, settings_of())


def test_more_folds_than_patients_are_refused() -> None:
    cohort = cohort_of({"CE": 10, "LAA": 10})
    with pytest.raises(CalibrationError, match="folds: 21 for 20 patients; expected no more"):
        score_model(overconfident(cohort, 7), cohort, settings_of(n_folds=21))


@real_data
def test_published_models_are_brought_below_the_constant(mil_data: Path) -> None:
    strip = mil_data / "strip"
    cohort = read_cohort(strip / "train.csv", labelled=True)
    models = [
        read_predictions(path, cohort, class_name="LAA").proba
        for path in sorted((strip / "oof").glob("*.csv"))
    ]

    def calibrated(proba: np.ndarray) -> float:
        repeats = calibrate_predictions(proba, cohort.labels, settings_of(n_folds=5, n_repeats=20))
        return float(np.mean([weighted_log_loss(one, cohort.labels) for one in repeats]))

    assert len(models) == 5
    for model in models:
        assert weighted_log_loss(model, cohort.labels) > 0.75
        assert calibrated(model) <= 0.673
    for how in ("probability", "logit"):
        assert calibrated(average_predictions(models, how=how)) <= 0.658


def test_what_was_predicted_for_a_class_that_no_patient_has_counts_as_wrong() -> None:
    cohort = cohort_of({"A": 20, "B": 10})
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([2, 2, 2], 30)
    settings = settings_of(
        calibrator=None, reliability=False, prior=np.array([2 / 3, 1 / 3])
    )  # at the shares of the cohort
    scores = score_model(proba, cohort, settings).scores["raw"]
    losses = -np.log(proba[np.arange(30), cohort.labels])
    expected = (losses[:20].mean() + losses[20:].mean()) / 2
    assert scores["weighted_log_loss"].value == pytest.approx(expected)
    assert scores["weighted_log_loss"].low < expected < scores["weighted_log_loss"].high
    dropped = proba[:, :2] / proba[:, :2].sum(axis=1, keepdims=True)
    without = score_model(dropped, cohort, settings).scores["raw"]
    assert without["weighted_log_loss"].value < expected
    assert without["brier_score"].value < scores["brier_score"].value
    for ranks in ("auroc", "calibration_slope"):  # of A against B
        assert scores[ranks].value == pytest.approx(without[ranks].value)
    right = proba.argmax(axis=1) == cohort.labels
    recall = (right[:20].mean() + right[20:].mean()) / 2
    assert scores["balanced_accuracy"].value == pytest.approx(recall)


def test_a_shift_of_prior_leaves_what_other_classes_got() -> None:
    cohort = cohort_of({"A": 2, "B": 1})
    proba = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0], [0.1, 0.8, 0.1]])
    settings = settings_of(calibrator=None, reliability=False, file_prior=np.array([0.8, 0.2]))
    scores = score_model(proba, cohort, settings).scores["raw"]
    shifted = proba[:, :2] / np.array([0.8, 0.2])
    shifted *= proba[:, :2].sum(axis=1, keepdims=True) / np.maximum(
        shifted.sum(axis=1, keepdims=True), 1e-9
    )
    losses = -np.log(np.maximum(shifted[np.arange(3), cohort.labels], 1e-15))
    expected = (losses[:2].mean() + losses[2]) / 2
    assert scores["weighted_log_loss"].value == pytest.approx(expected)


@pytest.mark.parametrize("option", ["calibrator", "reliability"])
def test_other_classes_cannot_be_calibrated(option: str) -> None:
    cohort = cohort_of({"A": 20, "B": 10})
    settings = settings_of(**{"calibrator": None, "reliability": False, option: "platt"})
    with pytest.raises(CalibrationError, match="a class that no patient has"):
        score_model(np.full((30, 3), 1 / 3), cohort, settings)
