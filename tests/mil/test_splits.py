from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil.cohort import Cohort, Patient
from mil.errors import SplitError
from mil.splits import patient_folds, read_folds, stratified_parts, write_folds


def cohort_of(counts: list[int]) -> Cohort:
    labels = [chr(97 + index) for index, count in enumerate(counts) for _ in range(count)]
    patients = tuple(
        Patient(patient_id=f"{n:03d}", slide_ids=(f"{n:03d}_0",), label=label, center_id=None)
        for n, label in enumerate(labels)
    )
    return Cohort(path=Path("t.csv"), patients=patients, classes=tuple(sorted(set(labels))))


@given(
    counts=st.lists(st.integers(5, 40), min_size=2, max_size=4),
    n_folds=st.integers(2, 5),
    n_repeats=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
def test_folds_are_disjoint_cover_all_patients_and_are_stratified(
    counts: list[int], n_folds: int, n_repeats: int, seed: int
) -> None:
    cohort = cohort_of(counts)
    folds = patient_folds(cohort, n_folds=n_folds, n_repeats=n_repeats, seed=seed)
    label_of = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    for repeat in range(n_repeats):
        of_repeat = [fold for fold in folds if fold.repeat == repeat]
        judged = [patient for fold in of_repeat for patient in fold.test_ids]
        assert sorted(judged) == sorted(cohort.patient_ids)
        for fold in of_repeat:
            assert not set(fold.train_ids) & set(fold.test_ids)
            assert set(fold.train_ids) | set(fold.test_ids) == set(cohort.patient_ids)
        for label in range(len(counts)):
            sizes = [sum(label_of[p] == label for p in fold.test_ids) for fold in of_repeat]
            assert max(sizes) - min(sizes) <= 1


def test_the_same_seed_gives_the_same_folds_and_another_does_not() -> None:
    cohort = cohort_of([30, 20])
    first, same, other = (
        patient_folds(cohort, n_folds=5, n_repeats=1, seed=seed) for seed in (3, 3, 4)
    )
    assert first == same
    assert first != other


def test_fewer_patients_than_folds_are_refused() -> None:
    with pytest.raises(
        SplitError, match=r"4 patients of class 'b'; expected at least 5.*--folds 4"
    ):
        patient_folds(cohort_of([30, 4]), n_folds=5, n_repeats=1, seed=0)


def test_folds_come_back_from_their_file(tmp_path: Path) -> None:
    folds = patient_folds(cohort_of([9, 8]), n_folds=3, n_repeats=2, seed=1)
    write_folds(tmp_path / "folds.csv", folds)
    back = read_folds(tmp_path / "folds.csv")
    assert [(f.repeat, f.index, set(f.test_ids), set(f.train_ids)) for f in back] == [
        (f.repeat, f.index, set(f.test_ids), set(f.train_ids)) for f in folds
    ]


def test_parts_of_all_classes_together_stay_even() -> None:
    parts = stratified_parts(np.array([0] * 7 + [1] * 6 + [2] * 8), n_parts=5, seed=[0])
    sizes = np.bincount(parts, minlength=5)
    assert sizes.max() - sizes.min() <= 1
