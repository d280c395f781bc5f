"""Cross-validation: out-of-fold logits, and probabilities calibrated on other patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

import numpy as np

from features.parallel.base import Executor
from features.parallel.local import LocalExecutor
from mil.arrays import Bools, Floats, Ints
from mil.base_learners import learner_names
from mil.base_learners.covariates import CovariateModel
from mil.base_learners.learners import BaseLearners
from mil.calibration import Calibrator, build_calibrator, cross_fit, fit_per_fold
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.patient_groups import LinkedPairs, group_ids
from mil.data.splits import Fold, SplitBy, make_folds
from mil.errors import RunError
from mil.heads import Head
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.covariates import add_covariates, fit_covariates
from mil.training.ensemble import max_parallel_ensembles
from mil.training.fold_jobs import FoldJob, FoldResult, FoldWorker, training_subset
from mil.training.trainer import EpochRecord

__all__ = [
    "FoldRunner",
    "OutOfFoldPredictions",
    "calibrated_probabilities",
    "cross_fitted_calibrators",
    "cross_fitted_probabilities",
    "cross_validate",
    "fit_calibrator",
    "inner_folds",
    "nested_calibrators",
    "resolve_components",
    "run_folds",
]

_MIN_COMPONENTS = 8
_IMAGES_PER_COMPONENT = 30


@dataclass(frozen=True, kw_only=True, eq=False)
class OutOfFoldPredictions:
    """Predictions of ensembles for their test patients, with the ensembles and learning curves.

    Attributes
    ----------
    patient_ids
        Patients with tiles, in the cohort's order.
    labels
        Class indices, shape (patients,).
    logits
        Mean logits of the ensembles, shape (repeats, patients, classes); of stacks (repeats,
        patients, learners, classes), see :func:`mil.base_learners.learner_names`.
    fold
        Index of the fold that tested each patient, shape (repeats, patients).
    history, heads
        Learning curves and ensembles by repeat and fold.
    linked
        Pairs of patients that share a slide.
    averaged
        As ``logits``, averaged over all versions of the tiles; None without augmented views.
    base_learners
        Base learners by repeat and fold; empty without stacks.
    covariates
        Models of covariates by repeat and fold; empty without. Their logits are those of the last
        learner.
    """

    patient_ids: tuple[str, ...]
    labels: Ints
    logits: Floats
    fold: Ints
    history: Mapping[tuple[int, int], tuple[EpochRecord, ...]]
    heads: Mapping[tuple[int, int], tuple[Head, ...]]
    linked: LinkedPairs = ()
    averaged: Floats | None = None
    base_learners: Mapping[tuple[int, int], BaseLearners] = field(default_factory=dict)
    covariates: Mapping[tuple[int, int], CovariateModel] = field(default_factory=dict)

    @property
    def proba_shape(self) -> tuple[int, int, int]:
        """Shape of probabilities: (repeats, patients, classes)."""
        n_repeats, n_patients = self.fold.shape
        return n_repeats, n_patients, self.logits.shape[-1]

    @property
    def raw_logits(self) -> Floats:
        """Logits before calibration, shape (repeats, patients, classes).

        Those of stacks are plain means over the learners, whose weights the calibrator holds.
        """
        return self.logits if self.logits.ndim == 3 else self.logits.mean(axis=2)

    @property
    def groups(self) -> Ints:
        """Group of each patient, shape (patients,): patients that share a slide have one."""
        return group_ids(self.patient_ids, self.linked)

    def view_averaged(self) -> OutOfFoldPredictions | None:
        """Return the predictions averaged over views, the same shape; None without views."""
        if self.averaged is None:
            return None
        return replace(self, logits=self.averaged, averaged=None)


class FoldRunner:
    """Runner of fold jobs: reads finished folds from checkpoints, and trains the others.

    Parameters
    ----------
    executor
        Its workers are :class:`mil.training.fold_jobs.FoldWorker`.
    checkpoints
        Folder of finished folds; None for none.
    on_head
        Called after each head, also for heads that are read from checkpoints.
    """

    def __init__(
        self, executor: Executor, *, checkpoints: Checkpoints | None, on_head: Callable[[], None]
    ) -> None:
        self._executor, self._checkpoints, self._on_head = executor, checkpoints, on_head
        self._results: dict[int, list[FoldResult]] = {}

    def run(self, jobs: Sequence[FoldJob]) -> list[list[FoldResult]]:
        """Return the results of each job, one per fold, with logits of shape (classes,) each.

        Raises
        ------
        RunError
            If a job ends every worker that runs it.
        """
        self._results = {}
        remaining = []
        for index, job in enumerate(jobs):
            if (finished := self._read_checkpoints(job)) is None:
                remaining.append((index, job))
                continue
            self._results[index] = finished
            for _ in range(len(finished) * job.config.n_members):
                self._on_head()
        self._executor.run(remaining, self, stop=Event())
        return [self._results[index] for index in range(len(jobs))]

    def on_done(self, payload: tuple[int, FoldJob], result: list[FoldResult]) -> None:
        """Store the results of a job."""
        index, job = payload
        self._results[index] = result
        if self._checkpoints is not None:
            for key, of_fold in zip(self._checkpoints.keys(job), result, strict=True):
                self._checkpoints.write(key, of_fold)

    def on_failed(self, payload: tuple[int, FoldJob], reason: str) -> None:
        """Raise an error that names the folds."""
        folds = ", ".join(f"{fold.index} of repeat {fold.repeat}" for fold in payload[1].folds)
        raise RunError(
            f"fold {folds}", actual=reason, expected="a worker that survives the training",
            hint="Memory may be short. Finished folds are kept: run the same command again to "
            "continue.",
        )  # fmt: skip

    def on_message(self, message: object) -> None:  # noqa: ARG002 - workers report heads only
        """Count a trained head."""
        self._on_head()

    def _read_checkpoints(self, job: FoldJob) -> list[FoldResult] | None:
        """Return the stored results of a job; None unless those of all its folds are there."""
        if self._checkpoints is None:
            return None
        stored = [
            self._checkpoints.read(key, head=job.config.head, n_classes=job.n_classes)
            for key in self._checkpoints.keys(job)
        ]
        results = [result for result in stored if result is not None]
        return results if len(results) == len(stored) else None


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
    """Predict every patient once per repeat with an ensemble trained on the other folds.

    The training of a fold gets a store without the fold's test patients; a tile filter that was
    trained on some of them is fitted again without them first. Patients without tiles are neither
    trained on nor predicted.

    Parameters
    ----------
    bags
        Bags of the cohort, shape (tiles, dim) per patient.
    cohort
        Patients and labels.
    folds
        From :func:`mil.data.splits.make_folds`.
    config
        Hyper-parameters.
    seed
        Seeds everything random.
    on_head, checkpoints
        As for :class:`FoldRunner`.
    executor
        Trains the ensembles on workers that hold these bags; by default this process does. The
        numbers are the same.
    outer_fold
        The fold whose training patients ``folds`` split, where the executor's workers hold the bags
        of all patients and ``bags`` are those of :func:`mil.training.fold_jobs.training_subset`.

    Raises
    ------
    RunError
        If training a fold ends every worker that runs it.
    """
    names = bags.nonempty()
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    rows = {name: index for index, name in enumerate(names)}
    n_repeats = 1 + max(fold.repeat for fold in folds)
    n_learners = len(learner_names(config.head)) + bool(cohort.covariates)
    of_learners = (n_learners,) if config.is_stack else ()
    logits = np.full((n_repeats, len(names), *of_learners, len(cohort.classes)), np.nan)
    averaged = np.full_like(logits, np.nan)
    fold_ids = np.full((n_repeats, len(names)), -1, np.int64)
    history, heads, base_learners, of_covariates = {}, {}, {}, {}
    results = run_folds(
        bags, labels, folds, n_classes=len(cohort.classes), config=config,
        seeds=[(seed, 1, fold.repeat, fold.index) for fold in folds], on_head=on_head,
        checkpoints=checkpoints, executor=executor, outer_fold=outer_fold,
    )  # fmt: skip
    for fold, result in zip(folds, results, strict=True):
        history[fold.repeat, fold.index] = result.history
        heads[fold.repeat, fold.index] = result.heads
        if result.base_learners is not None:
            base_learners[fold.repeat, fold.index] = result.base_learners
        if cohort.covariates:
            of_fold = fit_covariates(cohort, fold.train_ids, config)
            of_covariates[fold.repeat, fold.index] = of_fold
            result = add_covariates(result, of_fold, cohort)  # noqa: PLW2901
        for name, logit in result.logits.items():
            logits[fold.repeat, rows[name]] = logit
            fold_ids[fold.repeat, rows[name]] = fold.index
        for name, logit in result.averaged.items():
            averaged[fold.repeat, rows[name]] = logit
    return OutOfFoldPredictions(
        patient_ids=names,
        labels=np.array([labels[name] for name in names], np.int64),
        logits=logits,
        fold=fold_ids,
        history=history,
        heads=heads,
        linked=bags.linked_patients(),
        averaged=averaged if bags.views else None,
        base_learners=base_learners,
        covariates=of_covariates,
    )


def run_folds(
    bags: PatientBags,
    labels: Mapping[str, int],
    folds: Sequence[Fold],
    *,
    n_classes: int,
    config: TrainConfig,
    seeds: Sequence[Sequence[int]],
    on_head: Callable[[], None],
    checkpoints: Checkpoints | None,
    executor: Executor | None,
    outer_fold: Fold | None = None,
) -> list[FoldResult]:
    """Return the result of each fold, with logits of shape (classes,) per test patient.

    Several folds that use the device fully are trained together. ``labels`` are class indices by
    patient id, and ``seeds`` one sequence of numbers per fold; the other arguments are those of
    :func:`cross_validate`.

    Raises
    ------
    RunError
        If training a fold ends every worker that runs it.
    """
    at_once = max_parallel_ensembles(bags, config)
    parts = [slice(start, start + at_once) for start in range(0, len(folds), at_once)]
    jobs = [
        FoldJob(
            folds=folds[part], labels=labels, n_classes=n_classes, config=config,
            seeds=seeds[part], outer_fold=outer_fold,
        )
        for part in parts
    ]  # fmt: skip
    runner = FoldRunner(
        executor or LocalExecutor(FoldWorker(bags)), checkpoints=checkpoints, on_head=on_head
    )
    return [result for of_job in runner.run(jobs) for result in of_job]


def inner_folds(
    cohort: Cohort,
    folds: Sequence[Fold],
    *,
    by: SplitBy,
    n_folds: int,
    seed: int,
    linked: LinkedPairs = (),
) -> tuple[tuple[Fold, ...], ...]:
    """Return folds of the training patients of each fold, made as the folds themselves.

    Raises
    ------
    SplitError
        If the training patients of a fold cannot be split so.
    """
    return tuple(
        make_folds(
            cohort.subset(fold.train_ids),
            by=by,
            n_folds=n_folds,
            n_repeats=1,
            seed=_inner_seed(seed, fold),
            linked=linked,
        )
        for fold in folds
    )


def nested_calibrators(
    bags: PatientBags,
    cohort: Cohort,
    folds: Sequence[Fold],
    *,
    inner: Sequence[Sequence[Fold]],
    config: TrainConfig,
    seed: int,
    calibrator: str = "platt",
    on_head: Callable[[], None] = lambda: None,
    checkpoints: Checkpoints | None = None,
    executor: Executor | None = None,
) -> dict[tuple[int, int], Calibrator]:
    """Return a calibrator by repeat and fold, for logits of shape (n, classes) as usual.

    For each fold, the calibrator is fitted on a cross-validation on its ``inner`` folds, within the
    fold's training patients, so that nothing that was fitted on a test patient has a part in it.
    Arguments are those of :func:`cross_validate`.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, or a class has fewer than three training patients in a fold.
    """
    calibrators = {}
    for fold, inner_of_fold in zip(folds, inner, strict=True):
        inside = cross_validate(
            training_subset(bags, fold),
            cohort.subset(fold.train_ids),
            inner_of_fold,
            config=config,
            seed=_inner_seed(seed, fold),
            on_head=on_head,
            checkpoints=checkpoints,
            executor=executor or LocalExecutor(FoldWorker(bags)),
            outer_fold=fold,
        )
        every_row = np.ones(inside.fold.shape, bool)
        calibrators[fold.repeat, fold.index] = fit_calibrator(
            inside, every_row, calibrator=calibrator
        )
    return calibrators


def calibrated_probabilities(
    oof: OutOfFoldPredictions, calibrators: Mapping[tuple[int, int], Calibrator]
) -> Floats:
    """Return probabilities at the balanced prior, shape (repeats, patients, classes).

    ``calibrators`` by repeat and fold calibrate the patients that the fold tested.
    """
    proba = np.full(oof.proba_shape, np.nan)
    for (repeat, fold), fitted in calibrators.items():
        tested = oof.fold[repeat] == fold
        proba[repeat, tested] = fitted.predict_proba(oof.logits[repeat, tested])
    return proba


def cross_fitted_calibrators(
    oof: OutOfFoldPredictions, *, calibrator: str = "platt", repeat: int = 0
) -> dict[int, Calibrator]:
    """Return a calibrator per fold of a repeat, as for :func:`cross_fitted_probabilities`.

    It takes logits of shape (n, classes), or (n, learners, classes) for a stack.
    """
    return fit_per_fold(
        oof.logits[repeat], oof.labels, oof.fold[repeat], calibrator=calibrator, groups=oof.groups
    )


def resolve_components(
    config: TrainConfig, folds: Sequence[Fold], *, n_images: int = 0
) -> TrainConfig:
    """Return the configuration with the number of components resolved.

    It is the same for every ensemble that is trained on the training patients of ``folds``. A third
    as many components of an embedding are kept as the smallest ensemble has patients, at least 8
    and at most ``config.n_components``: with more, few patients are overfitted. For series, one
    component per 30 images is kept if that is more: slices of a scan differ by their position
    before all else, and their content is in later components. ``n_images`` is the number of images
    of all patients, 0 for tiles of slides.
    """
    n_patients = min(len(fold.train_ids) for fold in folds)
    n_components = max(_MIN_COMPONENTS, n_patients // 3, n_images // _IMAGES_PER_COMPONENT)
    return replace(config, n_components=min(config.n_components, n_components))


def fit_calibrator(
    oof: OutOfFoldPredictions, rows: Bools, *, calibrator: str = "platt"
) -> Calibrator:
    """Return the calibrator of that name, fitted on some of the out-of-fold logits.

    ``rows`` selects the logits, shape (repeats, patients), bool. A patient with several rows counts
    once altogether.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown or a class has fewer than three patients among the rows.
    """
    return build_calibrator(calibrator, stacked=oof.logits.ndim > oof.fold.ndim + 1).fit(
        oof.logits[rows],
        np.broadcast_to(oof.labels, rows.shape)[rows],
        groups=np.broadcast_to(np.arange(len(oof.labels)), rows.shape)[rows],
    )


def cross_fitted_probabilities(oof: OutOfFoldPredictions, *, calibrator: str = "platt") -> Floats:
    """Return cross-fitted probabilities at the balanced prior, shape (repeats, patients, classes).

    For each fold of each repeat, the calibrator is fitted on that repeat's other folds, without
    patients that share a slide with one of the fold. They are not nested: the logits that the
    calibrator is fitted on may come from heads that were trained on the patient.
    """
    return cross_fit(oof.logits, oof.labels, oof.fold, calibrator=calibrator, groups=oof.groups)


def _inner_seed(seed: int, fold: Fold) -> int:
    """Return the seed of everything within the training patients of a fold."""
    return int(np.random.SeedSequence((seed, 3, fold.repeat, fold.index)).generate_state(1)[0])
