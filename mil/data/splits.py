"""Cross-validation folds of patients: stratified by class and centre, or one centre per fold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from features.utils.tables import read_table, write_table
from features.utils.text import normalize_name, pluralize
from mil.arrays import Ints
from mil.data.cohort import Cohort, id_order
from mil.data.patient_groups import LinkedPairs, assign_groups, group_ids
from mil.errors import SplitError

__all__ = [
    "CentreSpread",
    "Fold",
    "SplitBy",
    "can_leave_centres_out",
    "centre_spread",
    "folds_from_ids",
    "leave_one_centre_out",
    "make_folds",
    "patient_folds",
    "read_folds",
    "split_notes",
    "stratified_fold_ids",
    "write_folds",
]

SplitBy = Literal["patient", "centre"]
"""``patient``: stratified folds of patients. ``centre``: leave one centre out."""


_MOSTLY_TOLD = 0.95
"""Share of patients from which on a centre that tells their class may be all that is learned."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One split of the patients into disjoint parts, each in the order of the cohort.

    ``repeat`` is the index of the cross-validation and ``index`` that of the fold in it, from 0.
    """

    repeat: int
    index: int
    train_ids: tuple[str, ...]
    test_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CentreSpread:
    """Centre whose share of the test patients differs most between the folds of a repeat.

    ``lowest`` and ``highest`` are its shares of a fold's test patients, 0 to 1.
    """

    center_id: str
    repeat: int
    lowest: float
    highest: float

    @property
    def difference(self) -> float:
        """Difference of the shares; 0 where all folds have the same."""
        return self.highest - self.lowest


def make_folds(
    cohort: Cohort,
    *,
    by: SplitBy,
    n_folds: int,
    n_repeats: int,
    seed: int,
    linked: LinkedPairs = (),
) -> tuple[Fold, ...]:
    """Make folds with :func:`patient_folds` or :func:`leave_one_centre_out`.

    By centre, ``n_folds`` and ``seed`` have no effect. No patient of a fold's training part shares
    a slide with one of its test part.

    Raises
    ------
    SplitError
        If the cohort cannot be split so.
    """
    if by == "centre":
        return leave_one_centre_out(cohort, n_repeats=n_repeats, linked=linked)
    return patient_folds(cohort, n_folds=n_folds, n_repeats=n_repeats, seed=seed, linked=linked)


def patient_folds(
    cohort: Cohort, *, n_folds: int, n_repeats: int, seed: int, linked: LinkedPairs = ()
) -> tuple[Fold, ...]:
    """Make stratified folds of patients: each is a test patient exactly once per repeat.

    Within a repeat, folds differ by at most one patient per class; where the table names centres,
    each centre is spread over the folds as evenly as that allows. Patients that share a slide are
    in one fold: the first of them is assigned, the others follow. The same seed gives the same
    folds, whatever the order of the patients: they are assigned in the order of their ids.

    Raises
    ------
    SplitError
        If a class has fewer patients than there are folds.
    """
    ids = cohort.patient_ids
    by_id = sorted(range(len(ids)), key=lambda index: id_order(ids[index]))
    asked, cohort = cohort, replace(cohort, patients=tuple(cohort.patients[i] for i in by_id))
    linked_group = group_ids(cohort.patient_ids, linked)
    counts = np.bincount(cohort.labels[np.unique(linked_group)], minlength=len(cohort.classes))
    for name, count in zip(cohort.classes, counts.tolist(), strict=True):
        if count < n_folds:
            once = ", those that share a slide counted once" if linked else ""
            raise SplitError(
                cohort.path,
                actual=f"{count} patients of class {name!r}{once}",
                expected=f"at least {n_folds}, one per fold",
                hint=f"Use fewer folds (--folds {count}), or add patients of that class."
                if count > 1
                else "Add patients of that class.",
            )
    centres = _centre_indices(cohort)
    folds: list[Fold] = []
    for repeat in range(n_repeats):

        def assign(patients: Ints, *, repeat: int = repeat) -> Ints:
            return stratified_fold_ids(
                cohort.labels[patients],
                n_folds=n_folds,
                seed=(seed, repeat),
                groups=centres[patients],
            )

        fold_ids = np.empty(len(by_id), np.int64)
        fold_ids[by_id] = assign_groups(linked_group, assign)
        folds += folds_from_ids(asked, fold_ids, repeat=repeat)
    return tuple(folds)


def leave_one_centre_out(
    cohort: Cohort, *, n_repeats: int = 1, linked: LinkedPairs = ()
) -> tuple[Fold, ...]:
    """Make one fold per centre, whose training part is the patients of all other centres.

    Folds are in the order of the centres' names. Repeats have the same folds; only the seed of the
    training differs. Where patients of two centres share a slide, neither is a training patient of
    the fold that tests the other.

    Raises
    ------
    SplitError
        If a patient has no centre, there is only one centre, or a class occurs at one centre only,
        whose fold would have no training patient of it.
    """
    _check_centres(cohort)
    centres = _centre_indices(cohort)
    names = _centre_names(cohort)
    if len(names) < 2:
        raise SplitError(
            cohort.path,
            actual=f"one centre only, {names[0]!r}",
            expected="two or more, to leave one out",
            hint="Use --by patient.",
        )
    for label, class_name in enumerate(cohort.classes):
        at = np.unique(centres[cohort.labels == label])
        if len(at) == 1:
            raise SplitError(
                cohort.path,
                actual=f"class {class_name!r} at centre {names[at[0]]!r} only",
                expected="each class at two centres or more, to train on it in every fold",
                hint="Use --by patient; centre and class are confounded here.",
            )
    folds = folds_from_ids(cohort, centres, repeat=0, linked=linked)
    return tuple(replace(fold, repeat=repeat) for repeat in range(n_repeats) for fold in folds)


def can_leave_centres_out(cohort: Cohort) -> bool:
    """Return whether :func:`leave_one_centre_out` makes folds of a cohort."""
    try:
        leave_one_centre_out(cohort)
    except SplitError:
        return False
    return True


def centre_spread(cohort: Cohort, folds: Sequence[Fold]) -> CentreSpread | None:
    """Return the centre whose share of the test patients differs most between folds of a repeat.

    Patients without a centre count as a centre named ''. None if no patient has a centre.
    """
    if not any(patient.center_id for patient in cohort.patients):
        return None
    centre_of = {patient.patient_id: patient.center_id or "" for patient in cohort.patients}
    spreads = []
    for repeat in sorted({fold.repeat for fold in folds}):
        tested = [[centre_of[p] for p in f.test_ids] for f in folds if f.repeat == repeat]
        for name in _centre_names(cohort):
            shares = [centres.count(name) / len(centres) for centres in tested]
            spreads.append(
                CentreSpread(center_id=name, repeat=repeat, lowest=min(shares), highest=max(shares))
            )
    return max(spreads, key=lambda spread: spread.difference)


def split_notes(cohort: Cohort, folds: Sequence[Fold], *, by: SplitBy) -> tuple[str, ...]:
    """Return notes on the folds for a reader of the results, as sentences."""
    if by == "centre":
        return (_note_centre_folds(cohort), *_note_one_class_centres(cohort))
    spread = centre_spread(cohort, folds)
    if spread is None:
        return ("folds are stratified by class alone: the table names no centres",)
    if len(_centre_names(cohort)) == 1:
        return ("folds are stratified by class alone: all patients are of one centre",)
    name = f"centre {spread.center_id!r}" if spread.center_id else "patients without a centre"
    shares = f"{name}, {spread.lowest:.3f} to {spread.highest:.3f}"
    note = "folds are stratified by class and centre: a centre's share of a fold differs by at most"
    return (f"{note} {spread.difference:.3f} ({shares})", *_note_telling_centres(cohort))


def _note_telling_centres(cohort: Cohort) -> tuple[str, ...]:
    """Return a note if centres tell nearly all classes, so that scores may be those of centres."""
    labels_of: dict[str, Counter[str]] = {}
    for patient in cohort.patients:
        if patient.center_id and patient.label:
            labels_of.setdefault(patient.center_id, Counter())[patient.label] += 1
    n_patients = sum(counts.total() for counts in labels_of.values())
    told = [counts.most_common(1)[0] for counts in labels_of.values()]
    n_told = sum(count for _, count in told)
    tells_all = {label for label, _ in told} == set(cohort.classes)
    if not tells_all or 2 * len(labels_of) > n_patients or n_told < _MOSTLY_TOLD * n_patients:
        return ()
    note = (
        f"the centre alone tells the class of {n_told} of {n_patients} patients: the scores may be "
        "those of a centre's stain or scanner, and no split of these patients tells; add patients "
        "of each class at every centre"
    )
    return (note,)


def stratified_fold_ids(
    labels: Ints, *, n_folds: int, seed: Sequence[int], groups: Ints | None = None
) -> Ints:
    """Assign patients to folds, every class spread evenly over the folds.

    ``labels`` are class indices, shape (n,). ``groups`` are indices of centres, shape (n,), spread
    as evenly as classes allow. The result has shape (n,) and values 0 to ``n_folds`` - 1; folds
    differ by at most one patient per class.
    """
    rng = np.random.default_rng(tuple(seed))
    if groups is not None:
        return _stratify_classes_and_groups(labels, groups, n_folds=n_folds, rng=rng)
    fold_ids = np.empty(len(labels), np.int64)
    offset = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # Assignment continues where the last class stopped, so that fold sizes stay even, too.
        fold_ids[members] = (np.arange(len(members)) + offset) % n_folds
        offset += len(members)
    return fold_ids


def folds_from_ids(
    cohort: Cohort, fold_ids: Ints, *, repeat: int, linked: LinkedPairs = ()
) -> list[Fold]:
    """Make one fold per distinct id, with its patients as test part and the others as training.

    ``fold_ids`` has shape (patients,). Other patients linked to a test patient are not trained on.
    """
    ids = np.array(cohort.patient_ids)
    linked_group = group_ids(cohort.patient_ids, linked)
    return [
        Fold(
            repeat=repeat,
            index=int(index),
            train_ids=tuple(ids[~np.isin(linked_group, linked_group[fold_ids == index])].tolist()),
            test_ids=tuple(ids[fold_ids == index].tolist()),
        )
        for index in np.unique(fold_ids)
    ]


def write_folds(path: Path, folds: Sequence[Fold]) -> None:
    """Write a CSV table of repeat, fold and test patient, shape (test patients, 3).

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    rows = [(fold.repeat, fold.index, patient) for fold in folds for patient in fold.test_ids]
    write_table(path, pd.DataFrame(rows, columns=["repeat", "fold", "patient_id"]))


def read_folds(path: Path, cohort: Cohort, *, linked: LinkedPairs = ()) -> tuple[Fold, ...]:
    """Read the folds that :func:`write_folds` wrote, for the patients of a cohort with tiles.

    The table has shape (test patients, 3). Patients linked to a test patient are not trained on.

    Raises
    ------
    TableError
        If the table cannot be read.
    SplitError
        If it lacks a column or a patient of the cohort, or has one that the cohort lacks.
    """
    table = read_table(path)
    if missing := {"repeat", "fold", "patient_id"} - set(table.columns):
        raise SplitError(
            path, actual=f"no column {min(missing)!r}", expected="folds.csv of a run",
            hint="Name the folder of a finished run.",
        )  # fmt: skip
    folds: list[Fold] = []
    for repeat, (_, of_repeat) in enumerate(table.groupby(table["repeat"].map(_as_index(path)))):
        fold_of = dict(
            zip(
                of_repeat["patient_id"].map(normalize_name),
                of_repeat["fold"].map(_as_index(path)),
                strict=True,
            )
        )
        _check_same_patients(path, cohort, set(fold_of))
        ids = np.array([fold_of[name] for name in cohort.patient_ids], np.int64)
        folds += folds_from_ids(cohort, ids, repeat=repeat, linked=linked)
    return tuple(folds)


def _as_index(path: Path) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal():
            raise SplitError(path, actual=f"{text!r}", expected="the number of a repeat or fold")
        return int(text)

    return parse


def _check_same_patients(path: Path, cohort: Cohort, known: Collection[str]) -> None:
    """Raise unless folds are of exactly these patients."""
    ids = set(cohort.patient_ids)
    for names, where in ((ids - set(known), "no fold of"), (set(known) - ids, "folds of")):
        if names:
            raise SplitError(
                path,
                actual=f"{where} {pluralize(len(names), 'patients')}, first {min(names)!r}",
                expected=f"the {len(ids)} patients of {cohort.path} that have tiles",
                hint="Train on the same patients, with the same slides embedded.",
            )


def _stratify_classes_and_groups(
    labels: Ints, groups: Ints, *, n_folds: int, rng: np.random.Generator
) -> Ints:
    """Assign each patient to the fold with the fewest of its class, then of its group.

    Class and group are balanced each by itself, never the class shares within groups: if every fold
    had the class shares of every centre, the training folds would reveal the test fold's, and the
    centre alone would score above chance (AUROC 0.56 on shuffled STRIP labels) without any signal.
    """
    class_counts = np.zeros((labels.max() + 1, n_folds), np.int64)
    group_counts = np.zeros((groups.max() + 1, n_folds), np.int64)
    fold_ids = np.empty(len(labels), np.int64)
    for patient in rng.permutation(len(labels)):
        label, group = labels[patient], groups[patient]
        tie_break = rng.random(n_folds)
        fold = np.lexsort(
            (tie_break, class_counts.sum(axis=0), group_counts[group], class_counts[label])
        )[0]
        fold_ids[patient] = fold
        class_counts[label, fold] += 1
        group_counts[group, fold] += 1
    return fold_ids


def _centre_names(cohort: Cohort) -> list[str]:
    """Return the distinct centres, sorted, numbers by value; '' for none."""
    names = {patient.center_id or "" for patient in cohort.patients}
    return sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (99, name))


def _centre_indices(cohort: Cohort) -> Ints:
    """Return the index of each patient's centre among the names, shape (patients,)."""
    indices = {name: index for index, name in enumerate(_centre_names(cohort))}
    return np.array([indices[patient.center_id or ""] for patient in cohort.patients], np.int64)


def _check_centres(cohort: Cohort) -> None:
    without = [patient.patient_id for patient in cohort.patients if not patient.center_id]
    if without:
        raise SplitError(
            cohort.path,
            actual=f"{len(without)} of {len(cohort.patients)} patients without a centre "
            f"(first: {without[0]!r})",
            expected="a column 'center_id' with a value in every row, to leave one centre out",
            hint="Add it, or use --by patient.",
        )


def _note_centre_folds(cohort: Cohort) -> str:
    sizes = np.bincount(_centre_indices(cohort))
    least, most = int(sizes.min()), int(sizes.max())
    size = f"{least} to {most} patients" if least < most else f"{pluralize(least, 'patients')} each"
    return (
        f"each of {len(sizes)} centres was predicted by heads trained on the others; centres have "
        + size
    )


def _note_one_class_centres(cohort: Cohort) -> list[str]:
    """Name the centres with one class only, which have no AUROC of their own."""
    centres = _centre_indices(cohort)
    one_sided = [
        name
        for index, name in enumerate(_centre_names(cohort))
        if len(np.unique(cohort.labels[centres == index])) == 1
    ]
    if not one_sided:
        return []
    note = f"centres with one class only: {', '.join(map(repr, one_sided))}"
    return [f"{note}; they count in scores over all patients and have no AUROC of their own"]
