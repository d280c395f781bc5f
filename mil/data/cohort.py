"""Cohort table: patients with their slides, labels and centres."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.paths import strip_slide_suffix
from features.utils.tables import find_column, read_table
from mil.errors import CohortError

__all__ = [
    "Cohort",
    "Patient",
    "check_one_value",
    "read_cohort",
    "read_slide_rows",
    "without_suffix",
]

_BAG = "bag_id"
_BAG_SUFFIX = re.compile(r"\.h5$", re.IGNORECASE)
_MANGLED_ID = re.compile(r"[+-]?(\d+\.\d*(e[+-]?\d+)?|\d+e\+\d+|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A patient, the unit of splits and scores, with its slides in the order of the table.

    ``label`` and ``center_id`` are None where the table has no such column.
    """

    patient_id: str
    slide_ids: tuple[str, ...]
    label: str | None
    center_id: str | None


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients in order of first appearance in the table ``path``; labels have shape (patients,).

    ``classes`` are the sorted distinct labels, none in a table without labels.
    """

    path: Path
    patients: tuple[Patient, ...]
    classes: tuple[str, ...]

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Ids of the patients, in order."""
        return tuple(patient.patient_id for patient in self.patients)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
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

    def patient_of_slide(self) -> dict[str, str]:
        """Return the patient id by slide id."""
        return {slide: p.patient_id for p in self.patients for slide in p.slide_ids}


def read_cohort(path: Path, *, labelled: bool) -> Cohort:
    """Read and check a cohort table with one row per slide.

    Columns: ``image_id`` or ``slide_id`` (``bag_id`` for series of images), ``patient_id``,
    ``label`` if ``labelled`` (it is ignored otherwise), and optionally ``center_id``. Suffixes of
    slide files are removed from slide ids. A table with ``bag_id`` may have a row per image.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty, an id was turned into a number, a patient has two labels or two
        centres, a slide is listed twice or has two patients, or there is only one class.
    """
    named = read_slide_rows(path, labelled=labelled)
    if _BAG in read_table(path):
        named = named.drop_duplicates()  # one row per image
    _check_unique_slides(path, named)
    for column in ("label", "centre"):
        if column in named:
            check_one_value(path, named, column, per="patient")
    classes = tuple(sorted(set(named["label"]))) if labelled else ()
    if len(classes) == 1:
        raise CohortError(
            path,
            actual=f"one class only, {classes[0]!r}, for all {named['patient'].nunique()} patients",
            expected="two or more",
            hint="Check the column 'label'.",
        )
    return Cohort(path=path, patients=_group(named), classes=classes)


def read_slide_rows(path: Path, *, labelled: bool) -> pd.DataFrame:
    """Read the rows of a cohort table, shape (slides, columns), and check each by itself.

    The columns are ``slide`` (without suffix), ``patient``, ``label`` if ``labelled``, and
    ``centre`` if the table has ``center_id``; row i is line i + 2 of the file.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty or an id was turned into a number.
    """
    table = read_table(path)
    # In a table with a row per image of a series, image_id is the id of the image.
    names = [_BAG] if _BAG in table else ["image_id", "slide_id"]
    named = pd.DataFrame({
        "slide": table[find_column(table, names, where=path, what="slide ids")],
        "patient": table[find_column(table, ["patient_id"], where=path, what="patient ids")],
    })  # fmt: skip
    if labelled:
        named["label"] = table[
            find_column(table, ["label"], where=path, what="one class per slide")
        ]
    if "center_id" in table.columns:
        named["centre"] = table["center_id"]
    _check_nonempty(path, named.drop(columns="centre", errors="ignore"))
    for column in ("slide", "patient"):
        _check_mangled_ids(path, named[column])
    named["slide"] = named["slide"].map(without_suffix)
    return named


def without_suffix(slide: str) -> str:
    """Return a slide id without the suffix of a slide or bag file."""
    name = _BAG_SUFFIX.sub("", slide)
    return name if name != slide else strip_slide_suffix(slide)


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


def _check_nonempty(path: Path, named: pd.DataFrame) -> None:
    for column in named:
        empty = np.flatnonzero(named[column] == "")
        if len(empty):
            raise CohortError(
                f"{path}, row {empty[0] + 2}",
                actual=f"no {column}",
                expected="a value in every row",
                hint=f"{len(empty)} rows lack one." if len(empty) > 1 else "",
            )


def _check_mangled_ids(path: Path, ids: pd.Series[str]) -> None:
    """Raise for ids that another program turned into numbers, such as 5.88e+13 for 588e11."""
    mangled = ids[ids.str.fullmatch(_MANGLED_ID)]
    if len(mangled):
        raise CohortError(
            f"{path}, row {mangled.index[0] + 2}",
            actual=f"id {mangled.iloc[0]!r}, which looks like an id turned into a number",
            expected="ids as text, such as 049194 or 588e11",
            hint="Save the table again with ids as text (in pandas: read_csv(..., dtype=str)).",
        )


def _check_unique_slides(path: Path, named: pd.DataFrame) -> None:
    check_one_value(path, named, "patient", per="slide")
    repeated = named["slide"][named["slide"].duplicated()]
    if len(repeated):
        rows = named[named["slide"] == repeated.iloc[0]]
        raise CohortError(
            f"{path}, rows {_rows(rows)}",
            actual=f"slide {repeated.iloc[0]!r} {len(rows)} times",
            expected="once",
        )


def check_one_value(path: Path, rows: pd.DataFrame, column: str, *, per: str) -> None:
    """Raise unless a column, such as ``label``, has one value per ``patient`` or ``slide``.

    ``rows`` has shape (rows, columns) as returned by :func:`read_slide_rows`.

    Raises
    ------
    CohortError
        If one has several values; the message names the rows in the file.
    """
    n_values = rows.groupby(per, sort=False)[column].nunique()
    several = n_values[n_values > 1]
    if len(several):
        own = rows[rows[per] == several.index[0]]
        values = ", ".join(sorted(set(own[column])))
        raise CohortError(
            f"{path}, rows {_rows(own)}",
            actual=f"{per} {several.index[0]!r} has {column}s {values}",
            expected=f"one {column} per {per}",
            hint=f"This concerns {len(several)} {per}s." if len(several) > 1 else "",
        )


def _rows(rows: pd.DataFrame) -> str:
    """Return line numbers in the file; the header is line 1."""
    numbers: Sequence[int] = rows.index.tolist()
    return ", ".join(str(number + 2) for number in numbers[:5])
