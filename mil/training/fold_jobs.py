"""Jobs that train the ensembles of folds and predict their test patients, here or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from features.parallel.base import Executor, JobQueue
from features.parallel.local import LocalExecutor
from features.parallel.pool import WorkerPool
from features.parallel.ray_cluster import RayTransport, plan_actors, ray_connection
from mil.arrays import Floats
from mil.base_learners.joined_bags import bag_blocks
from mil.base_learners.learners import BaseLearners
from mil.base_learners.pooling import mean_and_extremes
from mil.base_learners.stack import with_base_learners
from mil.data.bags import PatientBags
from mil.data.features import Features
from mil.data.splits import Fold
from mil.heads import Head
from mil.heads.ensemble import whiten_tiles
from mil.threads import map_single_threaded
from mil.training.config import TrainConfig
from mil.training.ensemble import Ensemble, SharedStatistics, predict_batch, train_ensembles
from mil.training.feature_cache import length_buckets
from mil.training.trainer import EpochRecord

__all__ = [
    "ExecutorFactory",
    "FoldJob",
    "FoldResult",
    "FoldWorker",
    "local_fold_executor",
    "ray_fold_executor",
    "training_subset",
]

_TILES_PER_BLOCK = 32_768  # 64 components take 8 MB
_TILES_PER_BATCH = 4096  # of one bag with more; some heads need memory for every pair of tiles

ExecutorFactory = Callable[[PatientBags], AbstractContextManager[Executor]]
"""Opens an executor whose workers are :class:`FoldWorker` with the bags given."""


@dataclass(frozen=True, kw_only=True)
class FoldJob:
    """Folds whose ensembles are trained together; picklable.

    ``labels`` are class indices by patient id, of at least the training patients, and ``seeds`` the
    numbers that seed everything random, one sequence per fold. ``outer_fold`` is the fold whose
    training patients these folds split; None where they split all patients.
    """

    folds: Sequence[Fold]
    labels: Mapping[str, int]
    n_classes: int
    config: TrainConfig
    seeds: Sequence[Sequence[int]]
    outer_fold: Fold | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldResult:
    """Ensemble of a fold, its learning curves, and its predictions for the test patients.

    ``logits`` are means over the ensemble by patient id, shape (classes,), of a stack (learners,
    classes); ``averaged`` are the same averaged over all versions of the tiles, empty where tiles
    have no augmented views.
    """

    logits: Mapping[str, Floats]
    heads: tuple[Head, ...]
    history: tuple[EpochRecord, ...]
    averaged: Mapping[str, Floats] = field(default_factory=dict)
    base_learners: BaseLearners | None = None


class FoldWorker:
    """Worker that trains the ensembles of folds and predicts their test patients.

    Each ensemble is trained on a store without the test patients of its fold. ``bags`` holds at
    least the patients of all folds, shape (tiles, dim) each.
    """

    def __init__(self, bags: PatientBags) -> None:
        self._bags = bags
        # Of every patient, for all folds, unless a filter is refitted.
        self._shared = SharedStatistics() if bags.tile_filter is None else None

    @property
    def info(self) -> object:
        """Version of torch and number of threads, which change the last bits of sums."""
        return f"torch {torch.__version__} with {torch.get_num_threads()} threads"

    def close(self) -> None:
        """Do nothing: no resource is open."""

    def run(self, queue: JobQueue) -> None:
        """Run jobs until none is left for now; a result is a :class:`FoldResult` per fold.

        Its logits have shape (classes,) per test patient.

        Raises
        ------
        SplitError
            As :func:`mil.training.ensemble.train_ensembles`.
        """
        for queued in queue.jobs():
            job: FoldJob = queued.payload[1]
            outer = job.outer_fold
            bags = self._bags if outer is None else training_subset(self._bags, outer)
            stores = [bags.refit_without(fold.test_ids) for fold in job.folds]
            ensembles = train_ensembles(
                [
                    store.subset(fold.train_ids)
                    for store, fold in zip(stores, job.folds, strict=True)
                ],
                [{name: job.labels[name] for name in fold.train_ids} for fold in job.folds],
                seeds=job.seeds,
                n_classes=job.n_classes,
                config=job.config,
                on_head=lambda: queue.send_message("a head is trained"),
                shared=self._shared,
            )
            nonempty = set(bags.nonempty())
            tested = [[name for name in fold.test_ids if name in nonempty] for fold in job.folds]
            pooled = {} if self._shared is None else self._shared.pooled
            held_out = [store.subset(own) for store, own in zip(stores, tested, strict=True)]
            queue.finish(queued, _predict_folds(ensembles, held_out, job, pooled))


def training_subset(bags: PatientBags, fold: Fold) -> PatientBags:
    """Return the training patients of a fold, shape (tiles, dim) each, in a store without others.

    A tile filter is fitted again without the test patients.
    """
    return bags.refit_without(fold.test_ids).subset(fold.train_ids)


def _predict_folds(
    ensembles: Sequence[Ensemble],
    held_out: Sequence[PatientBags],
    job: FoldJob,
    pooled: Mapping[str, Floats],
) -> list[FoldResult]:
    """Predict the patients of each store; the folds at once, if on the CPU."""
    pairs = list(zip(ensembles, held_out, strict=True))
    predict = partial(_predict_held_out, job=job, pooled=pooled)
    if job.config.device == "cpu":
        return map_single_threaded(lambda pair: predict(*pair), pairs)
    return [predict(*pair) for pair in pairs]


def _predict_held_out(
    ensemble: Ensemble,
    bags: PatientBags,
    job: FoldJob,
    pooled: Mapping[str, Floats],
) -> FoldResult:
    """Predict the patients of a store; logits are 0 where a tile filter drops every tile."""
    of_base = ensemble.base_learners
    shape = (job.n_classes,) if of_base is None else (1 + len(of_base.models), job.n_classes)
    logits = {name: np.zeros(shape) for name in bags.patient_ids}
    averaged: dict[str, Floats] = {}
    device = torch.device(job.config.device)
    # Those of an accelerator differ in the last bits, and are there for some patients only.
    known = pooled if device.type == "cpu" else {}
    for name, versions in _predict_versions(ensemble, bags, device, known):
        logits[name] = np.asarray(versions[0].mean(axis=0))
        if bags.views:
            averaged[name] = np.asarray(versions.mean(axis=(0, 1)))
    return FoldResult(
        logits=logits, averaged=averaged, heads=ensemble.heads, history=ensemble.history,
        base_learners=of_base,
    )  # fmt: skip


def _predict_versions(
    ensemble: Ensemble,
    bags: PatientBags,
    device: torch.device,
    pooled: Mapping[str, Floats],
) -> Iterator[tuple[str, Floats]]:
    """Yield each patient with tiles and its logits, shape (versions, heads, classes).

    Those of a stack have shape (versions, heads, learners, classes). An accelerator predicts the
    heads for all patients at once; if it has not enough memory, the CPU predicts a few at a time.
    Base learners are on the CPU; ``pooled`` are the pooled plain tiles of some patients, shape (3,
    dim) each, see :func:`mil.base_learners.pooling.mean_and_extremes`.
    """
    names = bags.nonempty()
    of_heads = None
    if device.type != "cpu" and names:
        with suppress(torch.cuda.OutOfMemoryError):
            of_heads = predict_batch(ensemble.heads, bags, names, device=device)
        if of_heads is None and torch.cuda.is_available():
            torch.cuda.empty_cache()
    n_tiles = bags.n_tiles  # counted anew each time
    lengths = [bags.n_versions * n_tiles[name] for name in names]
    for block in bag_blocks(lengths, _TILES_PER_BLOCK):
        given = None if of_heads is None else np.moveaxis(of_heads[:, :, block], 2, 0)
        logits = _predict_block(ensemble, bags, names[block], given, pooled)
        yield from zip(names[block], logits, strict=True)


def _predict_block(
    ensemble: Ensemble,
    bags: PatientBags,
    names: Sequence[str],
    of_heads: Floats | None,
    pooled: Mapping[str, Floats],
) -> Floats:
    """Return the logits of a few patients, after an axis of patients as :func:`_predict_versions`.

    ``of_heads`` are those of the heads, shape (patients, versions, heads, classes), if known.
    """
    heads, of_base = ensemble.heads, ensemble.base_learners
    if of_heads is not None and of_base is None:
        return of_heads
    components: list[Tensor] = []
    of_tiles: list[Floats] = []
    projected: list[Tensor] = []
    for name in names:
        for version, tiles in enumerate(_versions(bags, name)):
            raw, whitened = whiten_tiles(tiles, heads[0].whitening)
            components.append(whitened)
            if of_base is not None:
                known = pooled.get(name) if version == 0 else None
                of_tiles.append(mean_and_extremes(raw) if known is None else known)
                projected.append(of_base.project(raw))
    if of_heads is None:
        own = _predict_bags(heads, components)  # (patients × versions, heads, classes)
        of_heads = own.reshape(len(names), -1, *own.shape[1:])
    if of_base is None:
        return of_heads
    added = of_base.logits_of(
        of_tiles, projected, components
    )  # (patients × versions, learners, classes)
    return with_base_learners(of_heads, added.reshape(*of_heads.shape[:2], 1, *added.shape[1:]))


def _predict_bags(heads: Sequence[Head], components: Sequence[Tensor]) -> Floats:
    """Return the logits of bags, shape (tiles, n_components) each; shape (bags, heads, classes).

    Bags of similar size are padded and predicted together.
    """
    lengths = np.array([len(bag) for bag in components])
    order = np.argsort(-lengths, kind="stable")
    parts = []
    with torch.inference_mode():
        for block in length_buckets(lengths[order].tolist(), _TILES_PER_BATCH):
            batch = pad_sequence([components[row] for row in order[block]], batch_first=True)
            mask = torch.arange(batch.shape[1]) < torch.from_numpy(lengths[order[block], None])
            parts.append(torch.stack([head.predict(batch, mask).logits for head in heads], dim=1))
    sorted_logits = torch.cat(parts).double().numpy()
    return np.asarray(sorted_logits[order.argsort()], np.float64)


def _versions(bags: PatientBags, name: str) -> list[Features]:
    """Return the plain tiles of a patient and each view of them, shape (tiles, dim) each."""
    views = np.moveaxis(bags.views[name], 1, 0) if bags.views else ()
    return [bags.features[name], *views]


@contextmanager
def local_fold_executor(bags: PatientBags) -> Iterator[Executor]:
    """Open an executor with one worker in this process."""
    yield LocalExecutor(FoldWorker(bags))


@contextmanager
def ray_fold_executor(
    bags: PatientBags, *, address: str | None, device: str, on_warning: Callable[[str], None]
) -> Iterator[Executor]:
    """Open an executor on a Ray cluster whose workers have as many threads as this process.

    Sums depend on the number of threads in their last bits: with equally many, the cluster gives
    the same bytes as local training on a machine of its kind. The bags are copied to every machine
    once; bags that stay in files are read from the same paths on all machines.

    Parameters
    ----------
    bags
        Bags of all patients.
    address
        Address of the cluster; see :func:`features.parallel.ray_cluster.ray_connection`.
    device
        Device of the training: ``cpu``, or ``cuda`` for one GPU per worker.
    on_warning
        Called with notes for the user, such as the death of a worker.

    Raises
    ------
    MilError
        If Ray is not installed, the cluster cannot be reached, or it has no room.
    """
    n_threads = torch.get_num_threads()
    with ray_connection(address):
        resources = plan_actors(device=device, n_cpus=n_threads, fewer_by="OMP_NUM_THREADS=N")
        transport = RayTransport(partial(_build_worker, bags, n_threads), resources)
        with WorkerPool(transport, start_first_only=False, on_warning=on_warning) as pool:
            yield pool


def _build_worker(bags: PatientBags, n_threads: int) -> FoldWorker:
    torch.set_num_threads(n_threads)
    return FoldWorker(bags)
