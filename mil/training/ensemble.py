"""Training of ensembles, each on the patients of its store only."""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from mil.arrays import Floats, Ints
from mil.base_learners.directions import N_COMPONENTS
from mil.base_learners.learners import BaseLearners
from mil.data.bags import PatientBags
from mil.data.features import Features
from mil.data.patient_groups import assign_groups, group_ids
from mil.data.splits import stratified_fold_ids
from mil.errors import RunError, SplitError
from mil.heads import Head, Whitening, build_head
from mil.heads.ensemble import logit_spread
from mil.heads.tile_moments import TileMoments
from mil.heads.whitening import MomentsKey, fit_pca_whitenings
from mil.threads import map_single_threaded
from mil.training.config import N_INNER_FOLDS, TrainConfig
from mil.training.feature_cache import CacheSpec, FeatureCache, build_caches, length_buckets
from mil.training.trainer import EpochRecord, TrainSplit, tiles_per_batch, train_heads

__all__ = [
    "MIN_VALIDATION_PER_CLASS",
    "Ensemble",
    "SharedStatistics",
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
_TILES_FOR_SPREAD = 256  # per patient at most


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedStatistics:
    """Statistics of embeddings, without labels, that are computed once for several trainings.

    Attributes
    ----------
    pooled
        Pooled embeddings by patient id, shape (3, dim), of a stack, see
        :func:`mil.base_learners.pooling.mean_and_extremes`.
    moments
        Moments of patients' tiles, see :func:`mil.heads.whitening.fit_pca_whitenings`.
    """

    pooled: dict[str, Floats] = field(default_factory=dict)
    moments: dict[MomentsKey, TileMoments] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Trained heads in evaluation mode on the CPU, their learning curves, and base learners.

    The prediction of an ensemble is the mean of its heads' logits, shape (classes,); base learners
    are None without a stack.
    """

    heads: tuple[Head, ...]
    history: tuple[EpochRecord, ...]
    base_learners: BaseLearners | None = None


def train_ensemble(
    bags: PatientBags,
    labels: Mapping[str, int],
    *,
    n_classes: int,
    config: TrainConfig,
    seed: Sequence[int],
    on_head: Callable[[], None] = lambda: None,
) -> Ensemble:
    """Train one ensemble; see :func:`train_ensembles`."""
    return train_ensembles(
        [bags], [labels], seeds=[seed], n_classes=n_classes, config=config, on_head=on_head
    )[0]


def train_ensembles(
    bags: Sequence[PatientBags],
    labels: Sequence[Mapping[str, int]],
    *,
    seeds: Sequence[Sequence[int]],
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None] = lambda: None,
    shared: SharedStatistics | None = None,
) -> tuple[Ensemble, ...]:
    """Train ensembles together, each on its own bags, shape (tiles, dim) per patient.

    Whitening is fitted on a store's patients and its unlabelled ones, without labels. With early
    stopping each head has another inner fold as validation set and is trained on the rest; without
    it all heads are trained on all patients and differ by initialisation and order of patients.
    Where tiles have augmented views, each step samples one version of each tile; whitening and
    validation use plain tiles.

    The logits of an ensemble are divided by their spread over its own training patients, see
    :func:`mil.heads.ensemble.logit_spread`, so that those of different folds have one scale. With
    the head ``stack`` each ensemble has base learners, fitted on the same patients.

    Each ensemble has its own random generator, so that the others change only the last bits of its
    sums; the same ensembles together give the same heads on one machine. If the device has not
    enough memory for all of them, they are trained in two halves, and so on.

    Parameters
    ----------
    bags
        The training patients of each ensemble and no others; see :func:`max_parallel_ensembles`
        for a good number.
    labels
        Class index by patient id for each ensemble, of at least its patients.
    seeds
        One or more numbers for each ensemble.
    n_classes
        Number of classes.
    config
        Hyper-parameters.
    on_head
        Callback after each finished head.
    shared
        Statistics to read and to add to, where the stores, and those of other calls with it, hold
        the same embeddings.

    Raises
    ------
    SplitError
        If a class has no patient with tiles, or too few for early stopping.
    RunError
        If the device has not enough memory for one ensemble.
    """
    try:
        return _train_together(
            bags, labels, seeds, n_classes=n_classes, config=config, on_head=on_head,
            shared=shared,
        )  # fmt: skip
    except torch.cuda.OutOfMemoryError as error:
        if len(bags) == 1:
            raise RunError(
                f"device {config.device}",
                actual="out of memory with a single ensemble on it",
                expected="memory for the tiles of all its patients",
                hint="End other programs on it and run the same command again: it continues after "
                "the finished folds. Or train with --device cpu.",
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(bags) // 2
    first, second = (
        train_ensembles(
            bags[part], labels[part], seeds=seeds[part], n_classes=n_classes, config=config,
            on_head=on_head, shared=shared,
        )
        for part in (slice(half), slice(half, None))
    )  # fmt: skip
    return first + second


def _train_together(
    bags: Sequence[PatientBags],
    labels: Sequence[Mapping[str, int]],
    seeds: Sequence[Sequence[int]],
    *,
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None],
    shared: SharedStatistics | None,
) -> tuple[Ensemble, ...]:
    device = torch.device(config.device)
    indices = [
        _class_indices(store, of_store, n_classes=n_classes, config=config)
        for store, of_store in zip(bags, labels, strict=True)
    ]
    whitenings = _fit_whitenings(bags, config, shared)
    specs = [
        CacheSpec(
            bags=store, patient_ids=store.nonempty(), labels=of_store, whitening=whitening,
            wide=wide[0] if wide else None,
            pooled=(shared or SharedStatistics()).pooled if config.is_stack else None,
        )
        for store, of_store, (whitening, *wide) in zip(bags, indices, whitenings, strict=True)
    ]  # fmt: skip
    splits: list[TrainSplit] = []
    starts = [0]
    for spec, seed in zip(specs, seeds, strict=True):
        splits += _inner_splits(spec, seed, config, first_index=starts[-1])
        starts.append(starts[-1] + len(spec.patient_ids))
    caches = build_caches(specs)
    base_learners = map_single_threaded(
        lambda pair: _fit_base_learners(*pair, n_classes=n_classes, config=config),
        list(zip(specs, caches, strict=True)),
    )
    cache = FeatureCache.concatenate(caches)
    del caches  # the tiles are in memory once
    # A fork of the global random state leaves the caller's untouched.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        init = partial(_init_head, n_classes=n_classes, config=config)
        heads = [
            init(spec.whitening, (*seed, member)).to(device)
            for spec, seed in zip(specs, seeds, strict=True)
            for member in range(config.n_members)
        ]
        curves = train_heads(
            heads, splits, cache, n_classes=n_classes, config=config, on_head=on_head
        )
    ensembles = []
    for index, of_base in enumerate(base_learners):
        own = slice(index * config.n_members, (index + 1) * config.n_members)
        if not _normalise(heads[own], cache, range(starts[index], starts[index + 1])):
            raise _diverged(config)
        ensembles.append(
            Ensemble(
                heads=tuple(head.cpu() for head in heads[own]),
                history=tuple(record for curve in curves[own] for record in curve),
                base_learners=of_base,
            )
        )
    return tuple(ensembles)


def _normalise(heads: Sequence[Head], cache: FeatureCache, patients: range) -> bool:
    """Divide the logits of an ensemble by their spread over its training patients, in place.

    At most 256 evenly spaced tiles of each patient are used; no label is. Returns whether the
    logits are finite.
    """
    rows = torch.arange(patients.start, patients.stop, device=cache.lengths.device)
    order = rows[cache.lengths[rows].argsort(descending=True, stable=True)]
    widths = cache.lengths[order].clamp(max=_TILES_FOR_SPREAD)
    blocks = []
    with torch.inference_mode():
        for head in heads:
            head.eval()
        for block in length_buckets(widths.tolist(), _TILES_PER_PREDICTION):
            batch = cache.take_evenly(order[block], _TILES_FOR_SPREAD)
            members = [head.forward_components(*batch).logits.double() for head in heads]
            blocks.append(torch.stack(members).mean(dim=0))
    logits = torch.cat(blocks)
    scale = logit_spread(logits.cpu().numpy())
    for head in heads:
        head.logit_scale.fill_(scale)
    return bool(logits.isfinite().all())


def _diverged(config: TrainConfig) -> RunError:
    default = replace(config, learning_rate=None)
    return RunError(
        "training",
        actual=f"logits of NaN or infinity, with learning_rate {config.effective_learning_rate:g} "
        f"and weight_decay {config.weight_decay:g}",
        expected="finite logits",
        hint=f"Give values nearer to the defaults, {default.effective_learning_rate:g} and "
        f"{TrainConfig.weight_decay:g}.",
    )


def _fit_base_learners(
    spec: CacheSpec,
    cache: FeatureCache,
    *,
    n_classes: int,
    config: TrainConfig,
) -> BaseLearners | None:
    """Fit the base learners of a stack to the patients of a cache, on plain tiles, on the CPU."""
    if spec.pooled is None:
        return None
    plain, whitening = cache.wide_tiles, spec.wide
    if plain is None or whitening is None:
        plain = cache.tiles.view(-1, cache.n_versions, cache.tiles.shape[1])[:, 0]
        whitening = spec.whitening
    return BaseLearners.fit(
        np.stack([spec.pooled[name] for name in spec.patient_ids]),
        [part.cpu() for part in torch.split(plain, cache.lengths.tolist())],
        spec.labels,
        n_classes=n_classes,
        balanced=config.loss != "cross-entropy",
        whitening=whitening,
        n_leading=config.n_components,
        groups=group_ids(spec.patient_ids, spec.bags.linked_patients()),
    )


def max_parallel_ensembles(bags: PatientBags, config: TrainConfig) -> int:
    """Return how many ensembles to train together: as many as use the device fully and fit.

    The number depends only on the sizes of the bags of all patients, the configuration, and the
    device's memory in bytes.
    """
    device = torch.device(config.device)
    lengths = [n_tiles for n_tiles in bags.n_tiles.values() if n_tiles]
    n_tiles = config.n_members * config.batch_patients * min(config.max_tiles, max(lengths))
    n_bytes = 4 * config.n_components * sum(lengths) * bags.n_versions
    n_bytes += 4 * sum(_wide_components(bags, config)) * sum(lengths)
    room = _MAX_CACHE_BYTES
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // _GPU_MEMORY_DIVISOR
    return max(1, min(tiles_per_batch(device) // n_tiles, room // n_bytes))


def _class_indices(
    bags: PatientBags, labels: Mapping[str, int], *, n_classes: int, config: TrainConfig
) -> Ints:
    """Return the class indices of the patients with tiles, shape (patients,), and check counts."""
    indices = np.array([labels[name] for name in bags.nonempty()], np.int64)
    counts = np.bincount(indices, minlength=n_classes)
    actual = f"{counts.tolist()} patients with tiles in each class"
    if not counts.all():
        raise SplitError("training", actual=actual, expected="at least one of each")
    least = MIN_VALIDATION_PER_CLASS * N_INNER_FOLDS
    if config.early_stopping and counts.min() < least:
        raise SplitError("early stopping", actual=actual, expected=f"at least {least} of each")
    return indices


def _fit_whitenings(
    bags: Sequence[PatientBags], config: TrainConfig, shared: SharedStatistics | None
) -> list[tuple[Whitening, ...]]:
    """Fit the whitening of each store, and a wide one for base learners where the heads' is not."""
    n_components = [config.n_components, *_wide_components(bags[0], config)]
    sets = [store.unsupervised_features() for store in bags]
    device = torch.device(config.device)
    if shared is not None:
        every: Mapping[str, Features] = ChainMap(*(of for of, _ in sets))  # type: ignore[arg-type] # only read
        names = [own for _, own in sets]
        return fit_pca_whitenings(every, names, *n_components, device=device, known=shared.moments)
    return [
        fit_pca_whitenings(features, [names], *n_components, device=device)[0]
        for features, names in sets
    ]


def _wide_components(bags: PatientBags, config: TrainConfig) -> list[int]:
    """Return the number of components for base learners where it is not that for the heads."""
    n_components = min(N_COMPONENTS, bags.fingerprint.dim)
    return [n_components] if config.is_stack and n_components > config.n_components else []


def _inner_splits(
    spec: CacheSpec, seed: Sequence[int], config: TrainConfig, *, first_index: int
) -> list[TrainSplit]:
    """Split patients, the first at ``first_index`` of the cache, for training and validation."""
    fold_ids = assign_groups(
        group_ids(spec.patient_ids, spec.bags.linked_patients()),
        lambda patients: stratified_fold_ids(
            spec.labels[patients], n_folds=N_INNER_FOLDS, seed=seed
        ),
    )
    stream = torch.Generator(torch.device(config.device)).manual_seed(_hash_seed(seed))
    splits = []
    for member in range(config.n_members):
        is_validation = (fold_ids == member % N_INNER_FOLDS) & config.early_stopping
        train_idx, val_idx = (
            torch.from_numpy(first_index + np.flatnonzero(rows))
            for rows in (~is_validation, is_validation)
        )
        splits.append(
            TrainSplit(member=member, train_idx=train_idx, val_idx=val_idx, stream=stream)
        )
    return splits


def _init_head(
    whitening: Whitening, seed: Sequence[int], *, n_classes: int, config: TrainConfig
) -> Head:
    torch.manual_seed(_hash_seed(seed))
    dim, n_components = whitening.matrix.shape
    head = build_head(config.head_kind, dim=dim, n_components=n_components, n_classes=n_classes)
    head.whitening.load_state_dict(whitening.state_dict())
    return head


def predict_batch(
    heads: Sequence[Head], bags: PatientBags, names: Sequence[str], *, device: torch.device
) -> Floats:
    """Return logits of many patients at once, shape (versions, heads, patients, classes), float64.

    They equal those of :func:`mil.heads.ensemble.predict_views` per patient up to the last bits of
    sums. It saves an accelerator thousands of small products; a processor gains nothing. ``heads``
    are on the CPU, and each patient in ``names`` has at least one tile in ``bags``.
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
                torch.stack([head.predict(*batch).logits for head in on_device])
                for batch in batches
            ]
            blocks.append(torch.stack(logits))  # (versions, heads, patients of the block, classes)
    return torch.cat(blocks, dim=2)[:, :, order.argsort()].double().cpu().numpy()


def _hash_seed(numbers: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
