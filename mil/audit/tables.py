"""What cohort tables show by themselves: who stands on two sides, twice, or too rarely."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from features.utils.text import pluralize
from mil.audit.findings import Finding, Severity, abbreviate
from mil.data.cohort import Cohort, read_slide_rows
from mil.data.splits import patient_folds, split_notes
from mil.errors import SplitError

__all__ = ["Split", "audit_overlap", "audit_similar_ids", "audit_sizes", "audit_table", "read_side"]

_LEAST_OF_A_CLASS_IN_A_FOLD = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One table of the audit."""

    name: str
    """``train`` or ``test``."""
    path: Path
    """The table."""
    rows: pd.DataFrame
    """From :func:`mil.data.cohort.read_slide_rows`; labels of a test side are not looked at."""

    @property
    def patient_ids(self) -> set[str]:
        """Its patients."""
        return set(self.rows["patient"])


def read_side(path: Path, *, name: str) -> Split:
    """Read one table; only the training side needs labels.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty or an id was turned into a number.
    """
    return Split(name=name, path=path, rows=read_slide_rows(path, labelled=name == "train"))


def audit_table(side: Split) -> list[Finding]:
    """Rows of one table that contradict each other; training refuses all of them."""
    rows = side.rows
    owners = rows.groupby("slide")["patient"].nunique()
    counts = rows["slide"].value_counts()
    shared = sorted(owners[owners > 1].index)
    again = sorted(set(counts[counts > 1].index) - set(shared))
    found = []
    if shared:
        found.append(
            Finding(
                severity=Severity.error,
                kind="slide_of_two_patients",
                message=f"{side.path}: {pluralize(len(shared), 'slides')} of two patients or more: "
                f"{abbreviate(shared)}; folds of patients would hold it on both sides",
                advice="Find out whose it is, and leave the other rows out.",
                subjects=tuple(shared),
            )
        )
    if again:
        found.append(
            Finding(
                severity=Severity.warning,
                kind="slide_listed_twice",
                message=f"{side.path}: {pluralize(len(again), 'slides')} listed twice: "
                f"{abbreviate(again)}",
                advice="Keep one row a slide.",
                subjects=tuple(again),
            )
        )
    for column in ("label", "centre"):
        if column in rows:
            found += _two_values(side, column)
    return found


def audit_overlap(train: Split, test: Split) -> list[Finding]:
    """Patients and slides that stand both in the training and in the test table."""
    found = []
    patients = sorted(train.patient_ids & test.patient_ids)
    if patients:
        found.append(
            Finding(
                severity=Severity.error,
                kind="patient_on_two_sides",
                message=f"{pluralize(len(patients), 'patients')} both in {train.path} and in "
                f"{test.path}: {abbreviate(patients)}",
                advice="Take them out of one table; scores on them say nothing of new patients.",
                subjects=tuple(patients),
            )
        )
    slides = sorted(set(train.rows["slide"]) & set(test.rows["slide"]))
    if slides:
        found.append(
            Finding(
                severity=Severity.error,
                kind="slide_on_two_sides",
                message=f"{pluralize(len(slides), 'slides')} both in {train.path} and in "
                f"{test.path}: {abbreviate(slides)}",
                advice="Take them out of one table.",
                subjects=tuple(slides),
            )
        )
    return found


def audit_similar_ids(sides: Sequence[Split]) -> list[Finding]:
    """Patient ids that differ in capitals or leading zeros only, perhaps one patient's."""
    forms = defaultdict(set)
    for name in set().union(*(side.patient_ids for side in sides)):
        forms[name.casefold().lstrip("0")].add(name)
    alike = sorted(" = ".join(sorted(names)) for names in forms.values() if len(names) > 1)
    if not alike:
        return []
    return [
        Finding(
            severity=Severity.warning,
            kind="lookalike_patients",
            message="patient ids that differ in capitals or leading zeros only: "
            + abbreviate(alike),
            advice="If they are one patient, write the id alike everywhere.",
            subjects=tuple(alike),
        )
    ]


def audit_sizes(cohort: Cohort, *, n_folds: int, seed: int) -> list[Finding]:
    """Classes and folds too small for the settings asked for, and how centres spread over folds."""
    found = list(_small_classes(cohort, n_folds))
    found += _one_sided_centres(cohort)
    try:
        folds = patient_folds(cohort, n_folds=n_folds, n_repeats=1, seed=seed)
    except SplitError:
        return found  # said above, class by class
    found += [
        Finding(severity=Severity.note, kind="folds", message=note, advice="")
        for note in split_notes(cohort, folds, by="patient")
    ]
    return found


def _two_values(side: Split, column: str) -> list[Finding]:
    n_values = side.rows.groupby("patient")[column].nunique()
    names = sorted(n_values[n_values > 1].index)
    if not names:
        return []
    return [
        Finding(
            severity=Severity.warning,
            kind=f"patient_with_two_{column}s",
            message=f"{side.path}: {pluralize(len(names), 'patients')} with more than one "
            f"{column}: "
            f"{abbreviate(names)}",
            advice=f"Give each patient one {column}; training refuses the table as it is.",
            subjects=tuple(names),
        )
    ]


def _small_classes(cohort: Cohort, n_folds: int) -> Iterator[Finding]:
    for name, count in cohort.class_counts().items():
        if count < n_folds:
            yield Finding(
                severity=Severity.warning,
                kind="class_too_small",
                message=f"class {name!r} has {pluralize(count, 'patients')}, too few for {n_folds} "
                "folds",
                advice=f"Use fewer folds (--folds {max(2, count)}), or more patients.",
                subjects=(name,),
            )
        elif count < n_folds * _LEAST_OF_A_CLASS_IN_A_FOLD:
            yield Finding(
                severity=Severity.note,
                kind="fold_small",
                message=f"class {name!r} has {pluralize(count, 'patients')}: a fold judges "
                f"{count // n_folds} of them or one more",
                advice="Read scores over all folds and their interval, never a single fold's.",
                subjects=(name,),
            )


def _one_sided_centres(cohort: Cohort) -> list[Finding]:
    classes = defaultdict(set)
    for patient in cohort.patients:
        if patient.center_id:
            classes[patient.center_id].add(patient.label)
    names = sorted(name for name, labels in classes.items() if len(labels) == 1)
    if not names:
        return []
    return [
        Finding(
            severity=Severity.note,
            kind="centre_with_one_class",
            message=f"centres with patients of one class only: {abbreviate(names)}",
            advice="Look at the shortcut report; with --by centre they get no AUROC of their own.",
            subjects=tuple(names),
        )
    ]
