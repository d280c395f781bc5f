"""Checks of cohort tables: patients in both splits, repeated slides, classes too small."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from features.errors import BagError
from features.utils.spreadsheet_dates import are_dates
from features.utils.text import is_unclear_word, list_names, lookalikes, misread_form, pluralize
from mil.audit.findings import Finding, Severity
from mil.calibration import MIN_PATIENTS_PER_CLASS
from mil.data.cohort import Cohort, Columns, joined_classes, read_slide_rows
from mil.data.missing_codes import find_missing_code
from mil.data.splits import patient_folds, split_notes
from mil.errors import SplitError

__all__ = [
    "BAG_REFUSED",
    "Split",
    "TableEntry",
    "audit_overlap",
    "audit_refused",
    "audit_similar_ids",
    "audit_sizes",
    "audit_table",
    "audit_unclear_labels",
    "read_split",
    "table_entries",
]

BAG_REFUSED = "bag_refused"
"""Kind of the finding on bags that cannot be used."""

_MIN_CLASS_SIZE_PER_FOLD = 5
_MOST_SMALL_CLASSES = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One table of the audit, ``train`` or ``test``, of shape (slides, columns).

    The rows are those of :func:`mil.data.cohort.read_slide_rows`, without labels in ``test``.
    """

    name: str
    path: Path
    rows: pd.DataFrame

    @property
    def patient_ids(self) -> set[str]:
        """Ids of the patients in the table."""
        return set(self.rows["patient"])


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """Everything that the tables state about one slide.

    ``splits`` are ``train``, ``test`` or both; there are several patients and labels if tables
    contradict each other, and no label for a slide of the test table.
    """

    slide_id: str
    splits: frozenset[str]
    patient_ids: frozenset[str]
    labels: frozenset[str]

    def __str__(self) -> str:
        """``a_0 (train, patient a, CE)``."""
        parts = (self.splits, {f"patient {name}" for name in self.patient_ids}, self.labels)
        text = ", ".join(" and ".join(sorted(part)) for part in parts if part)
        return f"{self.slide_id} ({text})"


def table_entries(splits: Sequence[Split]) -> dict[str, TableEntry]:
    """Return the entry of each slide by slide id, in order of first appearance."""
    entries: dict[str, TableEntry] = {}
    for split in splits:
        for row in split.rows.to_dict("records"):
            slide_id = str(row["slide"])
            labels = {str(row["label"])} if "label" in row else set()
            known = entries.get(slide_id)
            entries[slide_id] = TableEntry(
                slide_id=slide_id,
                splits=frozenset({split.name, *(known.splits if known else ())}),
                patient_ids=frozenset({row["patient"], *(known.patient_ids if known else ())}),
                labels=frozenset({*labels, *(known.labels if known else ())}),
            )
    return entries


def read_split(path: Path, *, name: str, columns: Columns | None = None) -> Split:
    """Read one table; only the training split needs labels.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty or an id was turned into a number.
    """
    return Split(
        name=name, path=path, rows=read_slide_rows(path, labelled=name == "train", columns=columns)
    )


def audit_table(split: Split) -> Iterator[Finding]:
    """Yield findings on rows that contradict each other; training refuses all of them."""
    rows = split.rows
    owners = rows.groupby("slide")["patient"].nunique()
    counts = rows["slide"].value_counts()
    shared = sorted(owners[owners > 1].index)
    again = sorted(set(counts[counts > 1].index) - set(shared))
    if shared:
        yield Finding(
            Severity.error, "slide_of_two_patients",
            f"{split.path}: {pluralize(len(shared), 'slides')} of two patients or more: "
            f"{list_names(shared)}; folds of patients would hold it in training and test",
            "Find out which patient it belongs to, and delete the other rows.",
            tuple(shared),
        )  # fmt: skip
    if again:
        yield Finding(
            Severity.warning, "slide_listed_twice",
            f"{split.path}: {pluralize(len(again), 'slides')} listed twice: {list_names(again)}",
            "Keep one row per slide.",
            tuple(again),
        )  # fmt: skip
    for column in ("label", "centre"):
        if column in rows:
            yield from _contradictions(split, column)


def audit_overlap(train: Split, test: Split) -> Iterator[Finding]:
    """Yield findings on patients and slides listed in both the training and the test table."""
    if patients := sorted(train.patient_ids & test.patient_ids):
        yield Finding(
            Severity.error, "patient_on_two_sides",
            f"{pluralize(len(patients), 'patients')} both in {train.path} and in "
            f"{test.path}: {list_names(patients)}",
            "Remove them from one table; scores on them say nothing about new patients.",
            tuple(patients),
        )  # fmt: skip
    if slides := sorted(set(train.rows["slide"]) & set(test.rows["slide"])):
        yield Finding(
            Severity.error, "slide_on_two_sides",
            f"{pluralize(len(slides), 'slides')} both in {train.path} and in "
            f"{test.path}: {list_names(slides)}",
            "Remove them from one table.",
            tuple(slides),
        )  # fmt: skip


def audit_similar_ids(splits: Sequence[Split]) -> Iterator[Finding]:
    """Yield findings on ids, labels and centres that may be one thing spelled in two ways."""
    for column, what in (
        ("patient", "patient ids"), ("slide", "slide ids"), ("label", "labels"),
        ("centre", "centres"),
    ):  # fmt: skip
        names = {name for split in splits for name in split.rows.get(column, ()) if name}
        if similar := tuple(" = ".join(group) for group in lookalikes(names)):
            yield Finding(
                Severity.warning, f"lookalike_{column}s",
                f"{what} that differ only in capitals, blanks, hyphens, accents, leading zeros or "
                f"the like: {list_names(similar)}",
                f"If they are one {column}, write it the same way everywhere.", similar,
            )  # fmt: skip
        if misread := tuple(sorted(filter(misread_form, names))):
            yield Finding(
                Severity.warning, f"misread_{column}s",
                f"{what} that look like names read in another encoding, the first like "
                f"{misread_form(misread[0])}: {list_names(misread)}",
                "Export the table again as UTF-8.", misread,
            )  # fmt: skip


def audit_unclear_labels(splits: Sequence[Split]) -> Iterator[Finding]:
    """Yield findings on classes that are dates, join others, or stand for what is not known."""
    names = {name for split in splits for name in split.rows.get("label", ()) if name}
    code = find_missing_code(names)
    if are_dates(names):
        yield Finding(
            Severity.warning, "date_labels", f"the classes are dates: {list_names(sorted(names))}",
            "If they are no diagnoses, name another column with --column label=NAME; if a "
            "spreadsheet made them of labels such as 1-2, save the table again with labels as "
            "text.",
            tuple(sorted(names)),
        )  # fmt: skip
    if joined := tuple(joined_classes(names)):
        yield Finding(
            Severity.warning, "joined_labels",
            f"classes that join others, which are classes too: {list_names(joined)}",
            "If these patients have several labels, name columns of 0 and 1 with --labels.", joined,
        )  # fmt: skip
    if unclear := tuple(sorted(n for n in names if n and (n == code or is_unclear_word(n)))):
        yield Finding(
            Severity.warning, "unclear_labels",
            f"classes named by a word or a code for what is not known: {list_names(unclear)}",
            "If it means that the label is not known, delete these rows.", unclear,
        )  # fmt: skip


def audit_refused(refused: Mapping[str, BagError]) -> Iterator[Finding]:
    """Yield a finding on bags that cannot be used, by slide id."""
    if refused:
        first = next(iter(refused.values()))
        yield Finding(
            Severity.warning, BAG_REFUSED,
            f"{pluralize(len(refused), 'bags')} cannot be used, and were not examined: "
            f"{list_names(tuple(refused))}. The first: {str(first).removesuffix('.')}",
            "'mil bags verify' checks all; 'mil train' refuses them.", tuple(refused),
        )  # fmt: skip


def audit_sizes(cohort: Cohort, *, n_folds: int, seed: int) -> Iterator[Finding]:
    """Yield findings on classes and folds too small for the settings, and on centres per fold."""
    yield from _check_class_sizes(cohort, n_folds)
    yield from _single_class_centres(cohort)
    try:
        folds = patient_folds(cohort, n_folds=n_folds, n_repeats=1, seed=seed)
    except SplitError:
        return  # the classes that are too small are among the findings already
    for note in split_notes(cohort, folds, by="patient"):
        yield Finding(Severity.note, "folds", note)


def _contradictions(split: Split, column: str) -> Iterator[Finding]:
    n_values = split.rows.groupby("patient")[column].nunique()
    names = sorted(n_values[n_values > 1].index)
    if names:
        yield Finding(
            Severity.warning, f"patient_with_two_{column}s",
            f"{split.path}: {pluralize(len(names), 'patients')} with more than one {column}: "
            f"{list_names(names)}",
            f"Give each patient one {column}; training refuses the table as it is.",
            tuple(names),
        )  # fmt: skip


def _check_class_sizes(cohort: Cohort, n_folds: int) -> Iterator[Finding]:
    """Find classes too small: as many as a calibrator needs must be left in each training part."""
    counts = cohort.class_counts()
    n_left = {name: count - -(-count // n_folds) for name, count in counts.items()}
    least = MIN_PATIENTS_PER_CLASS
    small = tuple(n for n in counts if counts[n] < n_folds or n_left[n] < least)
    if len(small) > _MOST_SMALL_CLASSES:
        yield Finding(
            Severity.warning, "class_too_small",
            f"{len(small):,} of {len(counts):,} classes have too few patients for {n_folds} folds: "
            f"{list_names(small)}; training takes at least {least + 1}",
            "If they are no classes, name another column with --column label=NAME; of numbers, "
            "write ranges into it.", small,
        )  # fmt: skip
        return
    for name, count in counts.items():
        if name in small:
            enough = count > least  # for as many folds as patients
            yield Finding(
                Severity.warning, "class_too_small",
                f"class {name!r} has {pluralize(count, 'patients')}, too few for {n_folds} folds"
                + f"; training takes at least {least + 1}" * (not enough),
                f"Use --folds {count}, or add patients of that class."
                if enough
                else "Add patients of that class, or take the class out of the table.",
                (name,),
            )  # fmt: skip
        elif count < n_folds * _MIN_CLASS_SIZE_PER_FOLD:
            yield Finding(
                Severity.note, "fold_small",
                f"class {name!r} has {pluralize(count, 'patients')}: a fold tests "
                f"{count // n_folds} of them or one more",
                "Read scores over all folds with their interval, never those of a single fold.",
                (name,),
            )  # fmt: skip


def _single_class_centres(cohort: Cohort) -> Iterator[Finding]:
    classes = defaultdict(set)
    for patient in cohort.patients:
        if patient.center_id:
            classes[patient.center_id].add(patient.label)
    names = sorted(name for name, labels in classes.items() if len(labels) == 1)
    if names:
        yield Finding(
            Severity.note, "centre_with_one_class",
            f"centres with patients of one class only: {list_names(names)}",
            "Look at the shortcut scores; tested by themselves, these centres have no AUROC.",
            tuple(names),
        )  # fmt: skip
