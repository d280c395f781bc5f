"""Out-of-fold logits: every patient judged by an ensemble that never saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from features.parallel.base import Executor
from features.parallel.local import LocalExecutor
from mil.calibration import Calibrator, build_calibrator, cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.patient_groups import LinkedPairs, group_ids
from mil.data.splits import Fold, SplitBy, make_folds
from mil.heads import Head
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.ensemble import MIN_VALIDATION_PER_CLASS, max_parallel_ensembles
from mil.training.fold_jobs import FoldJob, FoldRunner, FoldWorker, training_subset
from mil.training.trainer import EpochRecord

__all__ = [
    "OutOfFoldPredictions",
    "cross_fitted_probabilities",
    "cross_validate",
    "fit_calibrator",
    "inner_folds",
    "nested_probabilities",
    "resolve_stopping",
]

_LEAST_COMPONENTS = 8
_IMAGES_A_COMPONENT = 30

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFoldPredictions:
    """What ensembles say of patients they did not see."""

    patient_ids: tuple[str, ...]
    """Patients that have tiles, in the cohort's order."""
    labels: npt.NDArray[np.int64]
    """Class index of each, shape (patients,)."""
    logits: Floats
    """Mean logit of the ensemble, shape (repeats, patients, classes)."""
    fold: npt.NDArray[np.int64]
    """Fold in which each was judged, shape (repeats, patients)."""
    history: Mapping[tuple[int, int], tuple[EpochRecord, ...]]
    """Learning curves by repeat and fold."""
    heads: Mapping[tuple[int, int], tuple[Head, ...]]
    """The ensembles themselves, by repeat and fold."""
    linked: LinkedPairs = ()
    """Pairs of patients who share a slide."""
    averaged: Floats | None = None
    """Mean logit averaged over all looks at the tiles, shape of ``logits``; None without views."""

    def with_view_calibrator(self) -> OutOfFoldPredictions | None:
        """What is said where logits are averaged over views; None without views."""
        if self.averaged is None:
            return None
        return replace(self, logits=self.averaged, averaged=None)


def cross_validate(
    bags: PatientBags,
    cohort: Cohort,
    folds: Sequence[Fold],
    *,
    config: TrainConfig,
    seed: int,
    on_head: Callable[[], None] = lambda: None,
    checkpoints: Checkpoints | None = None,
    executor: Executor | None = None,
    outer_fold: Fold | None = None,
) -> OutOfFoldPredictions:
    """Judge every patient once a repeat by an ensemble trained on the other folds.

    What trains a fold receives a store that does not hold the fold's test patients; those are only
    shown to the finished ensemble. A tile filter that learned from some of them is fitted again
    without them before anything else. Patients without tiles are neither learned from nor judged.

    Parameters
    ----------
    bags
        Bags of the cohort.
    cohort
        Patients and labels.
    folds
        From :func:`mil.data.splits.patient_folds`.
    settings
        How ensembles are trained.
    seed
        Decides everything random.
    on_head
        Called after each head, and for heads of folds that are taken over.
    checkpoints
        Finished folds are kept there and taken over from there.
    executor
        Has ensembles trained by judges that hold these bags; None does it here, one after the
        other. The numbers are the same.
    outer_fold
        The fold in whose training part all this happens, where the executor's judges hold the bags
        of all patients and ``bags`` are those of :func:`mil.training.fold_jobs.training_subset`.

    Raises
    ------
    RunError
        If training a fold ends every worker of the executor that tries it.
    """
    names = bags.nonempty()
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    places = {name: index for index, name in enumerate(names)}
    n_repeats = 1 + max(fold.repeat for fold in folds)
    logits = np.full((n_repeats, len(names), len(cohort.classes)), np.nan)
    averaged = np.full_like(logits, np.nan)
    judged_in = np.full((n_repeats, len(names)), -1, np.int64)
    history, heads = {}, {}
    at_once = max_parallel_ensembles(bags, config)
    groups = [tuple(folds[start : start + at_once]) for start in range(0, len(folds), at_once)]
    assignments = [
        FoldJob(
            folds=group,
            labels=labels,
            n_classes=len(cohort.classes),
            config=config,
            seeds=tuple((seed, 1, fold.repeat, fold.index) for fold in group),
            outer_fold=outer_fold,
        )
        for group in groups
    ]
    bench = FoldRunner(
        executor or LocalExecutor(FoldWorker(bags)), checkpoints=checkpoints, on_head=on_head
    )
    for group, judgements in zip(groups, bench.judge(assignments), strict=True):
        for fold, judged in zip(group, judgements, strict=True):
            history[fold.repeat, fold.index] = judged.history
            heads[fold.repeat, fold.index] = judged.heads
            for name, logit in judged.logits.items():
                logits[fold.repeat, places[name]] = logit
                judged_in[fold.repeat, places[name]] = fold.index
            for name, logit in judged.averaged.items():
                averaged[fold.repeat, places[name]] = logit
    return OutOfFoldPredictions(
        patient_ids=names,
        labels=np.array([labels[name] for name in names], np.int64),
        logits=logits,
        fold=judged_in,
        history=history,
        heads=heads,
        linked=bags.linked_patients(),
        averaged=averaged if bags.views else None,
    )


def inner_folds(
    cohort: Cohort,
    folds: Sequence[Fold],
    *,
    by: SplitBy,
    n_folds: int,
    seed: int,
    linked: LinkedPairs = (),
) -> tuple[tuple[Fold, ...], ...]:
    """Folds inside the training patients of each fold, made as the folds themselves.

    Raises
    ------
    SplitError
        If a fold's training patients cannot be split so.
    """
    return tuple(
        make_folds(
            _restricted(cohort, fold.train_ids),
            by=by,
            n_folds=n_folds,
            n_repeats=1,
            seed=_inner_seed(seed, fold),
            linked=linked,
        )
        for fold in folds
    )


def nested_probabilities(
    bags: PatientBags,
    cohort: Cohort,
    folds: Sequence[Fold],
    oof: OutOfFoldPredictions,
    *,
    inner: Sequence[Sequence[Fold]],
    config: TrainConfig,
    seed: int,
    calibrator: str = "platt",
    on_head: Callable[[], None] = lambda: None,
    checkpoints: Checkpoints | None = None,
    executor: Executor | None = None,
) -> Floats:
    """Probabilities at the balanced prior that nothing fitted on the patient had a part in.

    For each fold, the calibrator's own fitting points come from a cross-validation inside the
    fold's training patients, whose heads are handed a store of these patients only.

    Parameters
    ----------
    bags, cohort, folds, config, seed, on_head, checkpoints, executor
        As for :func:`cross_validate`.
    oof
        What it gave for these.
    inner
        From :func:`inner_folds`, for each fold.
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.

    Returns
    -------
    numpy.ndarray
        Shape (repeats, patients, classes).

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, or a class has fewer than three patients in a fold's training
        part.
    """
    proba = np.full(oof.logits.shape, np.nan)
    for fold, inner_of_fold in zip(folds, inner, strict=True):
        inside = cross_validate(
            training_subset(bags, fold),
            _restricted(cohort, fold.train_ids),
            inner_of_fold,
            config=config,
            seed=_inner_seed(seed, fold),
            on_head=on_head,
            checkpoints=checkpoints,
            executor=executor or LocalExecutor(FoldWorker(bags)),
            outer_fold=fold,
        )
        fitted = fit_calibrator(inside, np.ones(inside.fold.shape, bool), calibrator=calibrator)
        judged = oof.fold[fold.repeat] == fold.index
        proba[fold.repeat, judged] = fitted.predict_proba(oof.logits[fold.repeat, judged])
    return proba


def resolve_stopping(
    config: TrainConfig, cohort: Cohort, folds: Sequence[Fold], *, n_images: int = 0
) -> TrainConfig:
    """The config, with what the number of patients decides; the same for every ensemble.

    Early stopping is used where every ensemble has patients enough for it. A third as many
    components of an embedding are kept as the smallest ensemble has patients, at least 8 and at
    most ``config.n_components``: with more, few patients are fitted by heart. Of series of images
    as many are kept as there are thirties of images, if that is more: slices differ by their place
    in a scan before all else, and what one of them shows comes later among the components.

    Parameters
    ----------
    settings
        How ensembles are trained.
    cohort
        Patients that have tiles.
    folds
        All splits on whose training patients an ensemble will learn.
    n_images
        Images of series that all patients have; 0 for tiles of slides.
    """
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    fewest = min(min(Counter(labels[name] for name in fold.train_ids).values()) for fold in folds)
    n_patients = min(len(fold.train_ids) for fold in folds)
    return replace(
        config,
        early_stopping=fewest >= MIN_VALIDATION_PER_CLASS * config.n_inner_folds,
        n_components=min(
            config.n_components,
            max(_LEAST_COMPONENTS, n_patients // 3, n_images // _IMAGES_A_COMPONENT),
        ),
    )


def fit_calibrator(
    oof: OutOfFoldPredictions, rows: npt.NDArray[np.bool_], *, calibrator: str = "platt"
) -> Calibrator:
    """Calibrator fitted on out-of-fold logits.

    Parameters
    ----------
    oof
        Out-of-fold logits.
    rows
        Which of them to use, shape (repeats, patients), bool. A patient with several rows counts
        once altogether.
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown or a class has fewer than three patients among the rows.
    """
    return build_calibrator(calibrator).fit(
        oof.logits[rows],
        np.broadcast_to(oof.labels, rows.shape)[rows],
        groups=np.broadcast_to(np.arange(len(oof.labels)), rows.shape)[rows],
    )


def cross_fitted_probabilities(oof: OutOfFoldPredictions, *, calibrator: str = "platt") -> Floats:
    """Probabilities at the balanced prior whose calibrator was fitted on other patients.

    For each fold of each repeat, the calibrator is fitted on that repeat's other folds, without
    patients who share a slide with one of the fold. These are cross-fitted and not nested: other
    patients' logits may come from heads that had learned from the patient judged.

    Returns
    -------
    numpy.ndarray
        Shape (repeats, patients, classes).
    """
    groups = group_ids(oof.patient_ids, oof.linked)
    return cross_fit(oof.logits, oof.labels, oof.fold, calibrator=calibrator, groups=groups)


def _restricted(cohort: Cohort, patient_ids: Sequence[str]) -> Cohort:
    wanted = set(patient_ids)
    return replace(cohort, patients=tuple(p for p in cohort.patients if p.patient_id in wanted))


def _inner_seed(seed: int, fold: Fold) -> int:
    """A seed of the fold's own, for what happens inside its training patients."""
    drawn = np.random.SeedSequence((seed, 3, fold.repeat, fold.index)).generate_state(1)
    return int(drawn[0])
