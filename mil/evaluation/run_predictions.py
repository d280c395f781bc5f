"""Out-of-fold predictions of a finished run: written, and read without its model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from features.bags.bag import UNKNOWN
from features.errors import CONTENT_ERRORS, TableError, one_line
from features.utils.tables import read_table, write_table
from features.utils.text import normalize_name
from mil.arrays import Floats, Ints
from mil.errors import RunError
from mil.evaluation.metrics import Interval
from mil.part_digests import check_run, no_run_error

__all__ = [
    "RunPredictions",
    "RunSlide",
    "check_held_out",
    "read_run_predictions",
    "read_run_scores",
    "several_labels_error",
    "write_held_out_predictions",
]

_NESTED_PREFIX = "cross_fitted_"
_MARKERS = ("model.json", "combination.json")
_TOLERANCE = 1e-6
"""Largest difference between probabilities of one model in two tables."""


@dataclass(frozen=True, kw_only=True)
class RunSlide:
    """Slide of a run: its patient, and the hash of its file, empty where that is unknown."""

    patient_id: str
    content_id: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPredictions:
    """Calibrated out-of-fold predictions of a run, with its patients, folds and slides.

    Attributes
    ----------
    path
        Folder of the run.
    classes, patient_ids, centres
        Classes in the order of the columns; patients; centre of each, empty where unknown.
    labels
        Class index of each patient, shape (patients,).
    fold
        Fold that tested each patient, shape (repeats, patients).
    proba
        Probabilities at the balanced prior, shape (repeats, patients, classes).
    is_nested
        Whether the calibrators are nested; else they are cross-fitted.
    slides
        Slides of the patients, by slide id.
    """

    path: Path
    classes: tuple[str, ...]
    patient_ids: tuple[str, ...]
    centres: tuple[str, ...]
    labels: Ints
    fold: Ints
    proba: Floats
    is_nested: bool
    slides: Mapping[str, RunSlide]

    def select(self, patient_ids: Sequence[str]) -> RunPredictions:
        """Return the predictions of some of its patients, shape (repeats, n, classes), in order."""
        rows = {name: row for row, name in enumerate(self.patient_ids)}
        chosen = np.array([rows[name] for name in patient_ids], np.int64)
        wanted = set(patient_ids)
        return replace(
            self,
            patient_ids=tuple(patient_ids),
            centres=tuple(self.centres[row] for row in chosen.tolist()),
            labels=self.labels[chosen],
            fold=self.fold[:, chosen],
            proba=self.proba[:, chosen],
            slides={k: slide for k, slide in self.slides.items() if slide.patient_id in wanted},
        )


def write_held_out_predictions(
    folder: Path,
    proba: Mapping[str, Floats],
    *,
    classes: Sequence[str],
    patient_ids: Sequence[str],
    labels: Ints,
    centres: Sequence[str],
    fold: Ints,
    more: Mapping[str, Ints] | None = None,
) -> None:
    """Write ``judged.csv``: predictions of patients by models fitted on others.

    It has one row per repeat and patient, and is read by :func:`read_run_predictions`.

    Parameters
    ----------
    folder
        Folder of the run.
    proba
        Probabilities at the balanced prior, shape (repeats, patients, classes), by the prefix of
        their columns: ``calibrated``, ``raw`` and others.
    classes, patient_ids, centres
        Names of classes, patients, and the centre of each patient.
    labels, fold
        Class index, shape (patients,), and fold that held the patient out, shape (repeats,
        patients).
    more
        Further columns by name, shape (patients,).

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    of_repeats = []
    for repeat, of_fold in enumerate(fold):
        columns: dict[str, object] = {
            "repeat": repeat,
            "fold": of_fold,
            "patient_id": patient_ids,
            "label": [classes[label] for label in labels],
            "center_id": centres,
            **(more or {}),
        }
        for prefix, values in proba.items():
            columns |= {f"{prefix}_{n}": values[repeat, :, i] for i, n in enumerate(classes)}
        of_repeats.append(pd.DataFrame(columns))
    write_table(folder / "judged.csv", pd.concat(of_repeats))


def several_labels_error(path: Path) -> RunError:
    """Return the error on a run of several labels, where the run of one of them is needed."""
    first = min((path / "labels").glob("*"), default=path / "labels")
    return RunError(
        path,
        actual="a run of several labels",
        expected="the run of one of them",
        hint=f"Name one, such as {shlex.quote(str(first))}.",
    )


def read_run_predictions(path: str | Path, *, kind: str = "calibrated") -> RunPredictions:
    """Read the out-of-fold predictions of a run, shape (repeats, patients, classes).

    ``kind`` is the prefix of their columns in ``judged.csv``.

    Raises
    ------
    RunError
        If the folder is not a finished run of one label, or its tables are absent or damaged.
    """
    path = Path(path)
    if (path / "labels.json").is_file():
        raise several_labels_error(path)
    if not any((path / name).is_file() for name in _MARKERS):
        raise no_run_error(path)
    check_run(path)
    try:
        table, slides = read_table(path / "judged.csv"), _read_slides(path / "slides.csv")
        check_held_out(path, table)
        return _parse(path, table, slides, f"{kind}_")
    except (*CONTENT_ERRORS, TableError) as error:
        raise RunError(
            path,
            actual=f"no out-of-fold predictions ({one_line(str(error), max_chars=200)})",
            expected="judged.csv and slides.csv as 'mil train' wrote them",
            hint="Copy the run again, or train again with 'mil train'.",
        ) from error


def check_held_out(path: Path, table: pd.DataFrame) -> None:
    """Raise ValueError if the rows of ``judged.csv`` are of another run than ``out_of_fold.csv``.

    Runs of earlier versions hold no digest of it.
    """
    if not (path / "out_of_fold.csv").is_file():
        return
    stated = read_table(path / "out_of_fold.csv").set_index("patient_id").astype(np.float64)
    held_out = table.set_index("patient_id")[[f"calibrated_{name}" for name in stated]]
    mean = held_out.astype(np.float64).groupby(level=0).mean()
    difference = np.abs(mean.to_numpy() - stated.reindex(mean.index).to_numpy())
    if not (difference <= _TOLERANCE).all():
        raise ValueError("judged.csv is of another run than out_of_fold.csv")


def read_run_scores(path: Path) -> dict[str, Interval]:
    """Return the scores of a run's calibrated out-of-fold predictions by metric; empty without."""
    try:
        scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))["calibrated"]
        return {metric: Interval.from_dict(of) for metric, of in scores.items()}
    except CONTENT_ERRORS:
        return {}


def _parse(
    path: Path, table: pd.DataFrame, slides: Mapping[str, RunSlide], prefix: str
) -> RunPredictions:
    columns = list(table.columns)
    classes = tuple(n.removeprefix(prefix) for n in columns if n.startswith(prefix))
    repeats = table["repeat"].astype(np.int64).to_numpy()
    n_repeats = int(repeats.max()) + 1
    first = table[repeats == 0]
    shape = (n_repeats, len(first), len(classes))
    if (repeats.reshape(n_repeats, -1) != np.arange(n_repeats)[:, None]).any():
        raise ValueError("judged.csv lacks rows")
    proba = table[[f"{prefix}{name}" for name in classes]].to_numpy(np.float64).reshape(shape)
    if len(classes) < 2 or not np.isfinite(proba).all() or proba.min() < 0:
        raise ValueError("judged.csv holds no probabilities of two classes")
    ids = tuple(first["patient_id"].map(normalize_name))
    if len(set(ids)) < len(ids) or (table["patient_id"].to_numpy().reshape(shape[:2]) !=
                                    first["patient_id"].to_numpy()).any():  # fmt: skip
        raise ValueError("judged.csv has other patients in each repeat")
    return RunPredictions(
        path=path,
        classes=classes,
        patient_ids=ids,
        centres=tuple(first["center_id"]),
        labels=np.array([classes.index(label) for label in first["label"]], np.int64),
        fold=table["fold"].to_numpy(np.int64).reshape(shape[:2]),
        proba=proba,
        is_nested=any(name.startswith(_NESTED_PREFIX) for name in columns),
        slides=slides,
    )


def _read_slides(path: Path) -> dict[str, RunSlide]:
    return {
        normalize_name(row["slide_id"]): RunSlide(
            patient_id=normalize_name(row["patient_id"]),
            # That of an imported bag depends on its embeddings.
            content_id="" if row["content_id"].startswith(UNKNOWN) else row["content_id"],
        )
        for row in read_table(path).to_dict("records")
    }
