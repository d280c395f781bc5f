"""Prediction tables: reading, matching with a cohort, averaging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from features.utils.tables import read_table
from mil.arrays import Floats
from mil.data.cohort import Cohort, without_suffix
from mil.errors import PredictionsError

__all__ = [
    "average_predictions",
    "check_same_ids",
    "read_predictions",
    "read_probabilities",
]


_SLIDE_COLUMNS = ("image_id", "slide_id")
_PROBABILITY_NAMES = ("prediction", "predictions", "probability", "proba", "p", "score")
_MIN_PROBABILITY = 1e-15
_MAX_PROBABILITY = 1 + 1e-6  # A 1 may have been rounded in a file.


def read_predictions(path: Path, cohort: Cohort, *, class_name: str | None) -> Floats:
    """Return the probabilities, shape (patients, classes), of a cohort from a CSV table.

    They are in the cohort's order, and rows sum to 1. In a table of slides (with ``image_id`` or
    ``slide_id``), a patient's probabilities are the mean over its slides, each row rescaled to sum
    to 1. There is one column per class, or a single one for ``class_name``.

    Raises
    ------
    PredictionsError
        If columns cannot be identified, a value is not a probability, or the patients of table and
        cohort differ.
    TableError
        If the table cannot be read.
    """
    table = read_table(path)
    id_name, names = _find_columns(path, table, cohort, class_name)
    values = read_probabilities(path, table, names)
    if class_name is None:
        values = _rescale_rows(path, values)
    else:
        # The two classes' probabilities sum to 1.
        pair = np.stack([1 - values[:, 0], values[:, 0]], axis=1)
        values = pair if cohort.classes[1] == class_name else pair[:, ::-1]
    ids = table[id_name]
    if id_name == "patient_id":
        check_same_ids(path, ids, cohort, set(cohort.patient_ids), what="patients")
    else:
        patients = cohort.patient_of_slide()
        ids = ids.map(without_suffix)
        check_same_ids(path, ids, cohort, set(patients), what="slides")
        ids = ids.map(patients)
    means = pd.DataFrame(values).groupby(ids.to_numpy()).mean()
    return np.asarray(means.loc[list(cohort.patient_ids)].to_numpy(), np.float64)


def average_predictions(
    predictions: Sequence[Floats], *, how: Literal["probability", "logit"]
) -> Floats:
    """Return the mean of several models' probabilities, shape (patients, classes) each.

    It is the arithmetic mean, or with ``how="logit"`` the mean of the logarithms, rescaled.
    """
    stacked = np.stack(predictions)
    if how == "probability":
        return np.asarray(stacked.mean(axis=0))
    product = np.exp(np.log(np.clip(stacked, _MIN_PROBABILITY, None)).mean(axis=0))
    return np.asarray(product / product.sum(axis=1, keepdims=True))


def _find_columns(
    path: Path, table: pd.DataFrame, cohort: Cohort, class_name: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the name of the column of ids, and those of the columns of probabilities."""
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
        if len(cohort.classes) != 2:
            raise PredictionsError(
                f"--class {class_name}", actual=f"{len(cohort.classes)} classes in the labels",
                expected="two, so that the other's probability is known",
            )  # fmt: skip
        return id_name, (_single_column(path, table, cohort),)
    if absent := [name for name in cohort.classes if name not in table]:
        raise PredictionsError(
            path,
            actual=f"no column {absent[0]!r} among {', '.join(table.columns)}",
            expected=f"one column per class: {', '.join(cohort.classes)}",
            hint="If one column holds the probability of a single class, name it with --class.",
        )
    return id_name, cohort.classes


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


def read_probabilities(path: Path, table: pd.DataFrame, names: Sequence[str]) -> Floats:
    """Return columns of probabilities, shape (rows, columns), 0 to 1.

    Raises
    ------
    PredictionsError
        If a value is not a probability.
    """
    values = table[list(names)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(values) | (values < 0) | (values > _MAX_PROBABILITY)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        text = table[names[column]].iloc[row]
        raise PredictionsError(
            f"{path}, row {row + 2}",
            actual=f"{names[column]} is {text!r}",
            expected="a probability, from 0 to 1",
            hint="Write it with a decimal point, such as 0.61." if "," in text else "",
        )
    return np.asarray(np.minimum(values, 1), np.float64)


def _rescale_rows(path: Path, values: Floats) -> Floats:
    """Return rows, shape (rows, classes), divided by their sums."""
    sums = values.sum(axis=1, keepdims=True)
    if not (sums > 0).all():
        row = int(np.flatnonzero(sums[:, 0] == 0)[0])
        raise PredictionsError(
            f"{path}, row {row + 2}", actual="all probabilities are 0", expected="a sum above 0"
        )
    return np.asarray(values / sums)


def check_same_ids(
    path: Path, ids: pd.Series[str], cohort: Cohort, known: set[str], *, what: str
) -> None:
    """Raise unless a table of predictions has one row for each of the known ids.

    Raises
    ------
    PredictionsError
        If ids are missing, unknown or duplicated.
    """
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
