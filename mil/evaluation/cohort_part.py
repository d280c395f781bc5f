"""Part of a labelled cohort that is scored by itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from features.utils.tables import read_table
from features.utils.text import list_names, spelling_hint
from mil.data.cohort import Cohort, match_ids
from mil.errors import CohortError

__all__ = ["part_of_cohort", "read_part"]


def read_part(path: Path, cohort: Cohort) -> tuple[str, ...]:
    """Read the ids of the patients of a cohort that a table lists, in the order of the cohort.

    The table has one row per patient or slide, with ``patient_id``, or else ``image_id`` or
    ``slide_id``.

    Raises
    ------
    TableError
        If the table cannot be read or lacks a column of ids.
    CohortError
        If the cohort does not have one of them, or the last row is one of totals.
    """
    table = read_table(path)
    ids, patient_of, _ = match_ids(
        table, cohort, ["patient_id", "image_id", "slide_id"], where=path
    )
    if unknown := sorted(set(ids) - set(patient_of)):
        raise CohortError(
            path,
            actual=f"{len(unknown)} of its ids are not in {cohort.path} ({list_names(unknown)})",
            expected="patients or slides of that table, whose labels are known",
            hint=spelling_hint(unknown, patient_of),
        )
    wanted = {patient_of[name] for name in ids}
    return tuple(name for name in cohort.patient_ids if name in wanted)


def part_of_cohort(cohort: Cohort, patient_ids: Collection[str], *, source: object) -> Cohort:
    """Return the cohort of some patients, with the classes that they have.

    Raises
    ------
    CohortError
        If they have only one class; the message names the ``source`` of the list.
    """
    part = cohort.subset(patient_ids)
    present = {patient.label for patient in part.patients}
    classes = tuple(name for name in cohort.classes if name in present)
    if len(classes) == 1:
        raise CohortError(
            source,
            actual=f"{len(part.patients)} patients, all of class {classes[0]!r}",
            expected="patients of two or more classes, without which no score is defined",
            hint="List patients of another class as well.",
        )
    return replace(part, classes=classes)
