"""Nested scores; :mod:`tests.mil.training.test_ensemble` has the rest of validation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.bags.h5 import find_bags
from mil.calibration import Calibrator
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.splits import Fold, patient_folds
from mil.errors import SplitError
from mil.evaluation.metrics import auroc
from mil.training import cross_validation, fold_jobs
from mil.training.config import TrainConfig
from mil.training.cross_validation import (
    calibrated_probabilities,
    cross_validate,
    inner_folds,
    nested_calibrators,
    resolve_components,
)
from mil.training_run import train_run
from tests.fakes import write_cohort
from tests.mil.training.test_ensemble import noise_cohort, states

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


def nested_of(bags: PatientBags, cohort: Cohort, folds: tuple[Fold, ...]) -> np.ndarray:
    oof = cross_validate(bags, cohort, folds, config=FAST, seed=0)
    inner = inner_folds(cohort, folds, by="patient", n_folds=3, seed=0)
    nested = nested_calibrators(bags, cohort, folds, inner=inner, config=FAST, seed=0)
    return calibrated_probabilities(oof, nested)


def test_inner_folds_lie_inside_the_training_patients() -> None:
    _, cohort = noise_cohort(30, 0)
    folds = patient_folds(cohort, n_folds=3, n_repeats=2, seed=0)
    inner = inner_folds(cohort, folds, by="patient", n_folds=3, seed=0)
    assert len(inner) == 6
    for fold, of_fold in zip(folds, inner, strict=True):
        tested = [name for inside in of_fold for name in inside.test_ids]
        assert sorted(tested) == sorted(fold.train_ids)
        for inside in of_fold:
            assert not set(inside.train_ids) & set(fold.test_ids)
    assert inner[0] != inner[3]


def test_a_poisoned_test_fold_changes_neither_heads_nor_calibrator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bags, cohort = noise_cohort(36, 2, shift=0.6)
    fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[0]
    tested = set(fold.test_ids)
    poisoned = replace(
        bags,
        features={
            name: np.full_like(tiles, np.nan) if name in tested else tiles
            for name, tiles in bags.features.items()
        },
    )
    turned = replace(
        cohort,
        patients=tuple(
            replace(p, label="ba"[p.label == "b"]) if p.patient_id in tested else p
            for p in cohort.patients
        ),
    )
    ensembles: list[list[bytes]] = []
    calibrators: list[Calibrator] = []
    train, calibrate = fold_jobs.train_ensembles, cross_validation.fit_calibrator

    def watch_training(*args: object, **kwargs: object) -> object:
        together = train(*args, **kwargs)  # type: ignore[arg-type]
        ensembles.extend(states(ensemble.heads) for ensemble in together)
        return together

    def watch_calibration(*args: object, **kwargs: object) -> Calibrator:
        calibrators.append(calibrate(*args, **kwargs))  # type: ignore[arg-type]
        return calibrators[-1]

    monkeypatch.setattr(fold_jobs, "train_ensembles", watch_training)
    monkeypatch.setattr(cross_validation, "fit_calibrator", watch_calibration)
    clean = nested_of(bags, cohort, (fold,))
    nested_of(poisoned, turned, (fold,))
    assert len(ensembles) == 8  # twice the fold's own and three inside it
    assert ensembles[:4] == ensembles[4:]
    assert calibrators[0].as_dict() == calibrators[1].as_dict()
    inside = np.isin(cohort.patient_ids, fold.test_ids)
    np.testing.assert_allclose(clean[0, inside].sum(axis=1), 1)
    assert np.isnan(clean[0, ~inside]).all()


def test_nested_probabilities_find_a_planted_signal() -> None:
    bags, cohort = noise_cohort(45, 8, shift=0.7)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    assert auroc(nested_of(bags, cohort, folds)[0], cohort.labels) > 0.85


@pytest.mark.parametrize("n_patients", [30, 150])
@pytest.mark.parametrize("n_members", [1, 2, 10])
def test_neither_patients_nor_heads_choose_the_stopping_rule(
    n_patients: int, n_members: int
) -> None:
    _, cohort = noise_cohort(n_patients, 0)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    for early_stopping in (False, True):
        given = replace(FAST, n_members=n_members, early_stopping=early_stopping)
        resolved = resolve_components(given, folds)
        assert resolved.early_stopping == early_stopping
        assert resolved.fixed_steps == given.fixed_steps
        assert resolved.effective_learning_rate == given.effective_learning_rate


def test_few_patients_keep_few_components_unless_they_have_many_images() -> None:
    _, cohort = noise_cohort(60, 0)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    settings = TrainConfig()

    def kept(n_images: int) -> int:
        return resolve_components(settings, folds, n_images=n_images).n_components

    assert [kept(n_images) for n_images in (0, 60, 900, 1800, 9000)] == [13, 13, 30, 60, 64]


def test_a_run_says_that_its_scores_are_nested(tmp_path: Path) -> None:
    cohort = read_cohort(write_cohort(tmp_path, n_patients=24, shift=0.7), labelled=True)
    bags = load_patient_bags(cohort, find_bags(tmp_path / "bags"))
    heads = []
    train_run(
        cohort, bags, tmp_path / "run", n_folds=3, n_repeats=1, seed=0, config=FAST, nested=True,
        on_head=lambda done, total: heads.append((done, total)),
    )  # fmt: skip
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["kind"] == "nested"
    assert scores["calibrated"] != scores["cross-fitted"]
    assert json.loads((tmp_path / "run" / "model.json").read_text())["settings"]["nested"] is True
    assert "**Scores**, nested:" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert heads[-1] == (26, 26)  # two heads of each of 3 folds, 9 inner ones and what is deployed


def test_a_cohort_too_small_for_inner_folds_is_refused_before_training(tmp_path: Path) -> None:
    cohort = read_cohort(write_cohort(tmp_path, n_patients=9, shift=0.7), labelled=True)
    bags = load_patient_bags(cohort, find_bags(tmp_path / "bags"))
    heads: list[int] = []
    with pytest.raises(SplitError, match="patients of class 'LAA'"):
        train_run(
            cohort, bags, tmp_path / "run", n_folds=3, n_repeats=1, seed=0, config=FAST,
            nested=True, on_head=lambda done, total: heads.append(done),
        )  # fmt: skip
    assert heads == []
