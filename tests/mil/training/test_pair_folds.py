from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mil.calibration import Calibrator
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.splits import Fold, patient_folds
from mil.training.config import TrainConfig
from mil.training.pair_folds import pair_calibrators, pair_folds
from tests.mil.training.test_ensemble import noise_cohort

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=10)


def calibrators(
    bags: PatientBags, cohort: Cohort, folds: tuple[Fold, ...]
) -> dict[tuple[int, int], Calibrator]:
    return pair_calibrators(
        bags, cohort, folds, pair_folds(cohort, folds), config=FAST, seed=0, calibrator="platt",
        on_head=lambda: None,
    )  # fmt: skip


def test_each_pair_trains_on_the_patients_of_neither_fold() -> None:
    _, cohort = noise_cohort(45, 0)
    folds = patient_folds(cohort, n_folds=5, n_repeats=2, seed=0)
    pairs = pair_folds(cohort, folds)
    assert len(pairs) == 10
    assert set(pairs[0].test_ids) == {*folds[0].test_ids, *folds[1].test_ids}
    for pair in pairs:
        assert not set(pair.train_ids) & set(pair.test_ids)
        assert {*pair.train_ids, *pair.test_ids} == set(cohort.patient_ids)


@pytest.mark.parametrize(("n_patients", "n_folds"), [(45, 2), (45, 11)])
def test_two_folds_and_very_many_have_no_pairs(n_patients: int, n_folds: int) -> None:
    _, cohort = noise_cohort(n_patients, 0)
    folds = patient_folds(cohort, n_folds=n_folds, n_repeats=1, seed=0)
    assert pair_folds(cohort, folds) == ()
    assert calibrators(*noise_cohort(n_patients, 0), folds) == {}


def test_nothing_of_a_folds_patients_reaches_its_weights() -> None:
    bags, cohort = noise_cohort(45, 3, shift=0.5)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    held_out = set(folds[1].test_ids)
    poisoned = replace(
        bags,
        features={
            name: np.float16(50) * tiles if name in held_out else tiles
            for name, tiles in bags.features.items()
        },
    )
    turned = replace(
        cohort,
        patients=tuple(
            replace(p, label="ab"[p.label == "a"]) if p.patient_id in held_out else p
            for p in cohort.patients
        ),
    )
    clean, other = calibrators(bags, cohort, folds), calibrators(poisoned, turned, folds)
    assert clean[0, 1].as_dict() == other[0, 1].as_dict()
    assert clean[0, 0].as_dict() != other[0, 0].as_dict()
