"""Shortcut variables, which correlate with a class without being tissue, and a model of them.

A head can learn the centre from colour and scanner, or the class from the size of a bag; its score
then does not generalise to other centres (Howard et al., 2021: site signatures in embeddings).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mil.arrays import Floats
from mil.data.cohort import Patient

__all__ = ["ALL_SHORTCUTS", "shortcut_features", "shortcut_model"]

ALL_SHORTCUTS = "all"
"""Name of all columns together."""


def shortcut_features(patients: Sequence[Patient]) -> dict[str, Floats]:
    """Return the shortcut variables of a cohort table that vary, each of shape (patients, columns).

    ``centre`` has one column per centre, ``slides`` the logarithm of the number of slides.
    """
    columns: dict[str, Floats] = {}
    names = sorted({patient.center_id or "" for patient in patients})
    if len(names) > 1:
        columns["centre"] = np.eye(len(names))[[names.index(p.center_id or "") for p in patients]]
    counts = np.log([[len(patient.slide_ids)] for patient in patients])
    if np.ptp(counts) > 0:
        columns["slides"] = counts
    return columns


def shortcut_model(name: str) -> Pipeline:
    """Return an unfitted logistic regression of shape (patients, columns) with balanced classes.

    Columns are joined by their squares and products, except indicators of centres (``centre``).
    """
    squares = () if name == "centre" else (PolynomialFeatures(2, include_bias=False),)
    regression = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), *squares, StandardScaler(), regression)
