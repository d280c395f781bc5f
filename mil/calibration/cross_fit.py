"""Cross-fitting: each patient's calibrator is fitted on other patients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mil.arrays import Floats, Ints
from mil.calibration.base import Calibrator, build_calibrator

__all__ = ["cross_fit", "fit_per_fold"]


_Kind = str | Callable[[Floats, Ints], Calibrator]


def cross_fit(
    logits: Floats, labels: Ints, folds: Ints, *, calibrator: _Kind, groups: Ints | None = None
) -> Floats:
    """Return cross-fitted probabilities at the balanced prior, shape (repeats, patients, classes).

    The patients of each fold are calibrated by a calibrator fitted on the other folds of the same
    repeat, never on a patient of the same group. Logits have the shape of the result, or (repeats,
    patients, learners, classes) for a stack; ``folds`` (where a patient is held out) has shape
    (repeats, patients), ``labels`` and ``groups``, from
    :func:`mil.data.patient_groups.group_ids`, shape (patients,). ``calibrator`` is a name, or a
    function of logits and labels that returns a fitted calibrator.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, a logit is not finite, or fewer than three patients of a
        class are outside a fold.
    """
    proba = np.full((*logits.shape[:2], logits.shape[-1]), np.nan)
    for repeat, of_repeat in enumerate(folds):
        fitted = fit_per_fold(
            logits[repeat], labels, of_repeat, calibrator=calibrator, groups=groups
        )
        for fold, own in fitted.items():
            held_out = of_repeat == fold
            proba[repeat, held_out] = own.predict_proba(logits[repeat, held_out])
    return proba


def fit_per_fold(
    logits: Floats, labels: Ints, folds: Ints, *, calibrator: _Kind, groups: Ints | None = None
) -> dict[int, Calibrator]:
    """Return a calibrator per fold of one repeat, fitted on the patients of the other folds.

    Arguments are those of :func:`cross_fit` without the axis of repeats: logits have shape
    (patients, classes) or (patients, learners, classes), ``folds`` shape (patients,).

    Raises
    ------
    CalibrationError
        As for :func:`cross_fit`.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    fitted, stacked = {}, logits.ndim == 3
    for fold in np.unique(folds).tolist():
        train = ~np.isin(groups, groups[folds == fold])
        fit = (
            calibrator
            if callable(calibrator)
            else build_calibrator(calibrator, stacked=stacked).fit
        )
        fitted[fold] = fit(logits[train], labels[train])
    return fitted
