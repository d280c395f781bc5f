"""Folds of patients, stratified over several labels at once."""

from __future__ import annotations

import numpy as np

from mil.arrays import Ints
from mil.calibration import MIN_PATIENTS_PER_CLASS
from mil.data.patient_groups import LinkedPairs, assign_groups, group_ids
from mil.data.splits import Fold, folds_from_ids
from mil.errors import SplitError
from mil.multilabel.table import LabelTable

__all__ = ["iterative_stratification", "label_folds"]


def label_folds(
    table: LabelTable, *, n_folds: int, n_repeats: int, seed: int, linked: LinkedPairs = ()
) -> tuple[Fold, ...]:
    """Return folds of patients, stratified by every label of truth, shape (patients, labels).

    Linked patients are in one fold.

    Raises
    ------
    SplitError
        If a label has fewer patients with it, or without it, than there are folds.
    """
    groups = group_ids(table.patients.patient_ids, linked)
    truth = table.truth[np.unique(groups)]
    n_patients, with_it = len(truth), truth.sum(axis=0)
    fewest = np.minimum(with_it, n_patients - with_it)
    if fewest.min() < n_folds:
        rarest = int(fewest.argmin())
        enough = fewest.min() > MIN_PATIENTS_PER_CLASS  # for as many folds
        fewer = f"Use fewer folds (--folds {fewest.min()}), or leave it out of --labels."
        raise SplitError(
            table.patients.path,
            actual=f"{with_it[rarest]} of {n_patients} patients with label {table.names[rarest]!r}",
            expected=f"at least {n_folds} with it and without it, one for each fold",
            hint=fewer if enough else "Leave it out of --labels, or add patients.",
        )
    folds: list[Fold] = []
    for repeat in range(n_repeats):

        def assign(patients: Ints, *, repeat: int = repeat) -> Ints:
            return iterative_stratification(
                table.truth[patients], n_parts=n_folds, seed=(seed, repeat)
            )

        folds += folds_from_ids(table.patients, assign_groups(groups, assign), repeat=repeat)
    return tuple(folds)


def iterative_stratification(truth: Ints, *, n_parts: int, seed: tuple[int, ...]) -> Ints:
    """Return the part of each patient, every label spread over the parts (Sechidis et al., 2011).

    The rarest remaining label is assigned first: each of its patients goes to the part that lacks
    most of the label; ties go to the part that lacks most of the patient's other labels, then to
    the one that lacks most patients, then to a random one. The same seed gives the same parts.
    ``truth``, shape (patients, labels), is 0 or 1; the result has shape (patients,).
    """
    rng = np.random.default_rng(seed)
    # An extra column spreads the patients without any label evenly too.
    every = np.column_stack([truth, truth.sum(axis=1) == 0]).astype(np.int64)
    wanted = np.tile(every.sum(axis=0) / n_parts, (n_parts, 1))  # (parts, labels)
    room = np.full(n_parts, len(truth) / n_parts)
    parts = np.full(len(truth), -1, np.int64)
    while (left := parts < 0).any():
        counts = every[left].sum(axis=0)
        label = int(np.where(counts > 0, counts, len(truth) + 1).argmin())
        for patient in rng.permutation(np.flatnonzero(left & (every[:, label] == 1))):
            chance = rng.random(n_parts)
            also = wanted @ every[patient]  # (parts,)
            part = np.lexsort((chance, -room, -also, -wanted[:, label]))[0]
            parts[patient] = part
            wanted[part] -= every[patient]
            room[part] -= 1
    return parts
