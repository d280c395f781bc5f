"""Patients who share a slide: wherever patients are split, they stay on one side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["LinkedPairs", "assign_groups", "group_ids"]

Ints = npt.NDArray[np.int64]
LinkedPairs = Sequence[tuple[str, str]]
"""Pairs of ids of patients under both of whom one slide stands. What one of them taught would be
asked again of the other."""


def group_ids(patient_ids: Sequence[str], linked: LinkedPairs) -> Ints:
    """Who stands for each patient: the first of those who share slides, directly or by others.

    Parameters
    ----------
    patient_ids
        The patients.
    linked
        Pairs of patients; those who are not among the patients join nobody.

    Returns
    -------
    numpy.ndarray
        Place among the patients, shape (patients,); that of the patient who shares nothing is its
        own.
    """
    n_patients = len(patient_ids)
    if not linked:
        return np.arange(n_patients)
    places = {name: place for place, name in enumerate(patient_ids)}
    pairs = [(places[one], places[two]) for one, two in linked if {one, two} <= places.keys()]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    shared = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n_patients, n_patients))
    _, group = connected_components(shared, directed=False)
    _, first, of_group = np.unique(group, return_index=True, return_inverse=True)
    return np.asarray(first[of_group], np.int64)


def assign_groups(group: Ints, deal: Callable[[Ints], Ints]) -> Ints:
    """Parts of all patients where only those who stand for others or themselves are dealt.

    Parameters
    ----------
    group
        From :func:`group_ids`, shape (patients,).
    deal
        Given places of patients, shape (n,), the part of each, shape (n,).

    Returns
    -------
    numpy.ndarray
        Shape (patients,).
    """
    dealt, place = np.unique(group, return_inverse=True)
    return np.asarray(deal(dealt)[place], np.int64)
