"""Cross-fitting: each patient's calibrator is fitted on other patients."""

from __future__ import annotations

import numpy as np

from mil.arrays import Floats, Ints
from mil.calibration.base import build_calibrator

__all__ = ["cross_fit"]


def cross_fit(
    logits: Floats, labels: Ints, folds: Ints, *, calibrator: str, groups: Ints | None = None
) -> Floats:
    """Return cross-fitted probabilities at the balanced prior.

    The patients of each fold are calibrated by a calibrator fitted on the other folds of the same
    repeat. Patients of one group are never on both sides.

    Parameters
    ----------
    logits
        float64, shape (repeats, patients, classes).
    labels
        Index of the true class, int64, shape (patients,).
    folds
        Fold in which each patient is held out, int64, shape (repeats, patients).
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.
    groups
        Group of each patient, shape (patients,), from :func:`mil.data.patient_groups.group_ids`. By
        default each patient is a group.

    Returns
    -------
    numpy.ndarray
        float64, shape (repeats, patients, classes); rows sum to 1.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, a logit is not finite, or fewer than three patients of a
        class are outside a fold.
    """
    proba = np.full(logits.shape, np.nan)
    groups = np.arange(len(labels)) if groups is None else groups
    for repeat, of_repeat in enumerate(folds):
        for fold in np.unique(of_repeat):
            held_out = of_repeat == fold
            train = ~np.isin(groups, groups[held_out])
            fitted = build_calibrator(calibrator).fit(logits[repeat, train], labels[train])
            proba[repeat, held_out] = fitted.predict_proba(logits[repeat, held_out])
    return proba
