"""Folds of patients: stratified by class and centre, or one a centre; and written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.tables import write_table
from mil.data.cohort import Cohort
from mil.data.patient_groups import LinkedPairs, assign_groups, group_ids
from mil.errors import SplitError

__all__ = [
    "CentreSpread",
    "Fold",
    "SplitBy",
    "centre_spread",
    "folds_from_ids",
    "leave_one_centre_out",
    "make_folds",
    "patient_folds",
    "split_notes",
    "stratified_fold_ids",
    "write_folds",
]

Ints = npt.NDArray[np.int64]
SplitBy = Literal["patient", "centre"]
"""``patient``: stratified folds of patients. ``centre``: leave one centre out."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One split of the patients: those to learn from and those to judge."""

    repeat: int
    """Which cross-validation it belongs to, from 0."""
    index: int
    """Which fold of it, from 0."""
    train_ids: tuple[str, ...]
    """Patients to learn from, in the cohort's order."""
    test_ids: tuple[str, ...]
    """Patients to judge, in the cohort's order; none of them is in ``train_ids``."""


@dataclass(frozen=True, kw_only=True)
class CentreSpread:
    """How far folds could be stratified by centre: the centre that differs most between them."""

    center_id: str
    """The centre."""
    repeat: int
    """The cross-validation in which it differs most."""
    lowest: float
    """Least share of a fold's judged patients that are this centre's."""
    highest: float
    """Largest such share."""

    @property
    def difference(self) -> float:
        """Largest difference of a centre's share between two folds; 0 where folds are alike."""
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
    """Folds as asked for, see :func:`patient_folds` and :func:`leave_one_centre_out`.

    By centre, ``n_folds`` and ``seed`` decide nothing. No fold learns from a patient who shares a
    slide with one it judges.

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
    """Stratified folds of patients: each patient is judged exactly once a repeat.

    Within a repeat, the patients of a class are spread so that folds differ by at most one of
    them; where the table names centres, each centre is spread over the folds as evenly as that
    allows. Patients who share a slide are in one fold: one of them is dealt, and takes the others
    along. The same seed gives the same folds.

    Raises
    ------
    SplitError
        If a class has fewer patients than there are folds.
    """
    linked_group = group_ids(cohort.patient_ids, linked)
    counts = np.bincount(cohort.labels[np.unique(linked_group)], minlength=len(cohort.classes))
    for name, count in zip(cohort.classes, counts.tolist(), strict=True):
        if count < n_folds:
            once = ", those who share a slide counted once" if linked else ""
            raise SplitError(
                cohort.path,
                actual=f"{count} patients of class {name!r}{once}",
                expected=f"at least {n_folds}, one for each fold",
                hint=f"Use fewer folds (--folds {max(2, count)}), or more patients.",
            )
    centres = _centre_indices(cohort)
    folds: list[Fold] = []
    for repeat in range(n_repeats):

        def deal(patients: Ints, *, repeat: int = repeat) -> Ints:
            return stratified_fold_ids(
                cohort.labels[patients],
                n_folds=n_folds,
                seed=(seed, repeat),
                groups=centres[patients],
            )

        folds += folds_from_ids(cohort, assign_groups(linked_group, deal), repeat=repeat)
    return tuple(folds)


def leave_one_centre_out(
    cohort: Cohort, *, n_repeats: int = 1, linked: LinkedPairs = ()
) -> tuple[Fold, ...]:
    """Leave one centre out: the patients of each centre are judged by what the others taught.

    Folds stand in the order of the centres' names. A repeat has the same folds again; what is
    trained on them starts elsewhere. Where patients of two centres share a slide, neither is
    learned from in the fold that judges the other.

    Raises
    ------
    SplitError
        If a patient has no centre, there is one centre only, or a class occurs at one centre only
        and could not be learned without it.
    """
    _refuse_patients_without_centre(cohort)
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
                expected="each class at two centres or more, to be learned without any one of them",
                hint="Use --by patient; centre and class cannot be told apart here.",
            )
    folds = folds_from_ids(cohort, centres, repeat=0, linked=linked)
    return tuple(replace(fold, repeat=repeat) for repeat in range(n_repeats) for fold in folds)


def centre_spread(cohort: Cohort, folds: Sequence[Fold]) -> CentreSpread | None:
    """The centre whose share of the judged patients differs most between folds of one repeat.

    Patients without a centre count as one more, named ''. None if no patient has a centre.
    """
    if not any(patient.center_id for patient in cohort.patients):
        return None
    centre_of = {patient.patient_id: patient.center_id or "" for patient in cohort.patients}
    found = []
    for repeat in sorted({fold.repeat for fold in folds}):
        judged = [[centre_of[p] for p in f.test_ids] for f in folds if f.repeat == repeat]
        for name in _centre_names(cohort):
            shares = [centres.count(name) / len(centres) for centres in judged]
            found.append(
                CentreSpread(center_id=name, repeat=repeat, lowest=min(shares), highest=max(shares))
            )
    return max(found, key=lambda spread: spread.difference)


def split_notes(cohort: Cohort, folds: Sequence[Fold], *, by: SplitBy) -> tuple[str, ...]:
    """What a reader must know of the folds, in plain sentences."""
    if by == "centre":
        return (_said_of_centre_folds(cohort), *_said_of_one_sided_centres(cohort))
    spread = centre_spread(cohort, folds)
    if spread is None:
        return ("folds are stratified by class alone: the table names no centres",)
    of_whom = f"centre {spread.center_id!r}" if spread.center_id else "patients without a centre"
    shares = f"{of_whom}, {spread.lowest:.3f} to {spread.highest:.3f}"
    note = "folds are stratified by class and centre: a centre's share of a fold differs by at most"
    return (f"{note} {spread.difference:.3f} ({shares})",)


def stratified_fold_ids(
    labels: Ints, *, n_folds: int, seed: Sequence[int], groups: Ints | None = None
) -> Ints:
    """A part for each patient, every class spread evenly over the fold_ids.

    Parameters
    ----------
    labels
        Class index of each patient, shape (n,).
    n_folds
        Number of fold_ids.
    seed
        One or more numbers that decide the shuffling.
    groups
        Index of each patient's centre, shape (n,), to be spread as evenly as classes allow; none
        by default.

    Returns
    -------
    numpy.ndarray
        Shape (n,), 0 to ``n_folds`` - 1. For each class, fold_ids differ by at most one patient.
    """
    rng = np.random.default_rng(tuple(seed))
    if groups is not None:
        return _parts_even_in_groups(labels, groups, n_folds=n_folds, rng=rng)
    fold_ids = np.empty(len(labels), np.int64)
    offset = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # Dealing goes on where the last class stopped, so that whole fold_ids also stay even.
        fold_ids[members] = (np.arange(len(members)) + offset) % n_folds
        offset += len(members)
    return fold_ids


def folds_from_ids(
    cohort: Cohort, fold_ids: Ints, *, repeat: int, linked: LinkedPairs = ()
) -> list[Fold]:
    """A fold for each part, which is judged while the others teach.

    Parameters
    ----------
    cohort
        The patients.
    fold_ids
        The part that each is in, from 0, shape (patients,).
    repeat
        Which cross-validation the folds belong to.
    linked
        Who shares a slide: those who do so with a patient judged do not teach.
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
    """Write which patient is judged in which fold of which repeat.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    rows = [(fold.repeat, fold.index, patient) for fold in folds for patient in fold.test_ids]
    write_table(path, pd.DataFrame(rows, columns=["repeat", "fold", "patient_id"]))


def _parts_even_in_groups(
    labels: Ints, groups: Ints, *, n_folds: int, rng: np.random.Generator
) -> Ints:
    """Deal patients one by one to the part that has fewest of their class, then of their group.

    Class and group are balanced each by itself, never each group's class share: if every fold had
    the class shares of every centre, the training folds would give away the test fold's, and the
    centre alone would score above chance (AUROC 0.56 on shuffled STRIP labels) where it tells
    nothing.
    """
    of_class = np.zeros((labels.max() + 1, n_folds), np.int64)
    of_group = np.zeros((groups.max() + 1, n_folds), np.int64)
    fold_ids = np.empty(len(labels), np.int64)
    for patient in rng.permutation(len(labels)):
        label, group = labels[patient], groups[patient]
        chance = rng.random(n_folds)
        part = np.lexsort((chance, of_class.sum(axis=0), of_group[group], of_class[label]))[0]
        fold_ids[patient] = part
        of_class[label, part] += 1
        of_group[group, part] += 1
    return fold_ids


def _centre_names(cohort: Cohort) -> list[str]:
    """Centres that occur, sorted, numbers by value; '' stands for none."""
    names = {patient.center_id or "" for patient in cohort.patients}
    return sorted(names, key=lambda name: (len(name), name) if name.isdigit() else (99, name))


def _centre_indices(cohort: Cohort) -> Ints:
    """Place of each patient's centre among the names, shape (patients,)."""
    places = {name: index for index, name in enumerate(_centre_names(cohort))}
    return np.array([places[patient.center_id or ""] for patient in cohort.patients], np.int64)


def _refuse_patients_without_centre(cohort: Cohort) -> None:
    without = [patient.patient_id for patient in cohort.patients if not patient.center_id]
    if without:
        raise SplitError(
            cohort.path,
            actual=f"{len(without)} of {len(cohort.patients)} patients without a centre "
            f"(first: {without[0]!r})",
            expected="a column 'center_id' with a value in every row, to leave one centre out",
            hint="Add it, or use --by patient.",
        )


def _said_of_centre_folds(cohort: Cohort) -> str:
    sizes = np.bincount(_centre_indices(cohort))
    return (
        f"each of {len(sizes)} centres was judged by heads trained on the others; centres have "
        f"{sizes.min()} to {sizes.max()} patients"
    )


def _said_of_one_sided_centres(cohort: Cohort) -> list[str]:
    """Centres with one class only: judged all the same, but no AUROC of their own."""
    centres = _centre_indices(cohort)
    one_sided = [
        name
        for index, name in enumerate(_centre_names(cohort))
        if len(np.unique(cohort.labels[centres == index])) == 1
    ]
    if not one_sided:
        return []
    note = f"centres with one class only, judged all the same: {', '.join(map(repr, one_sided))}"
    return [f"{note}; they count in scores over all patients and have no AUROC of their own"]
