"""Data of the report besides scores and model bundle: out-of-fold predictions and notes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from features.errors import CONTENT_ERRORS, TableError, one_line
from features.utils.tables import read_table
from mil.arrays import Floats, Ints
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.errors import RunError
from mil.evaluation.run_predictions import check_held_out, write_held_out_predictions
from mil.inference.bundle import write_json
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["ReportData", "collect_report_data", "read_report_data", "write_report_data"]


_KINDS = {"calibrated": "calibrated", "raw": "raw", "mean + logistic": "mean_logistic"}
"""Kinds of predictions, with the prefix of their columns in ``judged.csv``."""
_NESTED_KINDS = {**_KINDS, "cross-fitted": "cross_fitted"}
"""Kinds in a run with nested scores, which keeps the cross-fitted ones for comparison."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """Out-of-fold predictions with their patients, and the patients and slides left out.

    Attributes
    ----------
    labels, n_slides, n_tiles
        Class index, slides with a bag and tiles of each patient, shape (patients,), int64.
    centres
        Centre of each patient; empty text if the table names none.
    fold
        Test fold of each patient, shape (repeats, patients), int64.
    proba
        ``calibrated``, ``raw`` and ``mean + logistic`` probabilities at the balanced prior, shape
        (repeats, patients, classes); also ``cross-fitted`` if ``calibrated`` is nested.
    notes
        Caveats of the training.
    incomplete_slides
        Slide, patient and reason: no bag, no tile, or tiles that could not be decoded.
    """

    classes: tuple[str, ...]
    patient_ids: tuple[str, ...]
    labels: Ints
    centres: tuple[str, ...]
    n_slides: Ints
    n_tiles: Ints
    fold: Ints
    proba: Mapping[str, Floats]
    notes: tuple[str, ...]
    incomplete_slides: tuple[tuple[str, str, str], ...]
    patients_without_tiles: tuple[str, ...]

    @property
    def mean(self) -> dict[str, Floats]:
        """Mean over repeats of each kind, shape (patients, classes), to show single patients."""
        return {kind: values.mean(axis=0) for kind, values in self.proba.items()}

    @property
    def first(self) -> dict[str, Floats]:
        """First repeat of each kind, shape (patients, classes), by as many heads as are deployed.

        A mean over repeats averages more heads and would score better than the deployed model.
        """
        return {kind: values[0] for kind, values in self.proba.items()}

    @property
    def shares(self) -> Floats:
        """Share of each class among the patients, shape (classes,)."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return np.asarray(counts / len(self.labels), np.float64)


def collect_report_data(
    cohort: Cohort,
    bags: PatientBags,
    oof: OutOfFoldPredictions,
    proba: Mapping[str, Floats],
    *,
    notes: Sequence[str],
    failures: Mapping[str, str],
) -> ReportData:
    """Return the data of the report of a training.

    ``cohort`` and ``bags`` also hold the patients without tiles. ``proba`` has shape (repeats,
    patients, classes) by kind. ``failures`` are known reasons why slides have no bag, by slide id.
    """
    centre_of = {patient.patient_id: patient.center_id or "" for patient in cohort.patients}
    with_bag = pd.Series([note.patient_id for note in bags.slides]).value_counts()
    names, n_tiles = oof.patient_ids, bags.n_tiles
    return ReportData(
        classes=cohort.classes,
        patient_ids=names,
        labels=oof.labels,
        centres=tuple(centre_of[name] for name in names),
        n_slides=np.array([with_bag[name] for name in names], np.int64),
        n_tiles=np.array([n_tiles[name] for name in names], np.int64),
        fold=oof.fold,
        proba=dict(proba),
        notes=tuple(notes),
        incomplete_slides=tuple(_incomplete(cohort, bags, failures)),
        patients_without_tiles=tuple(sorted(set(cohort.patient_ids) - set(names))),
    )


def _incomplete(
    cohort: Cohort, bags: PatientBags, failures: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    """Yield slides without bag or tiles, or with damaged tiles, in the order of the table."""
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


def write_report_data(folder: Path, data: ReportData) -> None:
    """Write ``judged.csv``, a table of shape (repeats * patients, columns), and ``notes.json``.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    write_held_out_predictions(
        folder,
        {_NESTED_KINDS[kind]: values for kind, values in data.proba.items()},
        classes=data.classes, patient_ids=data.patient_ids, labels=data.labels,
        centres=data.centres, fold=data.fold,
        more={"n_slides": data.n_slides, "n_tiles": data.n_tiles},
    )  # fmt: skip
    write_json(
        folder / "notes.json",
        {
            "notes": data.notes,
            "incomplete_slides": data.incomplete_slides,
            "patients_without_tiles": data.patients_without_tiles,
        },
    )


def read_report_data(folder: Path, *, classes: Sequence[str]) -> ReportData:
    """Read the files written by :func:`write_report_data`.

    Raises
    ------
    RunError
        If a file is absent or damaged.
    """
    for name in ("judged.csv", "notes.json"):
        if not (folder / name).is_file():
            raise unreadable_file(folder / name, "no such file")
    try:
        notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
        table = read_table(folder / "judged.csv")
        check_held_out(folder, table)
        return _parse(table, notes, tuple(classes))
    except (*CONTENT_ERRORS, TableError) as error:
        expected = "judged.csv and notes.json as 'mil train' wrote them"
        raise unreadable_file(folder, error, expected=expected) from error


def unreadable_file(
    path: Path, reason: object, *, expected: str = "as 'mil train' wrote it"
) -> RunError:
    """Return the error on a missing or damaged file of a run."""
    return RunError(
        path,
        actual=f"cannot be read ({one_line(str(reason), max_chars=200)})",
        expected=expected,
        hint="Copy the run again, or train again with 'mil train'.",
    )


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
