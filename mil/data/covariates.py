"""Covariates: clinical columns of a cohort table, one cell per patient."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd

from features.utils.tables import column_key, find_column, read_table
from features.utils.text import (
    is_missing_word,
    lookalikes,
    normalize_name,
    pluralize,
    strip_blanks,
)
from mil.data.cohort import (
    ROLES,
    Cohort,
    Columns,
    Covariate,
    find_role,
)
from mil.data.cohort_checks import check_one_value
from mil.data.missing_codes import find_missing_code
from mil.errors import CohortError

__all__ = [
    "check_covariates",
    "missing_code_notes",
    "parse_covariates",
    "parse_number",
    "with_covariates",
    "without_values",
]

_MOST_CATEGORIES = 20
_LEAST_TO_LEAK = 20  # patients; among fewer, one column may tell classes apart by chance
_NUMBER_AS_TEXT = re.compile(r"[+-]?\d+([.,]\d+)*( ?(?P<unit>%|[^\W\d_]{1,12}))?")
_NEARLY_NONE = 0.02  # of the patients: a copy of the label with single corrections


def parse_covariates(text: str | None) -> tuple[str, ...]:
    """Return the names of columns in the text of an option, such as ``age,sex``.

    Raises
    ------
    CohortError
        If a name is empty or stated twice.
    """
    names = tuple(strip_blanks(name) for name in text.split(",")) if text else ()
    if "" in names or len(set(names)) < len(names):
        raise CohortError(
            "--covariates", actual=repr(text), expected="names of columns, each once, such as "
            "age,sex",
        )  # fmt: skip
    return names


def parse_number(text: str) -> float | None:
    """Return the finite number that a cell holds, else None, as for one whose square is not finite.

    Examples
    --------
    >>> parse_number("67.5"), parse_number("old"), parse_number("inf")
    (67.5, None, None)
    """
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number * number) else None


def with_covariates(
    cohort: Cohort, covariates: Sequence[str | Covariate], *, columns: Columns | None = None
) -> Cohort:
    """Return the cohort with the cells of columns of its table; words for missing are empty.

    A column given by name holds numbers if all its cells do, else categories; one of a trained
    model keeps its kind. ``columns`` are those of :func:`mil.data.cohort.read_cohort`.

    Raises
    ------
    TableError
        If a column is missing.
    CohortError
        If it is one of ids or labels, a patient has two values, or numbers and words are mixed.
    """
    if not covariates:
        return cohort
    table = read_table(cohort.path)
    patient = find_role(table, "patient", where=cohort.path, columns=columns)
    reserved = {name for role in ("slide", "patient", "label") for name in ROLES[role]}
    reserved |= {name for role, name in (columns or {}).items() if role != "center"}
    reserved = set(map(column_key, reserved))
    cells = {}
    known = []
    for given in covariates:
        name = given.name if isinstance(given, Covariate) else given
        column = find_column(
            table, [name], where=cohort.path, what=f"covariate {name!r}",
            option="" if isinstance(given, Covariate) else "--covariates",
        )  # fmt: skip
        if column_key(column) in reserved:
            raise CohortError(
                cohort.path, actual=f"covariate {name!r} is the column of ids or labels",
                expected="a clinical column, known before the diagnosis",
            )  # fmt: skip
        rows = pd.DataFrame({
            "patient": table[patient].map(_one_form),
            name: table[column].map(lambda cell: "" if is_missing_word(cell) else _one_form(cell)),
        })  # fmt: skip
        check_one_value(cohort.path, rows, name, per="patient")
        is_number = _holds_numbers(cohort, rows, name, given)
        known.append(Covariate(name=name, is_number=is_number))
        cells[name] = dict(zip(rows["patient"], rows[name], strict=True))
    patients = tuple(
        replace(p, covariates=tuple(cells[own.name][p.patient_id] for own in known))
        for p in cohort.patients
    )
    return replace(cohort, patients=patients, covariates=tuple(known))


def without_values(cohort: Cohort, covariates: Sequence[Covariate]) -> Cohort:
    """Return the cohort with every covariate of every patient missing."""
    empty = ("",) * len(covariates)
    patients = tuple(replace(patient, covariates=empty) for patient in cohort.patients)
    return replace(cohort, patients=patients, covariates=tuple(covariates))


def _one_form(text: str) -> str:
    return normalize_name(strip_blanks(text))


def _holds_numbers(cohort: Cohort, rows: pd.DataFrame, name: str, given: str | Covariate) -> bool:
    """Return whether a column holds numbers; raise for a word among them."""
    if isinstance(given, Covariate) and not given.is_number:
        return False
    stated = rows[name][rows[name] != ""]
    words = stated[stated.map(lambda cell: parse_number(cell) is None)]
    if not len(words):
        return bool(len(stated)) or isinstance(given, Covariate)
    are_numbers = _are_numbers_as_text(words)
    if isinstance(given, str) and len(words) > len(stated) / 2 and not are_numbers:
        return False
    others = f", where {len(stated) - len(words)} of {len(stated)} rows hold numbers"
    raise CohortError(
        f"{cohort.path}, row {words.index[0] + 2}",
        actual=f"{name} is {words.iloc[0]!r}{'' if are_numbers else others}",
        expected="a number, or an empty cell",
        hint="Write numbers without unit, with a decimal point; leave unknown ones empty.",
    )


def _are_numbers_as_text(words: pd.Series) -> bool:
    """Return whether words are numbers with a decimal comma or a unit: ``61,5``, ``67 years``.

    As categories they would lose their order, or be refused for their number.
    """
    matches = [_NUMBER_AS_TEXT.fullmatch(word) for word in words]
    if not all(matches):
        return False
    units = {match["unit"] for match in matches if match}
    return len(units) == 1 and (units != {None} or all("," in word for word in words))


def check_covariates(cohort: Cohort) -> tuple[str, ...]:
    """Raise for a covariate of a labelled cohort that nothing honest can be learned from.

    Return notes on those that tell nearly all patients' classes apart by themselves.

    Raises
    ------
    CohortError
        If all cells are missing or the same, two categories look alike, there are more than 20, or
        the column states the label, by its values or by where they are missing.
    """
    notes = []
    labels = cohort.labels
    for index, covariate in enumerate(cohort.covariates):
        cells = [patient.covariates[index] for patient in cohort.patients]
        stated = [(cell, int(label)) for cell, label in zip(cells, labels, strict=True) if cell]
        _check_varies(cohort, covariate, cells)
        n_values = len({cell for cell, _ in stated})
        if not covariate.is_number and (alike := lookalikes(cell for cell, _ in stated)):
            names = " and ".join(map(repr, alike[0]))
            raise _unusable(
                cohort, covariate, f"categories {names}, which look alike", "one spelling of each",
                "Write the category the same way in every row.",
            )  # fmt: skip
        if not covariate.is_number and n_values > _MOST_CATEGORIES:
            raise _unusable(
                cohort, covariate, f"{n_values:,} categories among {len(stated):,} patients",
                f"at most {_MOST_CATEGORIES} categories, or numbers",
                "Join rare categories in the table.",
            )  # fmt: skip
        _check_missing(cohort, covariate, cells)
        n_wrong = _n_wrong(covariate, stated)
        if n_wrong == 0 and len(stated) >= _LEAST_TO_LEAK:
            raise _unusable(
                cohort,
                covariate,
                "it tells all patients' classes apart without error",
                "a column known before the diagnosis",
                "It may be the label under another name; leave it out of --covariates.",
            )
        if n_wrong is not None and n_wrong <= _NEARLY_NONE * len(stated):
            notes.append(
                f"covariate {covariate.name!r} alone is right for {len(stated) - n_wrong} of "
                f"{len(stated)} patients: is it the label?"
            )
    return tuple(notes)


def missing_code_notes(cohort: Cohort) -> tuple[str, ...]:
    """Return notes on covariates with a number such as 999 that may stand for missing values."""
    notes = []
    for index, covariate in enumerate(cohort.covariates):
        cells = [patient.covariates[index] for patient in cohort.patients]
        if code := find_missing_code(filter(None, cells)):
            notes.append(
                f"covariate {covariate.name!r} is {code} for "
                f"{pluralize(cells.count(code), 'patients')}, unlike all others; if it means that "
                "nothing is known, leave these cells empty"
            )
    return tuple(notes)


def _check_varies(cohort: Cohort, covariate: Covariate, cells: Sequence[str]) -> None:
    if not any(cells):
        raise _unusable(
            cohort, covariate, f"missing for all {len(cells)} patients", "some values",
            "Leave it out of --covariates.",
        )  # fmt: skip
    values = {parse_number(cell) if covariate.is_number else cell for cell in cells if cell}
    if len(values) == 1 and all(cells):
        raise _unusable(
            cohort, covariate, f"{cells[0]!r} for all {len(cells)} patients",
            "values that differ", "Leave it out of --covariates.",
        )  # fmt: skip


def _check_missing(cohort: Cohort, covariate: Covariate, cells: Sequence[str]) -> None:
    """Raise where cells are missing for all patients of some classes, and for no others."""
    of_missing, of_stated = (
        {int(label) for cell, label in zip(cells, cohort.labels, strict=True) if bool(cell) is own}
        for own in (False, True)
    )
    if of_missing and not of_missing & of_stated and len(cells) >= _LEAST_TO_LEAK:
        names = ", ".join(cohort.classes[label] for label in sorted(of_missing))
        raise _unusable(
            cohort, covariate, f"missing for all patients of {names}, and for no others",
            "a column known of patients of each class before the diagnosis",
            "What is missing tells the class; leave it out of --covariates.",
        )  # fmt: skip


def _n_wrong(covariate: Covariate, stated: Sequence[tuple[str, int]]) -> int | None:
    """Return the patients whose class the column alone, at its best, does not tell.

    That is by the most frequent class of each category, or by ranges of numbers, with errors of two
    classes only. None where it says nothing: one class, or about a category per patient.
    """
    classes = sorted({label for _, label in stated})
    if len(classes) < 2:
        return None
    if not covariate.is_number:
        of_category: dict[str, Counter[int]] = defaultdict(Counter)
        for cell, label in stated:
            of_category[cell][label] += 1
        if len(of_category) > len(stated) / 2:
            return None
        return len(stated) - sum(max(own.values()) for own in of_category.values())
    numbers = np.array([parse_number(cell) for cell, _ in stated], float)
    truth = np.array([label for _, label in stated])
    spans = sorted((numbers[truth == c].min(), numbers[truth == c].max()) for c in classes)
    if all(before[1] < after[0] for before, after in pairwise(spans)):
        return 0
    if len(classes) > 2:
        return None
    limits = np.unique(numbers)[:, None]
    wrong = ((numbers > limits) != (truth == classes[1])).sum(axis=1)
    return int(min(wrong.min(), (len(stated) - wrong).min()))


def _unusable(
    cohort: Cohort, covariate: Covariate, actual: str, expected: str, hint: str
) -> CohortError:
    where = f"{cohort.path}, column {covariate.name!r}"
    return CohortError(where, actual=actual, expected=expected, hint=hint)
