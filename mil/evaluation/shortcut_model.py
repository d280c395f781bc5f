"""What goes along with a class without being tissue, and the small model that is given it alone.

A head can learn the centre from colour and scanner, or the class from the size of a bag; its score
is then real and worthless elsewhere (Howard et al., 2021: site signatures in embeddings).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from mil.data.cohort import Patient

__all__ = ["ALL_SHORTCUTS", "shortcut_features", "shortcut_model"]

ALL_SHORTCUTS = "all"
"""Name of all columns side by side."""


def shortcut_features(patients: Sequence[Patient]) -> dict[str, npt.NDArray[np.float64]]:
    """What a cohort table alone tells of patients, where they differ in it.

    Parameters
    ----------
    patients
        The patients.

    Returns
    -------
    dict
        ``centre``, one column a centre, and ``slides``, the logarithm of their number; shape
        (patients, columns).
    """
    found: dict[str, npt.NDArray[np.float64]] = {}
    names = sorted({patient.center_id or "" for patient in patients})
    if len(names) > 1:
        found["centre"] = np.eye(len(names))[[names.index(p.center_id or "") for p in patients]]
    counts = np.log([[len(patient.slide_ids)] for patient in patients])
    if np.ptp(counts) > 0:
        found["slides"] = counts
    return found


def shortcut_model(name: str) -> Pipeline:
    """A logistic regression with squares and products, classes weighed equally; not fitted.

    Parameters
    ----------
    name
        Of the column. Those of centres have no squares worth having: each has a rate of its own.
    """
    squares = () if name == "centre" else (PolynomialFeatures(2, include_bias=False),)
    regression = LogisticRegression(C=1.0, class_weight="balanced", max_iter=2000)
    return make_pipeline(StandardScaler(), *squares, StandardScaler(), regression)
