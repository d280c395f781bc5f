from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mil.calibration import PlattScaling, clipped_log, cross_fit
from mil.combination.fit import COMBINATION, MEAN, combine_predictions
from mil.combination.weights import fit_weights
from mil.comparison.models import read_models
from mil.data.cohort import read_cohort
from mil.data.splits import stratified_fold_ids
from mil.evaluation.metrics import weighted_log_loss


def draw(n: int, *signals: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of runs with some signal each and half of their noise in common, (n, runs, 2)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    common = rng.normal(size=n)
    z = np.stack(
        [s * (2 * labels - 1) + 0.7 * common + 0.7 * rng.normal(size=n) for s in signals], axis=1
    )
    return np.stack([-z / 2, z / 2], axis=2), labels


def test_few_patients_give_about_equal_weights_to_runs_that_are_equally_good() -> None:
    logits, labels = draw(60, 0.5, 0.5, 0.5)
    assert fit_weights(logits, labels).weights_ == pytest.approx(np.full(3, 1 / 3), abs=0.12)


def test_a_run_without_signal_loses_its_weight_where_patients_can_tell() -> None:
    logits, labels = draw(400, 0.8, 0.0, 0.0)
    weights = fit_weights(logits, labels).weights_
    assert weights[0] > 0.8
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("signals", [(0.4, 0.4, 0.4), (0.5, 0.3, 0.1), (0.6, 0.0, 0.0)])
def test_new_patients_lose_little_against_the_better_of_equal_and_free_weights(
    signals: tuple[float, ...],
) -> None:
    losses = []
    for seed in range(4):
        logits, labels = draw(100, *signals, seed=seed)
        new, truth = draw(2000, *signals, seed=100 + seed)
        own = fit_weights(logits, labels).predict_proba(new)
        equal = PlattScaling().fit(logits.mean(axis=1), labels).predict_proba(new.mean(axis=1))
        losses.append([weighted_log_loss(p, truth) for p in (own, equal)])
    own, equal = np.mean(losses, axis=0)
    assert own < equal + 0.01


def test_a_scale_of_a_run_changes_nothing() -> None:
    logits, labels = draw(80, 0.6, 0.3)
    scaled = logits * np.array([1.0, 20.0])[:, None]
    plain, other = fit_weights(logits, labels), fit_weights(scaled, labels)
    assert np.allclose(plain.predict_proba(logits), other.predict_proba(scaled), atol=1e-4)


def test_no_patient_is_weighed_by_itself() -> None:
    logits, labels = draw(40, 0.6, 0.3)
    fold = (np.arange(40) // 2 % 4)[None]
    before = cross_fit(logits[None], labels, fold, calibrator=fit_weights)
    turned = labels.copy()
    turned[fold[0] == 1] = 1 - turned[fold[0] == 1]
    after = cross_fit(logits[None], turned, fold, calibrator=fit_weights)
    assert np.array_equal(before[0, fold[0] == 1], after[0, fold[0] == 1])
    assert not np.array_equal(before[0, fold[0] != 1], after[0, fold[0] != 1])


def test_no_patient_is_weighed_by_one_that_shares_a_slide() -> None:
    logits, labels = draw(40, 0.6, 0.3)
    fold, groups = (np.arange(40) // 2 % 4)[None], np.arange(40)
    groups[39] = 2  # of another fold than patient 39
    assert fold[0, 39] != fold[0, 2]
    held_out = fold[0] == fold[0, 2]
    turned = labels.copy()
    turned[39] = 1 - turned[39]
    before, after = (
        cross_fit(logits[None], y, fold, calibrator=fit_weights, groups=groups)
        for y in (labels, turned)
    )
    assert np.array_equal(before[0, held_out], after[0, held_out])
    apart = cross_fit(logits[None], turned, fold, calibrator=fit_weights)
    assert not np.array_equal(before[0, held_out], apart[0, held_out])


@pytest.mark.parametrize("seed", [4, 14])
def test_runs_without_signal_make_no_patient_certain(seed: int) -> None:
    # Their calibrators found a signal in one fold, by chance, and none in the others.
    logits, labels = draw(80, 0.0, 0.0, 0.0, seed=seed)
    fold = stratified_fold_ids(labels, n_folds=5, seed=(seed,))[None]
    calibrated = [
        cross_fit(logits[None, :, run], labels, fold, calibrator="platt") for run in range(3)
    ]
    stacked = clipped_log(np.stack(calibrated, axis=2))
    combined = cross_fit(stacked, labels, fold, calibrator=fit_weights)
    assert weighted_log_loss(combined[0], labels) < np.log(2) + 0.05


@pytest.mark.slow
def test_real_predictions_combined_are_no_worse_than_their_calibrated_mean(mil_data: Path) -> None:
    strip = mil_data / "strip"
    cohort = read_cohort(strip / "train.csv", labelled=True)
    models = read_models([], sorted((strip / "oof").glob("*.csv")), cohort=cohort, class_name="LAA")
    comparison = combine_predictions(models, n_resamples=500).comparison
    difference, verdict = comparison.find(COMBINATION, MEAN, "weighted_log_loss")
    assert difference.value > -0.0015
    assert verdict != "worse"
    assert comparison.scores[MEAN]["weighted_log_loss"].value == pytest.approx(0.655, abs=0.001)
    assert comparison.scores[COMBINATION]["weighted_log_loss"].value < 0.656
