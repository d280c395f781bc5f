"""Training of ensembles, each on the patients of its store only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from mil.data.bags import PatientBags
from mil.data.patient_groups import assign_groups, group_ids
from mil.data.splits import stratified_fold_ids
from mil.errors import RunError, SplitError
from mil.heads import Head, Whitening, build_head
from mil.heads.whitening import fit_pca_whitening
from mil.training.config import TrainConfig
from mil.training.feature_cache import CacheSpec, FeatureCache, build_caches, length_buckets
from mil.training.trainer import EpochRecord, TrainSplit, tiles_per_batch, train_heads

__all__ = [
    "MIN_VALIDATION_PER_CLASS",
    "Ensemble",
    "EnsembleTask",
    "max_parallel_ensembles",
    "predict_batch",
    "train_ensemble",
    "train_ensembles",
]

MIN_VALIDATION_PER_CLASS = 5
"""Minimum number of validation patients per class and inner fold for early stopping."""
_MAX_CACHE_BYTES = 2**30
_GPU_MEMORY_DIVISOR = 4
_TILES_PER_PREDICTION = 16_384  # some heads need memory for every pair of a patient's tiles


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleTask:
    """Training data and seed of one ensemble."""

    bags: PatientBags
    """Store of the training patients and no others."""
    labels: Mapping[str, int]
    """Class index by patient id, of at least these patients."""
    seed: Sequence[int]
    """One or more numbers that seed everything random."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Trained heads, whose mean logit is the prediction."""

    heads: tuple[Head, ...]
    """The heads, in evaluation mode, on the CPU."""
    history: tuple[EpochRecord, ...]
    """Learning curves of all heads."""


_Train = TypeVar("_Train", bound=Callable[..., tuple[Ensemble, ...]])


def train_ensemble(
    bags: PatientBags,
    labels: Mapping[str, int],
    *,
    n_classes: int,
    config: TrainConfig,
    seed: Sequence[int],
    on_head: Callable[[], None] = lambda: None,
) -> Ensemble:
    """Train the heads of one ensemble.

    Whitening is fitted on the store's patients and its unlabelled ones, without labels. With early
    stopping each head has another inner fold as validation set and is trained on the rest; without
    it all heads are trained on all patients and differ by initialisation and order of patients.
    Where tiles have augmented views, each step samples one version of each tile; whitening and
    validation use plain tiles.

    Parameters
    ----------
    bags
        Store of the training patients and no others.
    labels
        Class index by patient id, of at least these patients.
    n_classes
        Number of classes.
    config
        Hyper-parameters.
    seed
        One or more numbers; the same ones give the same heads on one machine.
    on_head
        Callback after each finished head.

    Raises
    ------
    SplitError
        If a class has no patient with tiles, or too few for early stopping.
    RunError
        If the device runs out of memory.
    """
    task = EnsembleTask(bags=bags, labels=labels, seed=seed)
    return train_ensembles([task], n_classes=n_classes, config=config, on_head=on_head)[0]


def _halve_when_out_of_memory(train: _Train) -> _Train:
    """Train half of the tasks at a time where the device has no memory for all of them."""

    @wraps(train)
    def train_in_parts(
        tasks: Sequence[EnsembleTask], *, config: TrainConfig, **options: Any
    ) -> tuple[Ensemble, ...]:
        try:
            return train(tasks, config=config, **options)
        except torch.cuda.OutOfMemoryError as error:
            if len(tasks) == 1:
                raise RunError(
                    f"device {config.device}",
                    actual="out of memory with a single ensemble on it",
                    expected="memory for the tiles of all its patients",
                    hint="End other programs on it and run the same command again: it continues "
                    "after the finished folds. Or train with --device cpu.",
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(tasks) // 2
        return tuple(
            ensemble
            for part in (tasks[:half], tasks[half:])
            for ensemble in train_in_parts(part, config=config, **options)
        )

    return cast("_Train", train_in_parts)


@_halve_when_out_of_memory
def train_ensembles(
    tasks: Sequence[EnsembleTask],
    *,
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None] = lambda: None,
) -> tuple[Ensemble, ...]:
    """Train ensembles together, each as :func:`train_ensemble` does and on its own bags only.

    Each has its own random generator, so that the others change only the last bits of its sums. The
    same tasks together give the same heads. If the device has not enough memory for all of them,
    they are trained in two halves, and so on.

    Parameters
    ----------
    tasks
        One per ensemble; see :func:`max_parallel_ensembles` for a good number.
    n_classes, config, on_head
        As for :func:`train_ensemble`.

    Raises
    ------
    SplitError
        As :func:`train_ensemble`.
    RunError
        If the device has not enough memory for one of them.
    """
    device = torch.device(config.device)
    specs = [_cache_spec(task, n_classes=n_classes, config=config) for task in tasks]
    splits: list[TrainSplit] = []
    n_before = 0
    for task, spec in zip(tasks, specs, strict=True):
        splits += [split.offset(n_before) for split in _inner_splits(task, spec, config)]
        n_before += len(spec.patient_ids)
    cache = FeatureCache.concatenate(build_caches(specs))
    # A fork of the global random state leaves the caller's untouched.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        heads = [
            _init_head(spec.whitening, (*task.seed, member), n_classes=n_classes, config=config).to(
                device
            )
            for spec, task in zip(specs, tasks, strict=True)
            for member in range(config.n_members)
        ]
        curves = train_heads(
            heads, splits, cache, n_classes=n_classes, config=config, on_head=on_head
        )
    members = [
        slice(first, first + config.n_members) for first in range(0, len(heads), config.n_members)
    ]
    return tuple(
        Ensemble(
            heads=tuple(head.eval().cpu() for head in heads[own]),
            history=tuple(record for curve in curves[own] for record in curve),
        )
        for own in members
    )


def max_parallel_ensembles(bags: PatientBags, config: TrainConfig) -> int:
    """Return how many ensembles to train together: as many as use the device fully and fit.

    The number depends only on the sizes of the bags, the configuration, and the device's memory.

    Parameters
    ----------
    bags
        Patients of all ensembles.
    config
        Hyper-parameters.
    """
    device = torch.device(config.device)
    lengths = [n_tiles for n_tiles in bags.n_tiles.values() if n_tiles]
    n_tiles = config.n_members * config.batch_patients * min(config.max_tiles, max(lengths))
    n_bytes = 4 * config.n_components * sum(lengths) * bags.n_versions
    room = _MAX_CACHE_BYTES
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // _GPU_MEMORY_DIVISOR
    return max(1, min(tiles_per_batch(device) // n_tiles, room // n_bytes))


def _cache_spec(task: EnsembleTask, *, n_classes: int, config: TrainConfig) -> CacheSpec:
    """Check the class counts of a task and fit its whitening."""
    names = task.bags.nonempty()
    labels = np.array([task.labels[name] for name in names], np.int64)
    _check_class_counts(np.bincount(labels, minlength=n_classes), config)
    whitening = fit_pca_whitening(
        *task.bags.unsupervised_features(), config.n_components, device=torch.device(config.device)
    )
    return CacheSpec(bags=task.bags, patient_ids=names, labels=labels, whitening=whitening)


def _inner_splits(task: EnsembleTask, spec: CacheSpec, config: TrainConfig) -> list[TrainSplit]:
    """Split the patients of a task into training and validation patients of each head."""
    fold_ids = assign_groups(
        group_ids(spec.patient_ids, task.bags.linked_patients()),
        lambda patients: stratified_fold_ids(
            spec.labels[patients], n_folds=config.n_inner_folds, seed=task.seed
        ),
    )
    stream = torch.Generator(torch.device(config.device)).manual_seed(_hash_seed(task.seed))
    splits = []
    for member in range(config.n_members):
        is_validation = (fold_ids == member) & config.early_stopping
        train_idx, val_idx = (
            torch.from_numpy(np.flatnonzero(rows)) for rows in (~is_validation, is_validation)
        )
        splits.append(
            TrainSplit(member=member, train_idx=train_idx, val_idx=val_idx, stream=stream)
        )
    return splits


def _check_class_counts(counts: npt.NDArray[np.int64], config: TrainConfig) -> None:
    actual = f"{counts.tolist()} patients with tiles in each class"
    if not counts.all():
        raise SplitError("training", actual=actual, expected="at least one of each")
    least = MIN_VALIDATION_PER_CLASS * config.n_inner_folds
    if config.early_stopping and counts.min() < least:
        raise SplitError("early stopping", actual=actual, expected=f"at least {least} of each")


def _init_head(
    whitening: Whitening, seed: Sequence[int], *, n_classes: int, config: TrainConfig
) -> Head:
    torch.manual_seed(_hash_seed(seed))
    dim, n_components = whitening.matrix.shape
    head = build_head(config.head, dim=dim, n_components=n_components, n_classes=n_classes)
    head.whitening.load_state_dict(whitening.state_dict())
    return head


def predict_batch(
    heads: Sequence[Head], bags: PatientBags, names: Sequence[str], *, device: torch.device
) -> npt.NDArray[np.float64]:
    """Return logits of each head for many patients at once.

    They equal those of :func:`mil.heads.ensemble.predict_views` per patient up to the last bits of
    sums. It saves an accelerator thousands of small products; a processor gains nothing.

    Parameters
    ----------
    heads
        Heads of an ensemble, on the CPU.
    bags
        Store of at least these patients.
    names
        Patients, each with at least one tile.
    device
        Device of the computation.

    Returns
    -------
    numpy.ndarray
        Logits of shape (versions, heads, patients, classes), float64.
    """
    on_device = [copy.deepcopy(head).to(device) for head in heads]
    no_labels = np.zeros(len(names), np.int64)
    whitening = on_device[0].whitening
    spec = CacheSpec(bags=bags, patient_ids=names, labels=no_labels, whitening=whitening)
    (cache,) = build_caches([spec])
    order = cache.lengths.argsort(descending=True, stable=True)
    blocks = []
    with torch.inference_mode():
        for block in length_buckets(cache.lengths[order].tolist(), _TILES_PER_PREDICTION):
            batches = [cache.take_evenly(order[block], version=v) for v in range(cache.n_versions)]
            logits = [
                torch.stack([head.forward_components(*batch).logits for head in on_device])
                for batch in batches
            ]
            blocks.append(torch.stack(logits))  # (versions, heads, patients of the block, classes)
    return torch.cat(blocks, dim=2)[:, :, order.argsort()].double().cpu().numpy()


def _hash_seed(numbers: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
