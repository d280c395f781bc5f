"""Prediction tables: reading, matching with a cohort, averaging."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from features.utils.tables import column_key, list_columns, read_table
from features.utils.text import is_missing_word, list_names, pluralize, spelling_hint
from mil.arrays import Floats
from mil.data.cohort import Cohort, match_ids, without_suffix
from mil.errors import PredictionsError

__all__ = [
    "Predictions",
    "align_classes",
    "average_predictions",
    "check_same_ids",
    "predicted_patients",
    "read_predictions",
    "read_probabilities",
]


_ID_COLUMNS = ("image_id", "slide_id", "patient_id")
_NOT_CLASSES = frozenset({
    "center_id", "image_num", "label", "fold", "repeat", "seed", *_ID_COLUMNS,
})  # fmt: skip
_PROBABILITY_NAMES = ("prediction", "predictions", "probability", "proba", "p", "score")
_DETAILS_COLUMNS = frozenset({"n_slides_used", "seen_in_training"})
"""Columns that only the table of details of ``mil infer`` has."""

_MIN_PROBABILITY = 1e-15
_LEAST_PROBABILITY, _MAX_PROBABILITY = -1e-6, 1 + 1e-6  # 0 and 1 may have been rounded.
_ROUNDED_SUM = 0.02
"""Largest distance from 1 of the sum of a row whose probabilities were rounded."""
_MAX_OTHER_CLASSES = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Probabilities of a cohort's patients, read from a table.

    Attributes
    ----------
    proba
        Shape (patients, columns), in the cohort's order; rows sum to 1. The cohort's classes come
        first, then ``other_classes``.
    other_classes
        Classes in the table that no patient of the cohort has.
    n_left_out
        Rows of the table that are of none of the patients.
    n_rescaled, sum_range
        Rows whose sum was not 1 even before rounding, and the smallest and largest sum of all.
    """

    proba: Floats
    other_classes: tuple[str, ...] = ()
    n_left_out: int = 0
    n_rescaled: int = 0
    sum_range: tuple[float, float] = (1.0, 1.0)


def read_predictions(
    path: Path,
    cohort: Cohort,
    *,
    class_name: str | None,
    known_classes: Sequence[str] = (),
    is_part: bool = False,
) -> Predictions:
    """Read the probabilities of a cohort from a CSV table.

    In a table of slides (with ``image_id`` or ``slide_id``), a patient's probabilities are the mean
    over its slides, each row rescaled to sum to 1. There is one column per class, or a single one
    for ``class_name``. Columns of classes that no patient of the cohort has are kept: those of
    ``known_classes``, and those without which rows do not sum to 1.

    With ``is_part``, the cohort is a part of the one that was predicted, and rows of others are
    left out.

    Raises
    ------
    PredictionsError
        If columns cannot be identified, a value is not a probability, or the patients of table and
        cohort differ.
    TableError
        If the table cannot be read.
    CohortError
        If its last row is one of totals, and the cohort is no part.
    """
    table = read_table(path)
    _refuse_details(path, table, cohort)
    ids, patient_of, nouns = match_ids(table, cohort, _ID_COLUMNS, where=path, has_others=is_part)
    wanted = ids.isin(list(patient_of)) | (not is_part)
    table, ids = table[wanted], ids[wanted]
    if table.empty:
        check_same_ids(path, ids, cohort, set(patient_of), what=nouns)
    other_classes: tuple[str, ...] = ()
    sums = np.ones(1)
    if class_name is None:
        names, other_classes = _find_classes(path, table, cohort, known_classes)
        stated = read_probabilities(path, table, names)
        values, sums = _rescale_rows(path, table, stated), stated.sum(axis=1)
    else:
        values = _read_pair(path, table, cohort, class_name)
    check_same_ids(path, ids, cohort, set(patient_of), what=nouns)
    means = pd.DataFrame(values).groupby(ids.map(patient_of).to_numpy()).mean()
    return Predictions(
        proba=np.asarray(means.loc[list(cohort.patient_ids)].to_numpy(), np.float64),
        other_classes=other_classes,
        n_left_out=int((~wanted).sum()),
        n_rescaled=int((np.abs(sums - 1) > _ROUNDED_SUM).sum()),
        sum_range=(float(sums.min()), float(sums.max())),
    )


def predicted_patients(path: Path, cohort: Cohort) -> tuple[str, ...]:
    """Return the patients of a cohort that a table has a row for, in the order of the cohort.

    Raises
    ------
    PredictionsError
        If it has none of them.
    TableError
        If the table cannot be read, or has no column of ids.
    """
    table = read_table(path)
    ids, patient_of, nouns = match_ids(table, cohort, _ID_COLUMNS, where=path, has_others=True)
    present = {patient_of[name] for name in ids if name in patient_of}
    if not present:
        raise PredictionsError(
            path,
            actual=f"none of the patients of {cohort.path}; its first: {', '.join(list(ids)[:3])}",
            expected=f"{nouns} such as {', '.join(list(patient_of)[:3])}",
            hint=spelling_hint(ids, patient_of),
        )
    return tuple(name for name in cohort.patient_ids if name in present)


def align_classes(tables: Sequence[Predictions]) -> list[Predictions]:
    """Return predictions with the same other classes; one that a table lacks has probability 0."""
    names = tuple(dict.fromkeys(name for table in tables for name in table.other_classes))
    aligned = []
    for table in tables:
        n_classes = table.proba.shape[1] - len(table.other_classes)
        columns = {name: n_classes + i for i, name in enumerate(table.other_classes)}
        zeros = np.zeros(len(table.proba))
        others = [table.proba[:, columns[name]] if name in columns else zeros for name in names]
        proba = np.column_stack([table.proba[:, :n_classes], *others])
        aligned.append(replace(table, proba=proba, other_classes=names))
    return aligned


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


def _refuse_details(path: Path, table: pd.DataFrame, cohort: Cohort) -> None:
    """Raise if a table is that of the details of ``mil infer``, without the probabilities."""
    probabilities = {*cohort.classes, *_PROBABILITY_NAMES}
    if not _DETAILS_COLUMNS.issubset(table.columns) or probabilities & set(table.columns):
        return
    beside = path.with_name(re.sub(r"\.details\.csv$", ".csv", path.name))
    raise PredictionsError(
        path,
        actual="the details of 'mil infer': slides, tiles and status",
        expected="a table of probabilities",
        hint=f"They are in {beside}."
        if beside != path and beside.is_file()
        else "They are in the table that 'mil infer' wrote beside it, without '.details' in the "
        "name.",
    )


def _find_classes(
    path: Path, table: pd.DataFrame, cohort: Cohort, known_classes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of all columns of probabilities, and those that no patient has as class.

    A class that no patient has must stay in the sum of its row. Whether a column is one is decided
    by the sums: rows of probabilities sum to 1 with it, and do not without it.
    """
    if absent := [name for name in cohort.classes if name not in table]:
        raise PredictionsError(
            path,
            actual=f"no column {absent[0]!r} among {list_columns(table)}",
            expected=f"one column per class: {list_names(cohort.classes)}",
            hint=spelling_hint(table.columns, absent)
            or _longer_name_hint(table, absent[0])
            or _columns_hint(table, cohort.classes),
        )
    known = [n for n in known_classes if n in table and n not in cohort.classes]
    sums = read_probabilities(path, table, [*cohort.classes, *known]).sum(axis=1)
    candidates = {
        name: values
        for name in table.columns
        if name not in {*cohort.classes, *known}
        and column_key(name) not in _NOT_CLASSES
        and (values := _as_probabilities(table[name])) is not None
        and values.any()
    }
    found: tuple[str, ...] = ()
    error = _distance_from_one(sums)
    for names in _subsets(list(candidates)):
        distance = _distance_from_one(sums + sum(candidates[name] for name in names))
        if distance < error - 1e-9:
            found, error = names, distance
    if candidates and error > _ROUNDED_SUM:
        raise PredictionsError(
            path,
            actual=f"rows of {', '.join([*cohort.classes, *known])} sum to {sums.min():.3g} to "
            f"{sums.max():.3g}, and {', '.join(list(candidates)[:5])} may be a class as well",
            expected="rows whose probabilities sum to 1 over all predicted classes",
            hint="Divide each row by its sum over all classes, or take out the columns that are "
            "not classes.",
        )
    others = (*known, *found)
    return (*cohort.classes, *others), others


def _longer_name_hint(table: pd.DataFrame, class_name: str) -> str:
    """Return which column, as ``prob_CE`` or ``CE_prob``, may be of a class; empty if none is.

    One with nothing but 0 and 1 says rather which class is true.
    """
    name = re.escape(class_name)
    pattern = re.compile(rf"[_\W]{name}$|^{name}[_\W]")
    near = next(
        (
            column
            for column in filter(pattern.search, table.columns)
            if column_key(column) not in _NOT_CLASSES
            and (values := _as_probabilities(table[column])) is not None
            and not np.isin(values, (0, 1)).all()
        ),
        "",
    )
    return f"If {near!r} holds its probability, rename it to {class_name!r}." if near else ""


def _columns_hint(table: pd.DataFrame, classes: Sequence[str]) -> str:
    """Return what to do about a table, shape (rows, columns), without columns of these classes."""
    others = [table[name] for name in table.columns if column_key(name) not in _NOT_CLASSES]
    n_probabilities = sum(_as_probabilities(column) is not None for column in others)
    if n_probabilities > 1:
        return "Name the columns of probabilities after their classes."
    if any(set(column) <= set(classes) for column in others):
        ids = [name for name in table.columns if column_key(name) in _ID_COLUMNS]
        if not n_probabilities:
            return "Scores need probabilities, not predicted classes."
        if table.duplicated(ids).any():
            return "Write one row per patient, with a column of probabilities per class."
    return "If one column holds the probability of a single class, name it with --class."


def _as_probabilities(column: pd.Series[str]) -> Floats | None:
    """Return a column as numbers from 0 to 1; None if it holds anything else."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    within = (values >= _LEAST_PROBABILITY) & (values <= _MAX_PROBABILITY)
    return np.clip(values, 0, 1) if within.all() else None


def _distance_from_one(sums: Floats) -> float:
    return float(np.abs(sums - 1).max())


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield combinations of names, the smallest first; of very many, only all of them."""
    if len(names) > _MAX_OTHER_CLASSES:
        yield tuple(names)
        return
    for size in range(1, len(names) + 1):
        yield from combinations(names, size)


def _read_pair(path: Path, table: pd.DataFrame, cohort: Cohort, class_name: str) -> Floats:
    """Return the probabilities of two classes, shape (rows, 2), from one column for one of them."""
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
    (other,) = (name for name in cohort.classes if name != class_name)
    column = _single_column(path, table, class_name, other=other)
    values = read_probabilities(path, table, [column])[:, 0]
    if column == class_name and other in table:
        sums = values + read_probabilities(path, table, [other])[:, 0]
        if _distance_from_one(sums) > _ROUNDED_SUM:
            raise PredictionsError(
                path,
                actual=f"{class_name} and {other} sum to {sums.min():.3g} to {sums.max():.3g}",
                expected="1 in each row, as the other class has the rest",
                hint="Leave --class out: the file has a column for each class.",
            )
    # The two classes' probabilities sum to 1.
    pair = np.stack([1 - values, values], axis=1)
    return pair if cohort.classes[1] == class_name else pair[:, ::-1]


def _single_column(path: Path, table: pd.DataFrame, class_name: str, *, other: str) -> str:
    """Return the column of a class's probabilities.

    It has the name of the class or a usual one, or is the only column of numbers.
    """
    for name in (class_name, *_PROBABILITY_NAMES):
        if name in table:
            return name
    if other in table:
        raise PredictionsError(
            path, actual=f"a column {other!r} and none for {class_name!r}",
            expected=f"probabilities of {class_name}",
            hint=f"If they are those of {other}, use --class {shlex.quote(other)}.",
        )  # fmt: skip
    numbers = [
        str(name)
        for name in table.columns
        if column_key(name) not in _NOT_CLASSES
        and pd.to_numeric(table[name], errors="coerce").notna().all()
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
    bad = ~np.isfinite(values) | (values < _LEAST_PROBABILITY) | (values > _MAX_PROBABILITY)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        text = table[names[column]].iloc[row]
        raise PredictionsError(
            f"{path}, row {table.index[row] + 2}",
            actual=f"{names[column]} is {text!r}",
            expected="a probability, from 0 to 1",
            hint=_probability_hint(text, values),
        )
    return np.asarray(np.clip(values, 0, 1), np.float64)


def _unknown_hint(ids: pd.Series[str], cohort: Cohort, known: Collection[str]) -> str:
    """Return how to score the rows whose ids are known, if there are any."""
    if set(ids).isdisjoint(known):
        slides = {slide for patient in cohort.patients for slide in patient.slide_ids}
        if not set(ids.map(without_suffix)).isdisjoint(slides - set(known)):
            return "They are ids of slides: name their column 'slide_id'."
        if not set(ids).isdisjoint(set(cohort.patient_ids) - set(known)):
            return "They are ids of patients: name their column 'patient_id'."
        return (
            f"No id is in both: name them as the labels do, such as {', '.join(sorted(known)[:3])}."
        )
    return "To score only those with labels, give the table of labels with --patients too."


def _probability_hint(text: str, values: Floats) -> str:
    """Return what to do about a text that is no probability, among ``values``, (rows, columns)."""
    if "," in text:
        return "Write it with a decimal point, such as 0.61."
    if (values < 0).any():
        return "If these are logits, turn each row into probabilities by the softmax."
    number = pd.to_numeric(text.strip().removesuffix("%"), errors="coerce")
    if 1 < number <= 100 or "%" in text:
        return "Divide percentages by 100."
    if is_missing_word(text):
        return (
            "To leave its patient out, delete the row; 'mil score' takes the others by --patients."
        )
    if np.isfinite(values).any():
        return "Write a number such as 0.61."
    return "Scores need probabilities, not predicted classes."


def _rescale_rows(path: Path, table: pd.DataFrame, values: Floats) -> Floats:
    """Return rows, shape (rows, classes), divided by their sums."""
    sums = values.sum(axis=1, keepdims=True)
    if not (sums > 0).all():
        row = int(np.flatnonzero(sums[:, 0] == 0)[0])
        raise PredictionsError(
            f"{path}, row {table.index[row] + 2}",
            actual="all probabilities are 0",
            expected="a sum above 0",
            hint="To leave its patient out, delete the row; 'mil score' takes the others by "
            "--patients.",
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
            actual=f"{pluralize(len(set(duplicates)), what)} more than once "
            f"({list_names(list(dict.fromkeys(duplicates)))})",
            expected="one row each",
            hint="Delete all rows of each but one.",
        )
    if unknown := sorted(set(ids) - known):
        raise PredictionsError(
            path,
            actual=f"{pluralize(len(unknown), what)} that {cohort.path} does not have "
            f"({list_names(unknown)})",
            expected="predictions and labels of the same patients",
            hint=spelling_hint(unknown, known - set(ids)) or _unknown_hint(ids, cohort, known),
        )
    if missing := sorted(known - set(ids)):
        raise PredictionsError(
            path,
            actual=f"no row for {len(missing)} of {len(known)} {what} ({list_names(missing)})",
            expected="a row for each",
            hint="To score some patients only, list them in a table and give it with --patients.",
        )
