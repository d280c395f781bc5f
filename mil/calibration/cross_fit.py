"""Cross-fitting: each patient's calibrator is fitted on other patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mil.calibration.auto import AutoCalibrator
from mil.calibration.base import Floats, Ints, build_calibrator

__all__ = ["CrossFitted", "cross_fit"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFitted:
    """Probabilities by calibrators that had not seen the patient."""

    proba: Floats
    """At the balanced prior, shape (repeats, patients, classes)."""
    kinds: Mapping[str, int]
    """How many of the calibrators were of which kind; tells what ``auto`` picked."""


def cross_fit(
    logits: Floats, labels: Ints, folds: Ints, *, calibrator: str, groups: Ints | None = None
) -> CrossFitted:
    """Calibrate each fold of each repeat by what the repeat's other folds say.

    A patient is one row, so all its slides are on one side. Patients for whom the same one stands
    are never on two.

    Parameters
    ----------
    logits
        Shape (repeats, patients, classes), float64.
    labels
        Shape (patients,), index of the true class.
    folds
        Shape (repeats, patients): in which fold each patient is judged.
    calibrator
        Name, see :func:`mil.calibration.base.build_calibrator`.
    groups
        From :func:`mil.data.patient_groups.group_ids`, shape (patients,); by default everybody's
        own place.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, a logit is not finite, or fewer than three patients of a
        class lie outside a fold.
    """
    proba = np.full(logits.shape, np.nan)
    kinds: Counter[str] = Counter()
    groups = np.arange(len(labels)) if groups is None else groups
    for repeat, of_repeat in enumerate(folds):
        for fold in np.unique(of_repeat):
            judged = of_repeat == fold
            seen = ~np.isin(groups, groups[judged])
            fitted = build_calibrator(calibrator, n_classes=logits.shape[2]).fit(
                logits[repeat, seen], labels[seen]
            )
            proba[repeat, judged] = fitted.predict_proba(logits[repeat, judged])
            kinds[(fitted.picked_ if isinstance(fitted, AutoCalibrator) else fitted).kind] += 1
    return CrossFitted(proba=proba, kinds=dict(kinds))
