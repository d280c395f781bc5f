"""Weights of a stack for prediction sets: fitted without the fold, at the cost of few heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from features.parallel.base import Executor
from mil.calibration import Calibrator, build_calibrator
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.splits import Fold
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.covariates import add_covariates, fit_covariates
from mil.training.cross_validation import run_folds

__all__ = ["N_MEMBERS", "pair_calibrators", "pair_folds"]

N_MEMBERS = 1
"""Heads of an ensemble that is trained without two folds."""

_MOST_PAIRS = 45  # of ten folds


def pair_folds(cohort: Cohort, folds: Sequence[Fold]) -> tuple[Fold, ...]:
    """Return a fold per pair of folds of the first repeat: it tests the patients of both.

    They are in the order of ``itertools.combinations``. There are none where a pair leaves no
    patient of some class to train on, as two folds do, or where there are more than ten folds.
    """
    first = [fold for fold in folds if fold.repeat == 0]
    label_of = {patient.patient_id: patient.label for patient in cohort.patients}
    pairs: list[Fold] = []
    for one, other in combinations(first, 2):
        seen = set(other.train_ids)
        train_ids = tuple(name for name in one.train_ids if name in seen)
        if len(Counter(label_of[name] for name in train_ids)) < len(cohort.classes):
            return ()
        tested = (*one.test_ids, *other.test_ids)
        pairs.append(Fold(repeat=0, index=len(pairs), train_ids=train_ids, test_ids=tested))
    return tuple(pairs) if len(pairs) <= _MOST_PAIRS else ()


def pair_calibrators(
    bags: PatientBags,
    cohort: Cohort,
    folds: Sequence[Fold],
    pairs: Sequence[Fold],
    *,
    config: TrainConfig,
    seed: int,
    calibrator: str,
    on_head: Callable[[], None],
    checkpoints: Checkpoints | None = None,
    executor: Executor | None = None,
) -> dict[tuple[int, int], Calibrator]:
    """Return a calibrator by repeat and fold that nothing of the fold's patients has a part in.

    For fold k it is fitted on the patients of each other fold j, with the logits, shape (learners,
    classes), of a stack that was trained without the folds j and k. That is a cross-validation
    within the training patients of every fold, as for nested scores; but the stack without j and k
    serves both, and has one head. ``pairs`` are those of :func:`pair_folds`; the other arguments
    are those of :func:`mil.training.cross_validation.cross_validate`.

    Raises
    ------
    RunError
        If training a fold ends every worker that runs it.
    CalibrationError
        If too few patients of a class are outside a fold.
    """
    if not pairs:
        return {}
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    first = [fold for fold in folds if fold.repeat == 0]
    results = run_folds(
        bags, labels, pairs, n_classes=len(cohort.classes),
        config=replace(config, n_members=N_MEMBERS),
        seeds=[(seed, 4, pair.index) for pair in pairs], on_head=on_head,
        checkpoints=checkpoints, executor=executor,
    )  # fmt: skip
    if cohort.covariates:
        results = [
            add_covariates(result, fit_covariates(cohort, pair.train_ids, config), cohort)
            for pair, result in zip(pairs, results, strict=True)
        ]
    logits_of = {
        (one.index, other.index): result.logits
        for (one, other), result in zip(combinations(first, 2), results, strict=True)
    }
    return {
        (0, fold.index): _fit_without(fold, first, logits_of, labels, calibrator=calibrator)
        for fold in first
    }


def _fit_without(
    fold: Fold,
    folds: Sequence[Fold],
    logits_of: Mapping[tuple[int, int], Mapping[str, np.ndarray]],
    labels: Mapping[str, int],
    *,
    calibrator: str,
) -> Calibrator:
    """Return the calibrator of the other folds' patients, by stacks that saw neither fold."""
    usable = set(fold.train_ids)
    rows, truth = [], []
    for other in folds:
        if other.index == fold.index:
            continue
        pair = logits_of[min(fold.index, other.index), max(fold.index, other.index)]
        for name in other.test_ids:
            if name in usable and name in pair:
                rows.append(pair[name])
                truth.append(labels[name])
    fitted = build_calibrator(calibrator, stacked=rows[0].ndim == 2)
    return fitted.fit(np.stack(rows), np.array(truth, np.int64))
