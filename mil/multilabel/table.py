"""Table of several binary labels per patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from features.errors import MilError
from features.utils.tables import find_column, read_table
from mil.arrays import Floats, Ints
from mil.data.cohort import Cohort, Columns, Patient, id_order, read_slide_rows
from mil.data.cohort_checks import check_one_value
from mil.data.instance_labels import ZERO_OR_ONE
from mil.errors import CohortError

__all__ = [
    "LabelTable",
    "check_not_constant",
    "parse_label_prior",
    "parse_labels",
    "read_label_table",
]

_RESERVED = {
    "bag_id", "center_id", "image_id", "order", "path", "patient_id", "slide_id", "source",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelTable:
    """Patients, without a class, and their binary labels.

    ``truth`` has shape (patients, labels): 1 where a patient has the label, else 0.
    """

    patients: Cohort
    names: tuple[str, ...]
    truth: Ints

    def cohort_of(self, name: str) -> Cohort:
        """Return the cohort of one label: class ``no <name>`` or ``<name>``, shape (patients,)."""
        classes = (f"no {name}", name)
        has = self.truth[:, self.names.index(name)].tolist()
        patients = tuple(
            replace(patient, label=classes[value])
            for patient, value in zip(self.patients.patients, has, strict=True)
        )
        return replace(self.patients, patients=patients, classes=classes)

    def subset(self, patient_ids: Sequence[str]) -> LabelTable:
        """Return the table of some patients, in its order; truth has shape (patients, labels)."""
        wanted = set(patient_ids)
        kept = np.array([name in wanted for name in self.patients.patient_ids], bool)
        return replace(self, patients=self.patients.subset(wanted), truth=self.truth[kept])


def parse_labels(text: str) -> tuple[str, ...]:
    """Return the names of labels in the text of an option.

    Raises
    ------
    CohortError
        If one is named twice, or cannot be the name of a column and a folder.

    Examples
    --------
    >>> parse_labels("any, epidural")
    ('any', 'epidural')
    """
    names = tuple(part.strip() for part in text.split(","))
    bad = [
        n for n in names if not n or n in _RESERVED or n.startswith(".") or set("/\\\0") & set(n)
    ]
    if bad or len(set(names)) < len(names):
        raise CohortError(
            f"labels {text!r}",
            actual=f"{bad[0]!r}" if bad else f"{len(set(names))} different names",
            expected="names of columns, each once, such as any,epidural",
        )
    return names


def read_label_table(
    path: Path, names: Sequence[str], *, columns: Columns | None = None
) -> LabelTable:
    """Read patients, in the order of their ids, and several labels, one column each, 0 or 1.

    The columns of ids are those of :func:`mil.data.cohort.read_cohort`. A slide or scan may have
    several rows, one per slice. It has a label if any of its rows does, and a patient has one if
    any of its slides does; the table of truth has shape (patients, labels).

    Raises
    ------
    TableError
        If the table cannot be read or lacks a column.
    CohortError
        If a label is neither 0 nor 1, all patients have it or none does, or a slide belongs to two
        patients or a patient to two centres.
    """
    rows = read_slide_rows(path, labelled=False, columns=columns)
    table = read_table(path)
    for name in names:
        column = find_column(
            table, [name], where=path, what="a column of 0 and 1 for each label", option="--labels"
        )
        rows[f"label {name}"] = _zeros_and_ones(path, table[column], name)
    for column, owner in (("patient", "slide"), ("centre", "patient")):
        if column in rows:
            check_one_value(path, rows, column, per=owner)
    pairs = zip(rows.index, rows["patient"].map(id_order), rows["slide"].map(id_order), strict=True)
    rows = rows.loc[[index for index, *_ in sorted(pairs, key=lambda pair: pair[1:])]]
    labels = [f"label {name}" for name in names]
    patients, truth = [], []
    for patient_id, own in rows.groupby("patient", sort=False):
        patients.append(
            Patient(
                patient_id=str(patient_id),
                slide_ids=tuple(dict.fromkeys(own["slide"])),
                label=None,
                center_id=own.iloc[0].get("centre"),
            )
        )
        truth.append(own[labels].max().to_numpy(np.int64))
    label_table = LabelTable(
        patients=Cohort(path=path, patients=tuple(patients), classes=()),
        names=tuple(names),
        truth=np.stack(truth),
    )
    check_not_constant(path, label_table)
    return label_table


def _zeros_and_ones(path: Path, column: pd.Series[str], name: str) -> pd.Series[int]:
    values = column.str.lower().map(ZERO_OR_ONE)
    if values.isna().any():
        row = int(values.index[values.isna()][0])
        raise CohortError(
            f"{path}, row {row + 2}", actual=f"{name} is {column[row]!r}", expected="0 or 1"
        )
    return values.astype(np.int64)


def check_not_constant(path: Path, table: LabelTable) -> None:
    """Raise CohortError, naming the path, if all patients have a label or none does."""
    n_patients = len(table.truth)
    for name, n_with in zip(table.names, table.truth.sum(axis=0).tolist(), strict=True):
        if n_with in (0, n_patients):
            raise CohortError(
                path, actual=f"label {name!r} of {n_with} of {n_patients} patients",
                expected="some with it and some without", hint="Leave it out of --labels.",
            )  # fmt: skip


def parse_label_prior(text: str, names: Sequence[str], *, cohort: Floats) -> Floats:
    """Return the share of patients with each label that a text names, shape (labels,).

    The text is ``cohort`` for the shares of the cohort, ``balanced`` for a half of each, or shares
    above 0 and below 1 such as ``any=0.4,epidural=0.02``.

    Raises
    ------
    MilError
        If the text is none of these, or lacks a label.
    """
    if text == "cohort":
        return cohort
    if text == "balanced":
        return np.full(len(names), 0.5)
    try:
        shares = {n.strip(): float(v) for n, v in (part.split("=") for part in text.split(","))}
        values = np.array([shares[name] for name in names])
    except (KeyError, ValueError):
        values = np.empty(0)
    if len(values) != len(text.split(",")) or not ((values > 0) & (values < 1)).all():
        example = ",".join(f"{name}={share:.2g}" for name, share in zip(names, cohort, strict=True))
        raise MilError(
            f"prior {text!r}", actual="no shares of all labels",
            expected=f"cohort, balanced, or shares above 0 and below 1 such as {example}",
        )  # fmt: skip
    return values
