"""Groups of patients linked by a shared slide, which stay together in every split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mil.arrays import Ints

__all__ = ["LinkedPairs", "assign_groups", "group_ids"]

LinkedPairs = Sequence[tuple[str, str]]
"""Pairs of ids of patients that share a slide: in different folds, the slide would be in training
and test data at once."""


def group_ids(patient_ids: Sequence[str], linked: LinkedPairs) -> Ints:
    """Return a group index per patient, equal for patients linked directly or through others.

    It is the index of the group's first patient, shape (patients,); the own index without links.
    Pairs with other patients are ignored.
    """
    n_patients = len(patient_ids)
    if not linked:
        return np.arange(n_patients)
    indices = {name: index for index, name in enumerate(patient_ids)}
    pairs = [(indices[one], indices[two]) for one, two in linked if {one, two} <= indices.keys()]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    edges = coo_array((np.ones(len(rows)), (rows, columns)), shape=(n_patients, n_patients))
    _, component = connected_components(edges, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)


def assign_groups(groups: Ints, assign: Callable[[Ints], Ints]) -> Ints:
    """Assign folds to the first patient of each group, and to the others with it.

    ``groups`` is the result of :func:`group_ids`, shape (patients,), as are the folds. ``assign``
    maps indices of patients, shape (n,), to their folds, shape (n,).
    """
    first, inverse = np.unique(groups, return_inverse=True)
    return np.asarray(assign(first)[inverse], np.int64)
