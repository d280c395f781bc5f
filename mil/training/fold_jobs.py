"""Ensembles trained on folds, and what they say of the patients they were kept from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from features.parallel.base import Executor, JobQueue
from features.parallel.local import LocalExecutor
from features.parallel.pool import WorkerPool
from features.parallel.ray_cluster import RayTransport, plan_actors, ray_connection
from mil.data.bags import PatientBags
from mil.data.splits import Fold
from mil.errors import RunError
from mil.heads.ensemble import predict_members, predict_views
from mil.training.checkpoints import Checkpoints, FoldResult
from mil.training.config import TrainConfig
from mil.training.ensemble import Ensemble, EnsembleTask, predict_batch, train_ensembles

__all__ = [
    "ExecutorFactory",
    "FoldJob",
    "FoldRunner",
    "FoldWorker",
    "local_fold_executor",
    "ray_fold_executor",
    "training_subset",
]

ExecutorFactory = Callable[[PatientBags], AbstractContextManager[Executor]]
"""Given bags, an executor whose workers are judges that hold them."""


_HEAD_DONE = "a head is done"


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Folds whose ensembles are trained together; survives pickling."""

    folds: tuple[Fold, ...]
    """Patients to learn from and to judge."""
    labels: Mapping[str, int]
    """Class index by patient id, of at least those to learn from."""
    n_classes: int
    """Number of classes."""
    config: TrainConfig
    """How ensembles are trained."""
    seeds: tuple[tuple[int, ...], ...]
    """Numbers that decide everything random, for each fold."""
    outer_fold: Fold | None = None
    """The fold in whose training part all this happens; None for all patients."""


class FoldWorker:
    """A worker that trains the ensembles of folds and lets them judge.

    Parameters
    ----------
    bags
        Bags of at least the patients that folds name. What trains a fold is handed a store that
        does not hold the fold's test patients.
    """

    def __init__(self, bags: PatientBags) -> None:
        self._bags = bags

    @property
    def info(self) -> object:
        """Sums that decide the last bit of what is learned."""
        return f"torch {torch.__version__} with {torch.get_num_threads()} threads"

    def close(self) -> None:
        """Nothing is held."""

    def run(self, queue: JobQueue) -> None:
        """Judge until there is no assignment for now."""
        for job in queue.jobs():
            _, assignment = job.payload
            judgements = self.judge(assignment, on_head=lambda: queue.send_message(_HEAD_DONE))
            queue.finish(job, judgements)

    def judge(self, assignment: FoldJob, *, on_head: Callable[[], None]) -> list[FoldResult]:
        """What ensembles say of the patients of their folds.

        Parameters
        ----------
        assignment
            Folds, and how.
        on_head
            Called after each head.

        Returns
        -------
        list of Judgement
            One a fold, of its test patients that have tiles.

        Raises
        ------
        SplitError
            As :func:`mil.training.ensemble.train_ensembles`.
        """
        bags = self._bags_of(assignment.outer_fold)
        stores = [bags.refit_without(fold.test_ids) for fold in assignment.folds]
        tasks = [
            EnsembleTask(
                bags=store.subset(fold.train_ids),
                labels={name: assignment.labels[name] for name in fold.train_ids},
                seed=seed,
            )
            for store, fold, seed in zip(stores, assignment.folds, assignment.seeds, strict=True)
        ]
        n_classes = assignment.n_classes
        ensembles = train_ensembles(
            tasks, n_classes=n_classes, config=assignment.config, on_head=on_head
        )
        filled = set(bags.nonempty())
        return [
            _predict_held_out(
                ensemble,
                store,
                [name for name in fold.test_ids if name in filled],
                n_classes=n_classes,
                device=torch.device(assignment.config.device),
            )
            for store, fold, ensemble in zip(stores, assignment.folds, ensembles, strict=True)
        ]

    def _bags_of(self, outer_fold: Fold | None) -> PatientBags:
        """Bags of all patients, or what may be seen inside the training part of a fold."""
        return self._bags if outer_fold is None else training_subset(self._bags, outer_fold)


def training_subset(bags: PatientBags, fold: Fold) -> PatientBags:
    """The training patients of a fold, in whose store nothing comes from its test patients."""
    return bags.refit_without(fold.test_ids).subset(fold.train_ids)


def _predict_held_out(
    ensemble: Ensemble,
    bags: PatientBags,
    patient_ids: Sequence[str],
    *,
    n_classes: int,
    device: torch.device,
) -> FoldResult:
    """What an ensemble says of patients; zeros where a tile filter leaves nothing to look at."""
    bags = bags.subset(patient_ids)
    logits = {name: np.zeros(n_classes) for name in patient_ids}
    averaged: dict[str, npt.NDArray[np.float64]] = {}
    for name, looks in _looks(ensemble, bags, bags.nonempty(), device=device):
        logits[name] = np.asarray(looks[0].mean(axis=0))
        if bags.views:
            averaged[name] = np.asarray(looks.mean(axis=(0, 1)))
    return FoldResult(
        logits=logits, averaged=averaged, heads=ensemble.heads, history=ensemble.history
    )


def _looks(
    ensemble: Ensemble, bags: PatientBags, names: Sequence[str], *, device: torch.device
) -> Iterator[tuple[str, npt.NDArray[np.float64]]]:
    """Logits of each patient by look and head, shape (looks, heads, classes).

    A device that has not the memory for all patients at once leaves them to the processor.
    """
    together = None
    if device.type != "cpu" and names:
        with suppress(torch.cuda.OutOfMemoryError):
            together = predict_batch(ensemble.heads, bags, names, device=device)
        if together is None and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if together is not None:
        yield from zip(names, np.moveaxis(together, 2, 0), strict=True)
        return
    for name in names:
        tiles = bags.features[name]
        if bags.views:
            yield name, predict_views(ensemble.heads, tiles, bags.views[name])[0]
        else:
            yield name, predict_members(ensemble.heads, tiles)[0][None]


class FoldRunner:
    """ExecutorFactory behind an executor, and the folds that were judged before.

    Parameters
    ----------
    executor
        Its workers are judges.
    checkpoints
        Finished folds are kept there and taken over from there; None keeps nothing.
    on_head
        Called after each head, and for heads of folds that are taken over.
    """

    def __init__(
        self, executor: Executor, *, checkpoints: Checkpoints | None, on_head: Callable[[], None]
    ) -> None:
        self._engine, self._kept, self._on_head = executor, checkpoints, on_head
        self._judged: dict[int, list[FoldResult]] = {}

    def judge(self, assignments: Sequence[FoldJob]) -> list[list[FoldResult]]:
        """What comes of each assignment, in their order.

        Raises
        ------
        RunError
            If one ends every worker that tries it.
        """
        self._judged = {}
        left = []
        for number, assignment in enumerate(assignments):
            if not self._load_checkpoint(number, assignment):
                left.append((number, assignment))
        self._engine.run(left, self, stop=Event())
        return [self._judged[number] for number in range(len(assignments))]

    def on_done(self, payload: tuple[int, FoldJob], result: list[FoldResult]) -> None:
        """Keep the judgements of an assignment."""
        number, assignment = payload
        self._judged[number] = result
        if self._kept is not None:
            for name, judgement in zip(self._names(assignment), result, strict=True):
                self._kept.write(name, judgement)

    def on_failed(self, payload: tuple[int, FoldJob], reason: str) -> None:
        """Nothing can be said without these folds."""
        folds = ", ".join(f"{fold.index} of repeat {fold.repeat}" for fold in payload[1].folds)
        raise RunError(
            f"fold {folds}", actual=reason, expected="a worker that lives",
            hint="Memory may be short: what was finished is kept, and the same command goes on.",
        )  # fmt: skip

    def on_message(self, message: Any) -> None:  # noqa: ARG002 - there is but one kind of news
        """Count a head."""
        self._on_head()

    def _load_checkpoint(self, number: int, assignment: FoldJob) -> bool:
        """Whether all folds of an assignment were judged before."""
        if self._kept is None:
            return False
        head, n_classes = assignment.config.head, assignment.n_classes
        found = [
            self._kept.read(name, head=head, n_classes=n_classes)
            for name in self._names(assignment)
        ]
        known = [judgement for judgement in found if judgement is not None]
        if len(known) < len(found):
            return False
        self._judged[number] = known
        for _ in range(len(known) * assignment.config.n_members):
            self._on_head()
        return True

    def _names(self, assignment: FoldJob) -> list[str]:
        assert self._kept is not None  # noqa: S101 - names are asked for where they are used
        return self._kept.keys(
            assignment.folds, assignment.labels, n_classes=assignment.n_classes,
            config=assignment.config, seeds=assignment.seeds, outer_fold=assignment.outer_fold,
        )  # fmt: skip


@contextmanager
def local_fold_executor(bags: PatientBags) -> Iterator[Executor]:
    """One judge in this process."""
    yield LocalExecutor(FoldWorker(bags))


@contextmanager
def ray_fold_executor(
    bags: PatientBags, *, address: str | None, device: str, on_warning: Callable[[str], None]
) -> Iterator[Executor]:
    """Fold workers on a Ray cluster, each with as many threads as this process, and a GPU or none.

    As sums depend on the number of threads in the last bit, so many threads give the same bytes as
    training here does, on machines of one kind.

    Parameters
    ----------
    bags
        Copied to every machine once. Where they lie in files, all machines share these.
    address
        Address of the cluster; see :func:`features.parallel.ray_cluster.ray_connection`.
    device
        Where heads are trained: ``cpu``, or ``cuda`` for a GPU each.
    on_warning
        Told what a person should know, e.g. that a worker died.

    Raises
    ------
    MilError
        If Ray is not installed or not there, or the cluster has no room.
    """
    n_threads = torch.get_num_threads()
    with ray_connection(address):
        share = plan_actors(device=device, n_cpus=n_threads)
        hire = partial(_make_judge, bags, n_threads)
        with WorkerPool(
            RayTransport(hire, share), start_first_only=False, on_warning=on_warning
        ) as crew:
            yield crew


def _make_judge(bags: PatientBags, n_threads: int) -> FoldWorker:
    torch.set_num_threads(n_threads)
    return FoldWorker(bags)
