"""Cohort table: patients with their slides, labels and centres.

Ids, labels and centres are composed (NFC). Two spellings of one thing are never joined in silence:
classes that look alike are refused, patients and centres that do are named, see
:func:`cohort_notes`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from features.errors import TableError
from features.utils.paths import slide_name
from features.utils.spreadsheet_dates import are_dates, mixed_date_note, rounded_ids_note
from features.utils.tables import column_key, find_column, find_optional_column, read_table
from features.utils.text import (
    is_missing_word,
    is_unclear_word,
    lookalike_key,
    lookalikes,
    lookalikes_note,
    misread_form,
    natural_key,
    normalize_name,
    pluralize,
    strip_blanks,
)
from mil.arrays import Ints
from mil.data.cohort_checks import (
    check_cells,
    check_no_totals,
    check_one_value,
    check_unique_slides,
)
from mil.data.missing_codes import find_missing_code
from mil.errors import CohortError

__all__ = [
    "ROLES",
    "Cohort",
    "Columns",
    "Covariate",
    "Patient",
    "cohort_notes",
    "find_role",
    "find_roles",
    "id_order",
    "joined_classes",
    "match_ids",
    "read_cohort",
    "read_slide_rows",
    "without_suffix",
]

Columns = Mapping[str, str]
"""Names of columns by role, see :data:`ROLES`, where a table has other names."""

_BAG = "bag_id"
ROLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "slide": (_BAG, "image_id", "slide_id"),
        "patient": ("patient_id",),
        "label": ("label",),
        "center": ("center_id", "center"),
    }
)
"""Usual names of the column of each role."""

_RESERVED_CLASSES = frozenset({"bag_id", "center_id", "image_id", "patient_id", "slide_id"})
"""Columns of ids in tables of predictions, in which each class is a column as well."""
_JOINS = re.compile(r"[|+;&]|(?<!\d)[,/]|[,/](?!\d)")
"""Marks between classes; between digits, a comma or slash belongs to a number or genotype."""
_BAG_SUFFIX = re.compile(r"\.h5$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Covariate:
    """A clinical column of the table: numbers, or categories."""

    name: str
    is_number: bool


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient, the unit of splits and scores, with its slides in the order of the table.

    ``label`` and ``center_id`` are None where the table has no such column. ``covariates`` are the
    cells of the cohort's covariates, empty where missing, see :mod:`mil.data.covariates`.
    """

    patient_id: str
    slide_ids: tuple[str, ...]
    label: str | None
    center_id: str | None
    covariates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients of the table ``path``, in order; labels have shape (patients,).

    ``classes`` are the sorted distinct labels, none in a table without labels.
    """

    path: Path
    patients: tuple[Patient, ...]
    classes: tuple[str, ...]
    covariates: tuple[Covariate, ...] = ()

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Ids of the patients, in order."""
        return tuple(patient.patient_id for patient in self.patients)

    @property
    def labels(self) -> Ints:
        """Class index of each patient, shape (patients,)."""
        indices = {name: index for index, name in enumerate(self.classes)}
        return np.array([indices[str(patient.label)] for patient in self.patients], np.int64)

    @property
    def n_slides(self) -> int:
        """Number of slides of all patients."""
        return sum(len(patient.slide_ids) for patient in self.patients)

    def class_counts(self) -> dict[str, int]:
        """Return the number of patients by class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def subset(self, patient_ids: Collection[str]) -> Cohort:
        """Return the cohort of some patients, in its order; the classes stay as they are."""
        wanted = set(patient_ids)
        return replace(self, patients=tuple(p for p in self.patients if p.patient_id in wanted))

    def sorted_by_id(self) -> Cohort:
        """Return the cohort in the order of patient ids, and of slide ids within a patient.

        Folds and training follow this order, so that they do not depend on the order of rows.
        """
        patients = (
            replace(p, slide_ids=tuple(sorted(p.slide_ids, key=id_order))) for p in self.patients
        )
        in_order = sorted(patients, key=lambda patient: id_order(patient.patient_id))
        return replace(self, patients=tuple(in_order))

    def patient_of_slide(self) -> dict[str, str]:
        """Return the patient id by slide id."""
        return {slide: p.patient_id for p in self.patients for slide in p.slide_ids}


def read_cohort(path: Path, *, labelled: bool, columns: Columns | None = None) -> Cohort:
    """Read and check a cohort table with one row per slide.

    Columns: ``image_id`` or ``slide_id`` (``bag_id`` for series of images), ``patient_id``,
    ``label`` if ``labelled`` (it is ignored otherwise), and optionally ``center_id``; ``columns``
    names others. Suffixes of slide files are removed from slide ids. A table with ``bag_id`` may
    have a row per image. Patients are in the order of their first rows; if ``labelled``, in that of
    their ids, so that nothing learned depends on the order of rows.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty or holds a word for a missing value or a control character, an id was
        turned into a number or date, a patient has two labels or two centres, a slide is listed
        twice or has two patients, there is only one class, two classes look alike, or one has the
        name of a column of ids.
    """
    table = read_table(path)
    named = _name_rows(path, table, labelled=labelled, columns=columns)
    if _has_bags(table):
        named = named.drop_duplicates()  # one row per image
    check_unique_slides(path, named)
    for column in ("label", "centre"):
        if column in named:
            check_one_value(path, named, column, per="patient")
    classes = tuple(sorted(set(named["label"]))) if labelled else ()
    if len(classes) == 1:
        raise CohortError(
            path,
            actual=f"one class only, {classes[0]!r}, for all "
            f"{pluralize(named['patient'].nunique(), 'patients')}",
            expected="two or more",
            hint="Add patients of another class, or name another column: --column label=NAME.",
        )
    _check_classes(path, classes)
    cohort = Cohort(path=path, patients=_group(named), classes=classes)
    return cohort.sorted_by_id() if labelled else cohort


def id_order(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Return the sort key of an id: numbers in it count by value."""
    return natural_key(name), name


def cohort_notes(cohort: Cohort) -> tuple[str, ...]:
    """Return notes on what the table may mean otherwise than it says.

    These are classes such as ``unknown`` or ``999``, and patients, slides and centres that may be
    one thing spelled in two ways.
    """
    slides = (slide_id for patient in cohort.patients for slide_id in patient.slide_ids)
    centres = {patient.center_id for patient in cohort.patients if patient.center_id}
    code = find_missing_code(cohort.classes)
    unclear = [
        f"class {name!r} with {pluralize(count, 'patients')} counts as a class like any other; if "
        "it means that the label is not known, delete its rows"
        for name, count in (cohort.class_counts().items() if cohort.classes else ())
        if name == code or is_unclear_word(name)
    ]
    notes = [*unclear]
    notes += [
        f"class {name!r} joins {' and '.join(map(repr, parts))}, which are classes too; if these "
        "patients have several labels, name columns of 0 and 1 with --labels"
        for name, parts in joined_classes(cohort.classes).items()
    ]
    if are_dates(cohort.classes):
        notes.append(
            f"the classes are dates, such as {cohort.classes[0]!r}: if they are no diagnoses, name "
            "another column with --column label=NAME; if a spreadsheet made them of labels such as "
            "1-2, save the table again with labels as text"
        )
    for what, ids in (
        ("classes", cohort.classes), ("patients", cohort.patient_ids), ("slides", slides),
        ("centres", centres),
    ):  # fmt: skip
        names = sorted(ids)
        notes += [
            f"ids of {what}: {note}"
            for note in (mixed_date_note(names), rounded_ids_note(names))
            if note
        ]
        if wrong := next(filter(misread_form, names), ""):
            notes.append(
                f"{what} such as {wrong!r} look like {misread_form(wrong)!r} read in another "
                "encoding; export the table again as UTF-8"
            )
        if note := lookalikes_note(what, names):
            notes.append(note)
    return tuple(notes)


def joined_classes(classes: Collection[str]) -> dict[str, list[str]]:
    """Return the different classes of which each that joins others is made up, as in ``A|B``."""
    parts = {
        name: [*dict.fromkeys(map(strip_blanks, _JOINS.split(name)))] for name in sorted(classes)
    }
    return {
        name: joined for name, joined in parts.items()
        if len(joined) > 1 and set(classes).issuperset(joined)
    }  # fmt: skip


def find_role(table: pd.DataFrame, role: str, *, where: object, columns: Columns | None) -> str:
    """Return the column of a role in a table of shape (rows, columns).

    Raises
    ------
    TableError
        If there is none.
    """
    what = {"slide": "slide ids", "patient": "patient ids", "label": "one class per slide",
            "center": "centres"}[role]  # fmt: skip
    if given := (columns or {}).get(role):
        if given in table:  # beside another spelling of it
            return given
        return find_column(
            table, [given], where=where, what=f"{what}, as --column states",
            otherwise="State one of these columns.",
        )  # fmt: skip
    # In a table with a row per image of a series, image_id is the id of the image.
    names = ROLES[role]
    if role == "slide":
        names = (_BAG,) if _has_bags(table) else names[1:]
    otherwise = f"Name it with --column {role}=NAME."
    if (other := _OTHER_IDS.get(role)) and (own := _find_usual(table, other[0], columns)):
        otherwise += f" {other[1]} it is --column {role}={shlex.quote(own)}."
    return find_column(
        table, names, where=where, what=what, option=f"--column {role}={{}}", otherwise=otherwise
    )


def _has_bags(table: pd.DataFrame) -> bool:
    """Whether a table has a column of bags of series, and so may have a row per image."""
    return _BAG in map(column_key, table.columns)


_OTHER_IDS = {
    "slide": ("patient", "Where only patients matter, or slides have their names,"),
    "patient": ("slide", "Where each slide is of another patient,"),
}
"""Role whose column may serve as that of another role, and when."""


def _find_usual(table: pd.DataFrame, role: str, columns: Columns | None) -> str:
    """Return the column of a role, stated or of a usual name; empty if there is none."""
    by_key = {column_key(str(name)): str(name) for name in table.columns}
    names = [columns[role]] if columns and role in columns else ROLES[role]
    return next((by_key[key] for key in map(column_key, names) if key in by_key), "")


def find_roles(
    table: pd.DataFrame,
    roles: Sequence[str],
    *,
    where: object,
    columns: Columns | None,
    optional: Collection[str],
) -> dict[str, str]:
    """Return the columns of a table of shape (rows, columns) by role, see :data:`ROLES`.

    A role that is ``optional`` and not named by ``columns`` is left out where the table has no
    column of a usual name, or ``columns`` give this column to another role.

    Raises
    ------
    TableError
        If a column is missing, or has two roles; only slide and patient may be the same.
    """
    stated = columns or {}
    found: dict[str, str] = {}
    for role in sorted(roles, key=lambda role: role in optional and role not in stated):
        if role in optional and role not in stated:
            usual = set(map(column_key, ROLES[role]))
            if usual.isdisjoint(map(column_key, table.columns)):
                continue
        column = find_role(table, role, where=where, columns=columns)
        other = next((name for name, own in found.items() if own == column), "")
        if not other or {role, other} == {"slide", "patient"}:
            found[role] = column
        elif role not in optional or role in stated:
            raise TableError(
                where,
                actual=f"column {column!r} both as {other} and as {role}",
                expected="a column for each",
                hint="Name the right ones with --column ROLE=NAME.",
            )
    return found


def read_slide_rows(path: Path, *, labelled: bool, columns: Columns | None = None) -> pd.DataFrame:
    """Read the rows of a cohort table, shape (slides, columns), and check each by itself.

    The columns are ``slide`` (without suffix), ``patient``, ``label`` if ``labelled``, and
    ``centre`` if the table has one, empty for words such as ``NA``; row i is line i + 2 of the
    file. ``columns`` are those of :func:`read_cohort`.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty or holds a word for a missing value or a control character, or an id was
        turned into a number or date.
    """
    return _name_rows(path, read_table(path), labelled=labelled, columns=columns)


def _name_rows(
    path: Path, table: pd.DataFrame, *, labelled: bool, columns: Columns | None
) -> pd.DataFrame:
    """Return the columns of a table that have a role, as :func:`read_slide_rows` does."""
    roles = ["slide", "patient", *(["label"] if labelled else []), "center"]
    column_of = find_roles(table, roles, where=path, columns=columns, optional=["center"])
    named = pd.DataFrame({
        role: table[column].map(_one_form) for role, column in column_of.items() if role != "center"
    })  # fmt: skip
    if "center" in column_of:
        centres = table[column_of["center"]]
        stated = centres.map(lambda c: None if is_missing_word(c) else _one_form(c))
        # Of a patient's rows, often only the first states it.
        named["centre"] = stated.fillna(stated.groupby(named["patient"]).transform("first")).fillna(
            ""
        )
    check_cells(path, named)
    named["slide"] = named["slide"].map(without_suffix)
    return named


def match_ids(
    table: pd.DataFrame,
    cohort: Cohort,
    names: Sequence[str],
    *,
    where: object,
    has_others: bool = False,
) -> tuple[pd.Series[str], dict[str, str], str]:
    """Return the ids of a table of shape (rows, columns), the cohort's patients by id, the noun.

    ``names`` are those of columns of ids, the first that the table has is taken: ``patient_id``
    for ids of ``patients``, or others for those of ``slides``, which lose their suffixes. Raises
    TableError if it has none, a row has no id, or a slide another patient than in the cohort, and
    CohortError if the last row is one of totals, unless the table may have rows of others.
    """
    column = find_column(
        table, names, where=where, what="ids of patients or slides",
        otherwise="Name the column of ids 'patient_id' or 'slide_id'.",
    )  # fmt: skip
    ids = table[column].map(_one_form)
    if not has_others and ids.iloc[-1] not in {*cohort.patient_ids, *cohort.patient_of_slide()}:
        check_no_totals(where, ids)
    if (ids == "").any():
        raise TableError(
            f"{where}, row {ids.index[ids == ''][0] + 2}",
            actual=f"no {column}",
            expected="an id in every row",
            hint="Fill it in or delete the row.",
        )
    if column_key(column) == "patient_id":
        return ids, {name: name for name in cohort.patient_ids}, "patients"
    ids = ids.map(without_suffix)
    patient_of = cohort.patient_of_slide()
    if owners := find_optional_column(table, "patient_id", where=where):
        stated = table[owners].map(_one_form)
        for row, slide, owner in zip(ids.index + 2, ids, stated, strict=True):
            own = patient_of.get(slide, owner)
            if is_missing_word(owner) or own == owner:
                continue
            if lookalike_key(own) != lookalike_key(owner):
                raise TableError(
                    f"{where}, row {row}",
                    actual=f"slide {slide!r} of patient {owner!r}",
                    expected=f"of {own!r}, as in {cohort.path}",
                    hint="Correct the wrong table; without the column of patients, those of slides "
                    "hold.",
                )
    return ids, patient_of, "slides"


def without_suffix(slide: str) -> str:
    """Return a slide id without the suffixes of slide and bag files, composed (NFC)."""
    return slide_name(_BAG_SUFFIX.sub("", slide))


def _one_form(text: str) -> str:
    return normalize_name(strip_blanks(text))


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    """Raise for classes that are one class spelled in two ways, or that cannot be columns."""
    if groups := lookalikes(classes):
        raise CohortError(
            path,
            actual=f"classes {' and '.join(map(repr, groups[0]))}, which look alike",
            expected="one spelling of each class",
            hint="Write the label the same way in every row.",
        )
    if reserved := [name for name in classes if name.casefold() in _RESERVED_CLASSES]:
        raise CohortError(
            path,
            actual=f"a class named {reserved[0]!r}",
            expected="names that differ from the columns of ids in predictions",
            hint="Check that the column of labels is the right one, or rename the class.",
        )


def _group(named: pd.DataFrame) -> tuple[Patient, ...]:
    rows: dict[str, list[dict[Hashable, str]]] = {}
    for row in named.to_dict("records"):
        rows.setdefault(row["patient"], []).append(row)
    return tuple(
        Patient(
            patient_id=patient_id,
            slide_ids=tuple(row["slide"] for row in own),
            label=own[0].get("label"),
            center_id=own[0].get("centre"),
        )
        for patient_id, own in rows.items()
    )
