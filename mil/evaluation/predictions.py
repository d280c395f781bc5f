"""Prediction tables: reading, matching with a cohort, averaging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.tables import read_table
from mil.data.cohort import Cohort, without_suffix
from mil.errors import PredictionsError

__all__ = ["average_predictions", "read_predictions"]

Floats = npt.NDArray[np.float64]

_SLIDE_COLUMNS = ("image_id", "slide_id")
_PROBABILITY_NAMES = ("prediction", "predictions", "probability", "proba", "p", "score")
_MIN_PROBABILITY = 1e-15
_MAX_PROBABILITY = 1 + 1e-6  # tolerates a 1 that was rounded in a file


@dataclass(frozen=True)
class _Columns:
    """Names of the columns with ids and probabilities."""

    id_name: str
    by_slide: bool
    names: tuple[str, ...]


def read_predictions(path: Path, cohort: Cohort, *, class_name: str | None) -> Floats:
    """Return the probabilities of a cohort's patients from a table of patients or of slides.

    In a table of slides (with ``image_id`` or ``slide_id``), a patient's probabilities are the mean
    over its slides, each row rescaled to sum to 1.

    Parameters
    ----------
    path
        CSV table: one column per class, or one column of probabilities if ``class_name`` is given.
    cohort
        Patients with labels.
    class_name
        Class of a single column of probabilities; None if there is one column per class.

    Returns
    -------
    numpy.ndarray
        Shape (patients, classes), float64, in the cohort's order; rows sum to 1.

    Raises
    ------
    PredictionsError
        If columns cannot be identified, a value is not a probability, or the patients of table and
        cohort differ.
    TableError
        If the table cannot be read.
    """
    table = read_table(path)
    columns = _find_columns(path, table, cohort, class_name)
    values = _read_values(path, table, columns, cohort, class_name)
    ids = table[columns.id_name]
    if columns.by_slide:
        ids = ids.map(without_suffix)
    _check_same_ids(path, ids, cohort, by_slide=columns.by_slide)
    if columns.by_slide:
        ids = ids.map(cohort.patient_of_slide())
    means = pd.DataFrame(values).groupby(ids.to_numpy()).mean()
    return np.asarray(means.loc[list(cohort.patient_ids)].to_numpy(), np.float64)


def average_predictions(
    predictions: Sequence[Floats], *, how: Literal["probability", "logit"]
) -> Floats:
    """Return the mean of several models, shape (patients, classes); rows sum to 1.

    Parameters
    ----------
    predictions
        Probabilities of each model, shape (patients, classes).
    how
        ``probability``: arithmetic mean. ``logit``: mean of the logarithms, rescaled.
    """
    stacked = np.stack(predictions)
    if how == "probability":
        return np.asarray(stacked.mean(axis=0))
    product = np.exp(np.log(np.clip(stacked, _MIN_PROBABILITY, None)).mean(axis=0))
    return np.asarray(product / product.sum(axis=1, keepdims=True))


def _find_columns(
    path: Path, table: pd.DataFrame, cohort: Cohort, class_name: str | None
) -> _Columns:
    slide_column = next((name for name in _SLIDE_COLUMNS if name in table), None)
    if slide_column is None and "patient_id" not in table:
        raise PredictionsError(
            path,
            actual=f"columns {', '.join(table.columns)}",
            expected="'patient_id', or 'image_id' (or 'slide_id') for a table of slides",
        )
    id_name = slide_column or "patient_id"
    if class_name is not None:
        if class_name not in cohort.classes:
            raise PredictionsError(
                f"--class {class_name}", actual="no such class in the labels",
                expected=" or ".join(cohort.classes),
            )  # fmt: skip
        return _Columns(id_name, slide_column is not None, (_single_column(path, table, cohort),))
    if absent := [name for name in cohort.classes if name not in table]:
        raise PredictionsError(
            path,
            actual=f"no column {absent[0]!r} among {', '.join(table.columns)}",
            expected=f"one column per class: {', '.join(cohort.classes)}",
            hint="If one column holds the probability of a single class, name it with --class.",
        )
    return _Columns(id_name, slide_column is not None, cohort.classes)


def _single_column(path: Path, table: pd.DataFrame, cohort: Cohort) -> str:
    """Return the column of probabilities: by a usual name, else the only numeric one."""
    for name in (*_PROBABILITY_NAMES, *cohort.classes):
        if name in table:
            return name
    ids = {"patient_id", "center_id", "image_num", *_SLIDE_COLUMNS}
    numbers = [
        str(name)
        for name in table.columns
        if name not in ids and pd.to_numeric(table[name], errors="coerce").notna().all()
    ]
    if len(numbers) != 1:
        raise PredictionsError(
            path,
            actual=f"{len(numbers)} columns of numbers ({', '.join(numbers[:5])})",
            expected="one column of probabilities",
            hint=f"Name it {_PROBABILITY_NAMES[2]!r}.",
        )
    return numbers[0]


def _read_values(
    path: Path,
    table: pd.DataFrame,
    columns: _Columns,
    cohort: Cohort,
    class_name: str | None,
) -> Floats:
    numbers = table[list(columns.names)].apply(pd.to_numeric, errors="coerce")
    values = numbers.to_numpy(np.float64)
    bad = ~np.isfinite(values) | (values < 0) | (values > _MAX_PROBABILITY)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        text = table[columns.names[column]].iloc[row]
        raise PredictionsError(
            f"{path}, row {row + 2}",
            actual=f"{columns.names[column]} is {text!r}",
            expected="a probability, from 0 to 1",
            hint="Write it with a decimal point, such as 0.61." if "," in text else "",
        )
    values = np.minimum(values, 1)
    if class_name is not None:
        return _other_classes(values[:, 0], cohort, class_name)
    sums = values.sum(axis=1, keepdims=True)
    if not (sums > 0).all():
        row = int(np.flatnonzero(sums[:, 0] == 0)[0])
        raise PredictionsError(
            f"{path}, row {row + 2}", actual="all probabilities are 0", expected="a sum above 0"
        )
    return np.asarray(values / sums)


def _other_classes(values: Floats, cohort: Cohort, class_name: str) -> Floats:
    """Return both classes' probabilities, shape (n, 2), from those of one."""
    if len(cohort.classes) != 2:
        raise PredictionsError(
            f"--class {class_name}", actual=f"{len(cohort.classes)} classes in the labels",
            expected="two, so that the other's probability is known",
        )  # fmt: skip
    pair = np.stack([1 - values, values], axis=1)
    return pair if cohort.classes[1] == class_name else pair[:, ::-1]


def _check_same_ids(path: Path, ids: pd.Series[str], cohort: Cohort, *, by_slide: bool) -> None:
    what = "slides" if by_slide else "patients"
    known = set(cohort.patient_of_slide()) if by_slide else set(cohort.patient_ids)
    if duplicates := sorted(ids[ids.duplicated()]):
        raise PredictionsError(
            path,
            actual=f"{len(duplicates)} {what} more than once ({_abbreviate(duplicates)})",
            expected="one row each",
        )
    if unknown := sorted(set(ids) - known):
        raise PredictionsError(
            path,
            actual=f"{len(unknown)} {what} that {cohort.path} does not have "
            f"({_abbreviate(unknown)})",
            expected="predictions and labels of the same patients",
        )
    if missing := sorted(known - set(ids)):
        raise PredictionsError(
            path,
            actual=f"no row for {len(missing)} of {len(known)} {what} ({_abbreviate(missing)})",
            expected="a row for each",
        )


def _abbreviate(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
