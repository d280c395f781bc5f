"""What the report is drawn from besides scores and bundle: who was judged, and what was said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.errors import TableError
from features.utils.tables import read_table, write_table
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.errors import RunError
from mil.inference.bundle import write_json
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["ReportData", "collect_report_data", "read_report_data", "write_report_data"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_KINDS = {"calibrated": "calibrated", "raw": "raw", "mean + logistic": "mean_logistic"}
"""Kinds of predictions, and how the columns of ``judged.csv`` begin."""
_NESTED_KINDS = {**_KINDS, "cross-fitted": "cross_fitted"}
"""Those of a run with nested scores, which keeps the others to compare."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Predictions of patients that were judged, and what happened to the others."""

    classes: tuple[str, ...]
    """Classes in order."""
    patient_ids: tuple[str, ...]
    """Patients that were judged."""
    labels: Ints
    """Class index of each, shape (patients,)."""
    centres: tuple[str, ...]
    """Centre of each; '' where the table names none."""
    n_slides: Ints
    """Slides of each that have a bag, shape (patients,)."""
    n_tiles: Ints
    """Tiles of each, shape (patients,)."""
    fold: Ints
    """Fold in which each was judged, shape (repeats, patients)."""
    proba: Mapping[str, Floats]
    """``calibrated``, ``raw`` and ``mean + logistic`` probabilities at the balanced prior, shape
    (repeats, patients, classes); ``cross-fitted`` besides where ``calibrated`` is nested."""
    notes: tuple[str, ...]
    """What a reader must know of the training."""
    incomplete_slides: tuple[tuple[str, str, str], ...]
    """Slide, patient, and what is wrong: no bag, no tile, or tiles that could not be decoded."""
    patients_without_tiles: tuple[str, ...]
    """Patients that were left out."""

    @property
    def mean(self) -> dict[str, Floats]:
        """Mean over repeats of each kind, shape (patients, classes): for a look at patients."""
        return {kind: values.mean(axis=0) for kind, values in self.proba.items()}

    @property
    def first(self) -> dict[str, Floats]:
        """First repeat of each kind, shape (patients, classes).

        It averages as many heads as are deployed; a mean over repeats would look better than what
        is deployed.
        """
        return {kind: values[0] for kind, values in self.proba.items()}

    @property
    def shares(self) -> Floats:
        """Share of each class among the patients judged, shape (classes,)."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return np.asarray(counts / len(self.labels), np.float64)


def collect_report_data(
    cohort: Cohort,
    bags: PatientBags,
    found: OutOfFoldPredictions,
    proba: Mapping[str, Floats],
    *,
    notes: Sequence[str],
    failures: Mapping[str, str],
) -> ReportData:
    """What the report needs, from what a training has in hand.

    Parameters
    ----------
    cohort
        All patients, those without tiles included.
    bags
        Their bags.
    found
        Who was judged in which fold.
    proba
        By kind, shape (repeats, patients, classes).
    notes
        What a reader must know of the training.
    failures
        Why slides have no bag, by slide id, as far as it is known.
    """
    centre_of = {patient.patient_id: patient.center_id or "" for patient in cohort.patients}
    with_bag = pd.Series([note.patient_id for note in bags.slides]).value_counts()
    names, n_tiles = found.patient_ids, bags.n_tiles
    return ReportData(
        classes=cohort.classes,
        patient_ids=names,
        labels=found.labels,
        centres=tuple(centre_of[name] for name in names),
        n_slides=np.array([with_bag[name] for name in names], np.int64),
        n_tiles=np.array([n_tiles[name] for name in names], np.int64),
        fold=found.fold,
        proba=dict(proba),
        notes=tuple(notes),
        incomplete_slides=tuple(_incomplete(cohort, bags, failures)),
        patients_without_tiles=tuple(sorted(set(cohort.patient_ids) - set(names))),
    )


def _incomplete(
    cohort: Cohort, bags: PatientBags, failures: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Slides that are not all there, in the order of the table."""
    missing, notes = set(bags.missing_slides), {note.slide_id: note for note in bags.slides}
    for slide_id, patient_id in cohort.patient_of_slide().items():
        note = notes.get(slide_id)
        if slide_id in missing:
            why = failures.get(slide_id)
            yield slide_id, patient_id, f"no bag: {why}" if why else "no bag"
        elif note is not None and not note.n_tiles:
            yield slide_id, patient_id, f"no tile: {note.empty_reason or 'its bag is empty'}"
        elif note is not None and note.n_failed:
            words = f"{note.n_failed:,} of {note.n_tried:,} tiles could not be decoded"
            yield slide_id, patient_id, words


def write_report_data(folder: Path, evidence: ReportData) -> None:
    """Write ``judged.csv`` (a row a patient and repeat) and ``notes.json``.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    of_repeats = []
    for repeat, fold in enumerate(evidence.fold):
        rows: dict[str, object] = {
            "repeat": repeat,
            "fold": fold,
            "patient_id": evidence.patient_ids,
            "label": [evidence.classes[label] for label in evidence.labels],
            "center_id": evidence.centres,
            "n_slides": evidence.n_slides,
            "n_tiles": evidence.n_tiles,
        }
        for kind, values in evidence.proba.items():
            for index, name in enumerate(evidence.classes):
                rows[f"{_NESTED_KINDS[kind]}_{name}"] = values[repeat, :, index]
        of_repeats.append(pd.DataFrame(rows))
    write_table(folder / "judged.csv", pd.concat(of_repeats))
    write_json(
        folder / "notes.json",
        {
            "notes": evidence.notes,
            "incomplete_slides": evidence.incomplete_slides,
            "patients_without_tiles": evidence.patients_without_tiles,
        },
    )


def read_report_data(folder: Path, *, classes: Sequence[str]) -> ReportData:
    """Read what :func:`write_report_data` wrote.

    Raises
    ------
    RunError
        If a file is absent or damaged.
    """
    for name in ("judged.csv", "notes.json"):
        if not (folder / name).is_file():
            raise RunError(
                folder,
                actual=f"no {name} in it",
                expected="the files that a report is drawn from",
                hint="Copy the run again, or train again with 'mil train'.",
            )
    try:
        notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
        return _parse(read_table(folder / "judged.csv"), notes, tuple(classes))
    except (
        ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError, TableError,
    ) as error:  # fmt: skip
        raise RunError(
            folder,
            actual=f"damaged ({' '.join(str(error).split())[:200]})",
            expected="judged.csv and notes.json as 'mil train' wrote them",
            hint="Copy the run again, or train again with 'mil train'.",
        ) from error


def _parse(table: pd.DataFrame, notes: Mapping[str, Any], classes: tuple[str, ...]) -> ReportData:
    repeats = table["repeat"].astype(np.int64)
    n_repeats = int(repeats.max()) + 1
    first = table[repeats == 0]
    if (repeats.to_numpy().reshape(n_repeats, -1) != np.arange(n_repeats)[:, None]).any():
        raise ValueError("judged.csv lacks rows")
    shape = (n_repeats, len(first), len(classes))
    is_nested = f"{_NESTED_KINDS['cross-fitted']}_{classes[0]}" in table
    return ReportData(
        classes=classes,
        patient_ids=tuple(first["patient_id"]),
        labels=np.array([classes.index(label) for label in first["label"]], np.int64),
        centres=tuple(first["center_id"]),
        n_slides=first["n_slides"].to_numpy(np.int64),
        n_tiles=first["n_tiles"].to_numpy(np.int64),
        fold=table["fold"].to_numpy(np.int64).reshape(shape[:2]),
        proba={
            kind: table[[f"{prefix}_{name}" for name in classes]]
            .to_numpy(np.float64)
            .reshape(shape)
            for kind, prefix in (_NESTED_KINDS if is_nested else _KINDS).items()
        },
        notes=tuple(notes["notes"]),
        incomplete_slides=tuple(
            (slide, patient, words) for slide, patient, words in notes["incomplete_slides"]
        ),
        patients_without_tiles=tuple(notes["patients_without_tiles"]),
    )
