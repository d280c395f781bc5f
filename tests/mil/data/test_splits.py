from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.utils.tables import read_table
from mil.data.cohort import Cohort, Patient, read_cohort
from mil.data.splits import (
    _note_telling_centres,
    centre_spread,
    leave_one_centre_out,
    make_folds,
    patient_folds,
    split_notes,
    stratified_fold_ids,
    write_folds,
)
from mil.errors import SplitError
from mil.evaluation.metrics import auroc
from tests.fakes import real_data


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
        tested = [patient for fold in of_repeat for patient in fold.test_ids]
        assert sorted(tested) == sorted(cohort.patient_ids)
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


def test_the_file_of_folds_names_every_patient_once_a_repeat(tmp_path: Path) -> None:
    folds = patient_folds(cohort_of([9, 8]), n_folds=3, n_repeats=2, seed=1)
    write_folds(tmp_path / "folds.csv", folds)
    rows = read_table(tmp_path / "folds.csv")
    assert list(rows) == ["repeat", "fold", "patient_id"]
    assert [tuple(row) for row in rows.to_numpy()] == [
        (f"{fold.repeat}", f"{fold.index}", name) for fold in folds for name in fold.test_ids
    ]


def test_parts_of_all_classes_together_stay_even() -> None:
    parts = stratified_fold_ids(np.array([0] * 7 + [1] * 6 + [2] * 8), n_folds=5, seed=[0])
    sizes = np.bincount(parts, minlength=5)
    assert sizes.max() - sizes.min() <= 1


def cohort_with_centres(table: dict[str, str]) -> Cohort:
    """Patients by centre; each letter is the class of one patient."""
    patients = tuple(
        Patient(
            patient_id=f"{centre}-{n}", slide_ids=(f"{centre}-{n}_0",), label=label,
            center_id=centre,
        )
        for centre, labels in table.items()
        for n, label in enumerate(labels)
    )  # fmt: skip
    classes = tuple(sorted({str(p.label) for p in patients}))
    return Cohort(path=Path("t.csv"), patients=patients, classes=classes)


@given(
    counts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=8),
    n_folds=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_centres_do_not_disturb_the_even_spread_of_classes(
    counts: list[tuple[int, int]], n_folds: int, seed: int
) -> None:
    cohort = cohort_with_centres({
        "first": "aaaaabbbbb",
        **{str(n): "a" * a + "b" * b for n, (a, b) in enumerate(counts)},
    })  # fmt: skip
    folds = patient_folds(cohort, n_folds=n_folds, n_repeats=1, seed=seed)
    assert sorted(name for fold in folds for name in fold.test_ids) == sorted(cohort.patient_ids)
    label_of = {p.patient_id: p.label for p in cohort.patients}
    for label in ("a", "b"):
        sizes = [sum(label_of[name] == label for name in fold.test_ids) for fold in folds]
        assert max(sizes) - min(sizes) <= 1


def test_centres_are_spread_more_evenly_than_by_chance() -> None:
    cohort = cohort_with_centres({"1": "a" * 40 + "b" * 20, "2": "a" * 20, "3": "a" * 5 + "b" * 15})
    blind = replace(cohort, patients=tuple(replace(p, center_id=None) for p in cohort.patients))
    for seed in range(5):
        aware, by_chance = (
            centre_spread(cohort, patient_folds(c, n_folds=5, n_repeats=4, seed=seed))
            for c in (cohort, blind)
        )
        assert aware is not None
        assert by_chance is not None
        assert aware.difference <= 0.1 < by_chance.difference


def test_folds_give_a_centre_no_way_to_score_above_chance_on_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 8, size=200)
    areas = []
    for seed in range(20):
        labels = rng.permutation(np.arange(200) % 4 == 0).astype(np.int64)
        parts = stratified_fold_ids(labels, n_folds=5, seed=(seed,), groups=centres)
        rates = np.empty(200)
        for part in range(5):
            tested = parts == part
            for centre in range(8):
                rates[tested & (centres == centre)] = labels[~tested & (centres == centre)].mean()
        areas.append(auroc(np.stack([1 - rates, rates], axis=1), labels))
    assert np.mean(areas) < 0.53


def test_how_far_centres_could_be_spread_is_said() -> None:
    even = cohort_with_centres({"1": "aabb", "2": "aabb"})
    folds = patient_folds(even, n_folds=2, n_repeats=1, seed=0)
    spread = centre_spread(even, folds)
    assert spread is not None
    assert spread.difference == 0
    odd = cohort_with_centres({"1": "aabb", "2": "a", "3": "aabb"})
    folds = patient_folds(odd, n_folds=2, n_repeats=1, seed=0)
    spread = centre_spread(odd, folds)
    assert spread is not None
    assert (spread.center_id, spread.lowest, spread.highest) == ("2", 0.0, 0.2)
    (note,) = split_notes(odd, folds, by="patient")
    assert "stratified by class and centre" in note
    assert "differs by at most 0.200 (centre '2', 0.000 to 0.200)" in note


def test_without_centres_folds_say_that_they_are_stratified_by_class_alone() -> None:
    cohort = cohort_of([9, 8])
    folds = patient_folds(cohort, n_folds=2, n_repeats=1, seed=0)
    assert centre_spread(cohort, folds) is None
    assert "by class alone: the table names no" in split_notes(cohort, folds, by="patient")[0]
    one = cohort_with_centres({"1": "aaabbb"})
    assert split_notes(one, patient_folds(one, n_folds=2, n_repeats=1, seed=0), by="patient") == (
        "folds are stratified by class alone: all patients are of one centre",
    )


def test_each_centre_is_left_out_once_and_every_patient_judged_once() -> None:
    cohort = cohort_with_centres({"10": "aab", "2": "ab", "7": "bb"})
    folds = make_folds(cohort, by="centre", n_folds=5, n_repeats=2, seed=0)
    assert [(fold.repeat, fold.index) for fold in folds] == [
        (repeat, index) for repeat in (0, 1) for index in (0, 1, 2)
    ]
    left_out = [{name.split("-")[0] for name in fold.test_ids} for fold in folds[:3]]
    assert left_out == [{"2"}, {"7"}, {"10"}]
    for fold, centres in zip(folds, left_out, strict=False):
        assert not centres & {name.split("-")[0] for name in fold.train_ids}
        assert sorted(fold.train_ids + fold.test_ids) == sorted(cohort.patient_ids)


def test_a_centre_with_one_class_is_judged_and_said() -> None:
    cohort = cohort_with_centres({"10": "aab", "2": "ab", "7": "bb"})
    notes = split_notes(cohort, leave_one_centre_out(cohort), by="centre")
    assert "each of 3 centres was predicted by heads trained on the others" in notes[0]
    assert "centres with one class only: '7'" in notes[1]
    both = cohort_with_centres({"1": "ab", "2": "ab"})
    (note,) = split_notes(both, leave_one_centre_out(both), by="centre")
    assert note.endswith("centres have 2 patients each")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"1": "a" * 12, "2": "b" * 12}, "24 of 24"),
        ({"1": "a" * 12, "2": "b" * 29 + "a"}, "41 of 42"),
        ({"1": "a" * 12, "2": "b" * 12, "": "abab"}, "24 of 24"),
        ({"1": "a" * 20, "2": "a" * 19 + "b"}, ""),  # one class is rare, which is no shortcut
        ({"1": "aaabb", "2": "bbbaa"}, ""),
        ({str(number): "ab"[number % 2] for number in range(8)}, ""),  # nearly ids
    ],
)
def test_centres_that_tell_the_classes_are_said(table: dict[str, str], told: str) -> None:
    cohort = cohort_with_centres(table)
    folds = make_folds(cohort, by="patient", n_folds=2, n_repeats=1, seed=0) if told else ()
    notes = _note_telling_centres(cohort)
    assert [note.split(" patients: ")[0] for note in notes] == (
        [f"the centre alone tells the class of {told}"] if told else []
    )
    if told:
        assert set(notes) < set(split_notes(cohort, folds, by="patient"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"1": "aabb"}, "one centre only, '1'; expected two or more.*--by patient"),
        ({"1": "aabb", "": "ab"}, "2 of 6 patients without a centre.*'center_id'"),
        ({"1": "aaab", "2": "aa"}, "class 'b' at centre '1' only"),
    ],
)
def test_centres_that_cannot_be_left_out_are_refused(table: dict[str, str], message: str) -> None:
    with pytest.raises(SplitError, match=message):
        leave_one_centre_out(cohort_with_centres(table))


def test_a_table_without_centres_cannot_leave_one_out() -> None:
    with pytest.raises(SplitError, match="17 of 17 patients without a centre"):
        leave_one_centre_out(cohort_of([9, 8]))


@real_data
def test_folds_of_the_strip_table_hold_nearly_equal_shares_of_each_centre(mil_data: Path) -> None:
    cohort = read_cohort(mil_data / "strip" / "train.csv", labelled=True)
    spread = centre_spread(cohort, patient_folds(cohort, n_folds=5, n_repeats=5, seed=0))
    assert spread is not None
    assert spread.difference < 0.03
    assert len(leave_one_centre_out(cohort)) == 11
