"""Folds of patients, stratified by class, and written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.files import written_beside
from features.tables import read_table
from mil.cohort import Cohort
from mil.errors import SplitError

__all__ = ["Fold", "patient_folds", "read_folds", "stratified_parts", "write_folds"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One split of the patients: those to learn from and those to judge."""

    repeat: int
    """Which cross-validation it belongs to, from 0."""
    index: int
    """Which fold of it, from 0."""
    train_ids: tuple[str, ...]
    """Patients to learn from, in the cohort's order."""
    test_ids: tuple[str, ...]
    """Patients to judge, in the cohort's order; none of them is in ``train_ids``."""


def patient_folds(cohort: Cohort, *, n_folds: int, n_repeats: int, seed: int) -> tuple[Fold, ...]:
    """Stratified folds of patients: each patient is judged exactly once a repeat.

    Within a repeat, the patients of a class are spread so that folds differ by at most one of
    them; the same seed gives the same folds.

    Raises
    ------
    SplitError
        If a class has fewer patients than there are folds.
    """
    for name, count in cohort.class_counts().items():
        if count < n_folds:
            raise SplitError(
                cohort.path,
                found=f"{count} patients of class {name!r}",
                expected=f"at least {n_folds}, one for each fold",
                advice=f"Use fewer folds (--folds {max(2, count)}), or more patients.",
            )
    ids = np.array(cohort.patient_ids)
    folds = []
    for repeat in range(n_repeats):
        parts = stratified_parts(cohort.labels, n_parts=n_folds, seed=(seed, repeat))
        for index in range(n_folds):
            folds.append(
                Fold(
                    repeat=repeat,
                    index=index,
                    train_ids=tuple(ids[parts != index].tolist()),
                    test_ids=tuple(ids[parts == index].tolist()),
                )
            )
    return tuple(folds)


def stratified_parts(labels: Ints, *, n_parts: int, seed: Sequence[int]) -> Ints:
    """A part for each patient, every class spread evenly over the parts.

    Parameters
    ----------
    labels
        Class index of each patient, shape (n,).
    n_parts
        Number of parts.
    seed
        One or more numbers that decide the shuffling.

    Returns
    -------
    numpy.ndarray
        Shape (n,), 0 to ``n_parts`` - 1. For each class, parts differ by at most one patient.
    """
    rng = np.random.default_rng(tuple(seed))
    parts = np.empty(len(labels), np.int64)
    offset = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # Dealing goes on where the last class stopped, so that whole parts also stay even.
        parts[members] = (np.arange(len(members)) + offset) % n_parts
        offset += len(members)
    return parts


def write_folds(path: Path, folds: Sequence[Fold]) -> None:
    """Write which patient is judged in which fold of which repeat.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    rows = [(fold.repeat, fold.index, patient) for fold in folds for patient in fold.test_ids]
    with written_beside(path) as beside:
        pd.DataFrame(rows, columns=["repeat", "fold", "patient_id"]).to_csv(
            beside, index=False, lineterminator="\n"
        )


def read_folds(path: Path) -> tuple[Fold, ...]:
    """Read what :func:`write_folds` wrote.

    Raises
    ------
    TableError
        If the table cannot be read.
    """
    table = read_table(path)
    folds = []
    for repeat, of_repeat in table.groupby(table["repeat"].astype(int)):
        numbers = of_repeat["fold"].astype(int)
        for index in sorted(set(numbers)):
            folds.append(
                Fold(
                    repeat=int(str(repeat)),
                    index=index,
                    train_ids=tuple(of_repeat["patient_id"][numbers != index]),
                    test_ids=tuple(of_repeat["patient_id"][numbers == index]),
                )
            )
    return tuple(folds)
