"""Ensembles of heads from the patients they may see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from mil.training.trainer import EpochRecord, TrainSplit, tiles_at_once, train_heads

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
"""Patients of each class that an inner fold must hold for its loss to mean anything."""
_MOST_BYTES = 2**30
_SHARE_OF_DEVICE = 4
_TILES_JUDGED_AT_ONCE = 16_384  # some heads hold numbers of every pair of a patient's tiles


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleTask:
    """What one ensemble is made of."""

    bags: PatientBags
    """The patients to learn from: a store that holds no others."""
    labels: Mapping[str, int]
    """Class index by patient id, of at least these patients."""
    seed: Sequence[int]
    """Numbers that decide everything random."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Heads whose mean logit is the answer."""

    heads: tuple[Head, ...]
    """The heads, in evaluation mode, on the CPU."""
    history: tuple[EpochRecord, ...]
    """Learning curves of all of them."""


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

    Whitening is fitted on these patients and the store's unlabelled ones, without labels. With
    early stopping each head is stopped on another inner fold of these patients and learns from the
    rest; without it all heads learn from all patients and differ by their start and the order of
    patients. Where tiles have views, each step draws one look at each tile; whitening and stopping
    see plain tiles.

    Parameters
    ----------
    bags
        The patients to learn from: a store that holds no others.
    labels
        Class index by patient id, of at least these patients.
    n_classes
        Number of classes.
    config
        How.
    seed
        Numbers that decide everything random; the same ones give the same heads on one machine.
    on_head
        Called when a head is done.

    Raises
    ------
    SplitError
        If a class has no patient with tiles, or too few for early stopping.
    """
    task = EnsembleTask(bags=bags, labels=labels, seed=seed)
    return train_ensembles([task], n_classes=n_classes, config=config, on_head=on_head)[0]


def train_ensembles(
    tasks: Sequence[EnsembleTask],
    *,
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None] = lambda: None,
) -> tuple[Ensemble, ...]:
    """Train ensembles side by side, each as :func:`train_ensemble` does and from its bags only.

    Each draws its random numbers from a stream of its own, so that who is trained beside whom
    changes the last bit of sums at most. The same tasks together give the same heads. Where the
    device has not the memory for all of them, they are trained in two halves, and so on.

    Parameters
    ----------
    tasks
        One an ensemble; :func:`max_parallel_ensembles` says how many are well trained together.
    n_classes, config, on_head
        As for :func:`train_ensemble`.

    Raises
    ------
    SplitError
        As :func:`train_ensemble`.
    RunError
        If the device has not the memory for one of them.
    """
    try:
        return _train(tasks, n_classes=n_classes, config=config, on_head=on_head)
    except torch.cuda.OutOfMemoryError as error:
        if len(tasks) == 1:
            raise RunError(
                f"device {config.device}",
                actual="out of memory with a single ensemble on it",
                expected="memory for the tiles of all its patients",
                hint="End other programs on it, and the same command goes on with the finished "
                "folds; or train with --device cpu.",
            ) from error
    if torch.cuda.is_available():  # what all of them together have taken is of no use any more
        torch.cuda.empty_cache()
    half = len(tasks) // 2
    return tuple(
        ensemble
        for part in (tasks[:half], tasks[half:])
        for ensemble in train_ensembles(part, n_classes=n_classes, config=config, on_head=on_head)
    )


def _train(
    tasks: Sequence[EnsembleTask],
    *,
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None],
) -> tuple[Ensemble, ...]:
    device = torch.device(config.device)
    desks = [_prepare(task, n_classes=n_classes, config=config, device=device) for task in tasks]
    shelf = FeatureCache.joined(build_caches([desk.plan for desk in desks]))
    lessons, n_before = [], 0
    for desk in desks:
        lessons += [lesson.moved(n_before) for lesson in desk.lessons]
        n_before += len(desk.plan.patient_ids)
    # A stream of random numbers of its own leaves the caller's global one untouched.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        heads = [
            _new_head(desk.plan.whitening, task, member, n_classes=n_classes, config=config).to(
                device
            )
            for desk, task in zip(desks, tasks, strict=True)
            for member in range(config.n_members)
        ]
        curves = train_heads(
            heads, lessons, shelf, n_classes=n_classes, config=config, on_head=on_head
        )
    ensembles = []
    for first in range(0, len(heads), config.n_members):
        own = slice(first, first + config.n_members)
        history = tuple(record for curve in curves[own] for record in curve)
        done = tuple(head.eval().cpu() for head in heads[own])
        ensembles.append(Ensemble(heads=done, history=history))
    return tuple(ensembles)


def max_parallel_ensembles(bags: PatientBags, config: TrainConfig) -> int:
    """How many ensembles are well trained together: as many as keep the device busy and fit.

    It depends on nothing but the bags' sizes, the config, and the device's memory.

    Parameters
    ----------
    bags
        Patients of all of them.
    config
        How they are trained.
    """
    device = torch.device(config.device)
    lengths = [n_tiles for n_tiles in bags.n_tiles.values() if n_tiles]
    n_tiles = config.n_members * config.batch_patients * min(config.max_tiles, max(lengths))
    n_bytes = 4 * config.n_components * sum(lengths) * bags.n_versions
    room = _MOST_BYTES
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // _SHARE_OF_DEVICE
    return max(1, min(tiles_at_once(device) // n_tiles, room // n_bytes))


@dataclass(frozen=True, kw_only=True, eq=False)
class _PreparedTask:
    """What the heads of one ensemble learn from."""

    plan: CacheSpec
    """Its patients, and the whitening that is fitted on them."""
    lessons: tuple[TrainSplit, ...]
    """One a head."""


def _prepare(
    task: EnsembleTask, *, n_classes: int, config: TrainConfig, device: torch.device
) -> _PreparedTask:
    names = task.bags.nonempty()
    classes = np.array([task.labels[name] for name in names], np.int64)
    _check_class_counts(np.bincount(classes, minlength=n_classes), config)
    whitening = fit_pca_whitening(*task.bags.without_labels(), config.n_components, device=device)
    parts = assign_groups(
        group_ids(names, task.bags.linked_patients()),
        lambda patients: stratified_fold_ids(
            classes[patients], n_folds=config.n_inner_folds, seed=task.seed
        ),
    )
    stream = torch.Generator(device).manual_seed(_one_seed(task.seed))
    lessons = []
    for member in range(config.n_members):
        stops = (parts == member) & config.early_stopping
        learned, stopped_on = (torch.from_numpy(np.flatnonzero(rows)) for rows in (~stops, stops))
        lessons.append(
            TrainSplit(member=member, learned=learned, stopped_on=stopped_on, stream=stream)
        )
    plan = CacheSpec(bags=task.bags, patient_ids=names, labels=classes, whitening=whitening)
    return _PreparedTask(plan=plan, lessons=tuple(lessons))


def _check_class_counts(counts: npt.NDArray[np.int64], config: TrainConfig) -> None:
    found = f"{counts.tolist()} patients with tiles in each class"
    if not counts.all():
        raise SplitError("training", actual=found, expected="at least one of each")
    least = MIN_VALIDATION_PER_CLASS * config.n_inner_folds
    if config.early_stopping and counts.min() < least:
        raise SplitError("early stopping", actual=found, expected=f"at least {least} of each")


def _new_head(
    whitening: Whitening, task: EnsembleTask, member: int, *, n_classes: int, config: TrainConfig
) -> Head:
    torch.manual_seed(_one_seed((*task.seed, member)))
    dim, n_components = whitening.matrix.shape
    head = build_head(config.head, dim=dim, n_components=n_components, n_classes=n_classes)
    head.whitening.load_state_dict(whitening.state_dict())
    return head


def predict_batch(
    heads: Sequence[Head], bags: PatientBags, names: Sequence[str], *, device: torch.device
) -> npt.NDArray[np.float64]:
    """Logits of each head for many patients at once.

    Equal to those of :func:`mil.heads.ensemble.predict_views` patient by patient. The same but for
    the last bits of sums. An accelerator is spared thousands of small products; a processor gains
    nothing.

    Parameters
    ----------
    heads
        Heads of an ensemble, on the CPU.
    bags
        A store of at least these patients.
    names
        Patients, each with a tile.
    device
        Where it is computed.

    Returns
    -------
    numpy.ndarray
        Logits of shape (looks, heads, patients, classes), float64.
    """
    near = [copy.deepcopy(head).to(device) for head in heads]
    unasked = np.zeros(len(names), np.int64)
    plan = CacheSpec(bags=bags, patient_ids=names, labels=unasked, whitening=near[0].whitening)
    (shelf,) = build_caches([plan])
    falling = shelf.lengths.argsort(descending=True, stable=True)
    blocks = length_buckets(shelf.lengths[falling].tolist(), _TILES_JUDGED_AT_ONCE)
    found = []
    with torch.inference_mode():
        for block in blocks:
            looks = [shelf.spread(falling[block], version=look) for look in range(shelf.n_versions)]
            said = [torch.stack([head.score(*batch).logits for head in near]) for batch in looks]
            found.append(torch.stack(said))  # (looks, heads, patients of the block, classes)
    in_order = torch.cat(found, dim=2)[:, :, falling.argsort()]
    return in_order.double().cpu().numpy()


def _one_seed(numbers: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
