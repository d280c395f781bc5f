"""Content of a cohort table with its faults, and of its slide files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from PIL import Image

from features.utils.tables import find_column, read_table
from features.utils.text import natural_key, normalize_name, strip_blanks
from mil.data.cohort import Columns, find_roles, without_suffix

__all__ = [
    "ALL",
    "NO_LABEL",
    "OTHERS",
    "SEVERAL",
    "Column",
    "SlideFiles",
    "SlideHeader",
    "SlideTable",
    "read_cohort_table",
]

ALL = "all"
"""Label of all slides in a table without labels."""
NO_LABEL = "(none)"
"""Replaces an empty cell of a label or centre."""
SEVERAL = "(several)"
"""Label or centre of a patient whose slides disagree."""
OTHERS = "(others)"
"""Replaces all labels but the most frequent, if there are too many to show."""

_MAX_LABELS = 12
_N_FREQUENT = 10
_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table.

    ``role`` is its meaning, e.g. ``patient id``, empty if it is not used; ``kind`` is ``text``,
    ``number``, ``whole number`` or ``empty``, by all its values. ``n_distinct`` counts different
    values without the empty one; ``frequent`` holds the ten most frequent values and their counts.
    """

    name: str
    role: str
    kind: str
    n_missing: int
    n_distinct: int
    frequent: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTable:
    """Content of a cohort table, without ``n_rows_left_out`` rows that lack a slide or patient id.

    Attributes
    ----------
    n_rows, n_rows_repeated
        Number of rows, and of those that equal an earlier one in every cell.
    rows
        Data frame of shape (rows, columns), as from :func:`mil.data.cohort.read_slide_rows`:
        ``slide``, ``patient`` and, if there are any, ``label`` and ``centre``.
    slides
        Text, shape (slides, 5): ``slide``, ``patient``, ``label``, ``centre``, ``image``.
    patients
        Shape (patients, 4): ``patient``, ``label``, ``centre``, ``n_slides``.
    classes
        Labels of slides and patients, sorted; only :data:`ALL` in a table without labels. If there
        are more than twelve, the eleven most frequent remain, and the rest is :data:`OTHERS`.
    """

    path: Path
    n_rows: int
    n_rows_repeated: int
    n_rows_left_out: int
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    slides: pd.DataFrame
    patients: pd.DataFrame
    classes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether there is a column of labels."""
        return "label" in self.rows

    @property
    def known_classes(self) -> tuple[str, ...]:
        """Labels that occur in the table literally."""
        return tuple(c for c in self.classes if c not in {ALL, NO_LABEL, SEVERAL, OTHERS})

    @property
    def n_centres(self) -> int:
        """Number of centres."""
        return len(set(self.slides["centre"]) - {"", NO_LABEL})

    @property
    def has_centres(self) -> bool:
        """Whether there is a column of centres."""
        return "centre" in self.rows

    @property
    def has_image_numbers(self) -> bool:
        """Whether the slides of a patient are numbered."""
        return bool((self.slides["image"] != "").any())


@dataclass(frozen=True, kw_only=True)
class SlideHeader:
    """Metadata of a slide file, read without its pixels.

    ``file_bytes`` is the size of all files of the slide, None if not known, as for a URL. ``mpp``
    is the geometric mean of both axes, NaN if the file states no plausible one. ``compression`` is
    that of level 0, e.g. ``JPEG``, empty if not known. ``content_id`` is the content hash, empty if
    no other file has the same size.
    """

    slide_id: str
    width_px0: int
    height_px0: int
    n_levels: int
    file_bytes: int | None
    mpp: float
    reader: str
    compression: str
    content_id: str


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """Headers of the slides of a folder, and thumbnails of some (px), by slide id.

    Slides need not be in the table. ``failures`` are the reasons why slides could not be opened,
    ``repeated`` the files ignored because another, their value, has the same slide id.
    """

    headers: Mapping[str, SlideHeader]
    failures: Mapping[str, str] = field(default_factory=dict)
    thumbnails: Mapping[str, Image.Image] = field(default_factory=dict)
    repeated: Mapping[Path, Path] = field(default_factory=dict)


def read_cohort_table(
    path: Path, *, label: str | None = None, columns: Columns | None = None
) -> SlideTable:
    """Read a cohort table, shape (rows, columns); faults that training refuses are accepted.

    Columns: ``image_id``, ``slide_id`` or ``bag_id``, ``patient_id``; optionally ``label``,
    ``center_id`` and ``image_num``. Others are counted and described. ``label`` names the column of
    the labels, if a table has several; None is ``label``, if there is one. ``columns`` names others
    by role, see :data:`mil.data.cohort.ROLES`.

    Raises
    ------
    TableError
        If the table cannot be read, is empty, has no slide ids or no patient ids, or lacks the
        column that ``label`` names.
    """
    table = read_table(path)
    optional = ["label", "center"]
    roles = ["slide", "patient", *optional]
    found = find_roles(table, roles, where=path, columns=columns, optional=optional)
    names = {"centre" if role == "center" else role: column for role, column in found.items()}
    if "image_num" in table:
        names["image"] = "image_num"
    if label is not None:
        names["label"] = find_column(
            table, [label], where=path, what="a column of labels", option="--label {}"
        )
    whole = table[(table[names["slide"]] != "") & (table[names["patient"]] != "")]
    rows = pd.DataFrame({role: whole[name] for role, name in names.items() if role != "image"})
    rows = rows.map(lambda cell: normalize_name(strip_blanks(cell)))
    rows["slide"] = rows["slide"].map(without_suffix)
    slides = _slides(rows, whole[names["image"]] if "image" in names else None)
    patients = _patients(slides)
    labels = set(slides["label"]) | set(patients["label"])
    return SlideTable(
        path=path,
        n_rows=len(table),
        n_rows_repeated=int(table.duplicated().sum()),
        n_rows_left_out=len(table) - len(whole),
        columns=tuple(_column(table[name], names) for name in table.columns),
        rows=rows,
        slides=slides,
        patients=patients,
        classes=tuple(sorted(labels)) or (ALL,),
    )


def _slides(rows: pd.DataFrame, images: pd.Series[str] | None) -> pd.DataFrame:
    """Return the first row of each slide, with missing values filled in."""
    slides = rows.assign(image="" if images is None else images)
    for column, empty in (("label", ALL), ("centre", "")):
        if column not in slides:
            slides[column] = empty
        else:
            slides[column] = slides[column].replace("", NO_LABEL)
    slides = slides.drop_duplicates("slide").reset_index(drop=True)
    counts = slides["label"].value_counts()
    if len(counts) > _MAX_LABELS:
        common = slides["label"].isin(counts.index[: _MAX_LABELS - 1])
        slides["label"] = slides["label"].where(common, OTHERS)
    return slides


def _patients(slides: pd.DataFrame) -> pd.DataFrame:
    """Return one row per patient, in order of first appearance."""
    grouped = slides.groupby("patient", sort=False)
    patients = grouped[["label", "centre"]].agg(_only)
    patients["n_slides"] = grouped.size()
    return patients.reset_index()


def _only(values: pd.Series[str]) -> str:
    """Return the common value of all known ones."""
    known = set(values) - {NO_LABEL}
    return SEVERAL if len(known) > 1 else known.pop() if known else NO_LABEL


def _column(values: pd.Series[str], names: dict[str, str]) -> Column:
    roles = {
        "slide": "slide id", "patient": "patient id", "label": "label", "centre": "centre",
        "image": "number of the slide within its patient",
    }  # fmt: skip
    nonempty = values[values != ""]
    kind = "text" if len(nonempty) else "empty"
    for name, pattern in (("number", _NUMBER), ("whole number", _WHOLE)):
        if len(nonempty) and nonempty.str.fullmatch(pattern).all():
            kind = name
    counts = nonempty.value_counts()
    frequent = sorted(counts.items(), key=lambda item: (-item[1], natural_key(str(item[0]))))
    return Column(
        name=str(values.name),
        role=next((roles[role] for role, name in names.items() if name == values.name), ""),
        kind=kind,
        n_missing=len(values) - len(nonempty),
        n_distinct=len(counts),
        frequent=tuple((str(value), int(n)) for value, n in frequent[:_N_FREQUENT]),
    )
