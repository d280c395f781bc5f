"""Subgroups of a cohort by further columns of its table, such as sex or scanner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from features.utils.tables import find_column, read_table
from features.utils.text import is_missing_word, normalize_name, pluralize
from mil.data.cohort import Cohort, Columns, find_role, without_suffix
from mil.errors import CohortError

__all__ = ["MAX_GROUPS", "MISSING", "SEVERAL", "read_subgroups"]

MAX_GROUPS = 20
"""Most groups of a column; more are numbers or ids, not groups."""

MISSING, SEVERAL = "(missing)", "(several)"
"""Groups of patients without a value, and of those whose slides have different ones."""


def read_subgroups(
    path: Path, cohort: Cohort, names: Sequence[str], *, columns: Columns | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the group of each patient of a cohort, in its order, by name of the column.

    ``path`` is the table that the cohort was read from. A patient whose slides have different
    values is in the group :data:`SEVERAL`.

    Raises
    ------
    TableError
        If the table lacks a column.
    CohortError
        If a column has more than :data:`MAX_GROUPS` values.
    """
    table = read_table(path)
    slides = table[find_role(table, "slide", where=path, columns=columns)].map(without_suffix)
    patient_of = cohort.patient_of_slide()
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        column = find_column(table, [name], where=path, what="a column of groups", option="--by {}")
        values: dict[str, set[str]] = {}
        for slide_id, value in zip(slides, table[column], strict=True):
            text = MISSING if is_missing_word(value) else normalize_name(value)
            values.setdefault(patient_of.get(slide_id, ""), set()).add(text)
        of_patients = tuple(_one_group(values[patient]) for patient in cohort.patient_ids)
        if len(set(of_patients)) > MAX_GROUPS:
            raise CohortError(
                f"{path}, column {name!r}",
                actual=pluralize(len(set(of_patients)), "groups"),
                expected=f"at most {MAX_GROUPS}",
                hint="Write groups into the table, such as 'below 60' and '60 and above'.",
            )
        found[name] = of_patients
    return found


def _one_group(values: set[str]) -> str:
    known = values - {MISSING}
    if len(known) > 1:
        return SEVERAL
    return known.pop() if known else MISSING
