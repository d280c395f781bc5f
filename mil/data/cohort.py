"""The cohort table: patients, their slides, labels and centres, checked once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.paths import strip_slide_suffix
from features.utils.tables import find_column, read_table
from mil.errors import CohortError

__all__ = ["Cohort", "Patient", "read_cohort", "read_slide_rows", "without_suffix"]

_BAG = "bag_id"
_BAG_SUFFIX = re.compile(r"\.h5$", re.IGNORECASE)
_SPOILT_ID = re.compile(r"[+-]?(\d+\.\d*(e[+-]?\d+)?|\d+e\+\d+|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One patient: the unit of splitting and of every score."""

    patient_id: str
    """As in the table, to the letter."""
    slide_ids: tuple[str, ...]
    """Its slides, in the table's order."""
    label: str | None
    """Its class; None in a table without labels."""
    center_id: str | None
    """Its centre; None where the table has none."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Patients in order of first appearance."""

    path: Path
    """The table."""
    patients: tuple[Patient, ...]
    """The patients."""
    classes: tuple[str, ...]
    """Labels that occur, sorted; empty in a table without labels."""

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Ids of the patients, in order."""
        return tuple(patient.patient_id for patient in self.patients)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class index of each patient, shape (patients,)."""
        places = {name: index for index, name in enumerate(self.classes)}
        return np.array([places[str(patient.label)] for patient in self.patients], np.int64)

    @property
    def n_slides(self) -> int:
        """Slides of all patients."""
        return sum(len(patient.slide_ids) for patient in self.patients)

    def class_counts(self) -> dict[str, int]:
        """Patients of each class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def patient_of_slide(self) -> dict[str, str]:
        """Patient id by slide id."""
        return {slide: p.patient_id for p in self.patients for slide in p.slide_ids}


def read_cohort(path: Path, *, labelled: bool) -> Cohort:
    """Read and check a cohort table: one row a slide.

    Columns: ``image_id`` or ``slide_id`` (``bag_id`` for series of images), ``patient_id``,
    ``label`` if ``labelled``, and optionally ``center_id``. A slide id with the suffix of a slide
    file is taken without it. A table with ``bag_id`` may have one row an image of a bag.

    Parameters
    ----------
    path
        CSV table.
    labelled
        Whether labels are needed; if not, a column of labels is not looked at.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty, an id was turned into a number, a patient has two labels or two
        centres, a slide stands there twice or belongs to two patients, or there is one class only.
    """
    named = read_slide_rows(path, labelled=labelled)
    if _BAG in read_table(path):
        named = named.drop_duplicates()  # one row an image
    _refuse_slides_that_return(path, named)
    for column in ("label", "centre"):
        if column in named:
            _refuse_two_values(path, named, column)
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
    """Rows of a cohort table, each checked by itself and not yet against the others.

    Parameters
    ----------
    path, labelled
        As for :func:`read_cohort`.

    Returns
    -------
    pandas.DataFrame
        Columns ``slide`` (without suffix), ``patient``, ``label`` if ``labelled``, and ``centre``
        if the table has ``center_id``; row i is line i + 2 of the file.

    Raises
    ------
    TableError
        If the table cannot be read, is empty or lacks a column.
    CohortError
        If a cell is empty or an id was turned into a number.
    """
    table = read_table(path)
    # Of a table that lists images of series, too, image_id would be the image's.
    names = [_BAG] if _BAG in table else ["image_id", "slide_id"]
    named = pd.DataFrame({
        "slide": table[find_column(table, names, where=path, what="slide ids")],
        "patient": table[find_column(table, ["patient_id"], where=path, what="patient ids")],
    })  # fmt: skip
    if labelled:
        named["label"] = table[find_column(table, ["label"], where=path, what="one class a slide")]
    if "center_id" in table.columns:
        named["centre"] = table["center_id"]
    _refuse_empty_cells(path, named.drop(columns="centre", errors="ignore"))
    for column in ("slide", "patient"):
        _check_mangled_ids(path, named[column])
    named["slide"] = named["slide"].map(without_suffix)
    return named


def without_suffix(slide: str) -> str:
    """A slide id without the suffix of a slide or bag file."""
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


def _refuse_empty_cells(path: Path, named: pd.DataFrame) -> None:
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
    """Tell ids that were turned into numbers on their way, such as 5.88e+13 for 588e11."""
    spoilt = ids[ids.str.fullmatch(_SPOILT_ID)]
    if len(spoilt):
        raise CohortError(
            f"{path}, row {spoilt.index[0] + 2}",
            actual=f"id {spoilt.iloc[0]!r}, which looks like an id turned into a number",
            expected="ids as they were given, such as 049194 or 588e11",
            hint="Save the table again with ids as text (in pandas: read_csv(..., dtype=str)).",
        )


def _refuse_slides_that_return(path: Path, named: pd.DataFrame) -> None:
    counts = Counter(named["slide"])
    for slide, count in counts.items():
        if count == 1:
            continue
        rows = named[named["slide"] == slide]
        owners = sorted(set(rows["patient"]))
        where = f"{path}, rows {_rows(rows)}"
        if len(owners) > 1:
            raise CohortError(
                where,
                actual=f"slide {slide!r} of {len(owners)} patients: {', '.join(owners)}",
                expected="one patient a slide",
            )
        raise CohortError(where, actual=f"slide {slide!r} {count} times", expected="once")


def _refuse_two_values(path: Path, named: pd.DataFrame, column: str) -> None:
    n_values = named.groupby("patient", sort=False)[column].nunique()
    twice = n_values[n_values > 1]
    if len(twice):
        patient = twice.index[0]
        rows = named[named["patient"] == patient]
        raise CohortError(
            f"{path}, rows {_rows(rows)}",
            actual=f"patient {patient!r} has {column}s {', '.join(sorted(set(rows[column])))}",
            expected=f"one {column} a patient",
            hint=f"{len(twice)} patients are concerned." if len(twice) > 1 else "",
        )


def _rows(rows: pd.DataFrame) -> str:
    """Line numbers in the file; the header is line 1."""
    numbers: Sequence[int] = rows.index.tolist()
    return ", ".join(str(number + 2) for number in numbers[:5])
