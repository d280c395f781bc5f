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
    repeat, never on a patient of the same group. Logits and results have shape (repeats, patients,
    classes), ``folds`` (where a patient is held out) has shape (repeats, patients), ``labels`` and
    ``groups``, from :func:`mil.data.patient_groups.group_ids`, shape (patients,).

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, a logit is not finite, or fewer than three patients of a
        class are outside a fold.
    """
    proba = np.full(logits.shape, np.nan)
    groups = np.arange(len(labels)) if groups is None else groups
    for repeat, repeat_folds in enumerate(folds):
        for fold in np.unique(repeat_folds):
            held_out = repeat_folds == fold
            train = ~np.isin(groups, groups[held_out])
            fitted = build_calibrator(calibrator).fit(logits[repeat, train], labels[train])
            proba[repeat, held_out] = fitted.predict_proba(logits[repeat, held_out])
    return proba
