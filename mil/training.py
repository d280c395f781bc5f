"""One ensemble of heads from the patients it may see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from mil.augmentation import add_noise, drop_tiles, mix_bags
from mil.data import Batch, Features, PatientBags, pad
from mil.errors import RunError, SplitError
from mil.heads import Head, HeadOutput, Whitening, build_head
from mil.losses import BagLoss, bag_loss, class_weights
from mil.splits import stratified_parts

__all__ = [
    "LEAST_TO_STOP_ON",
    "Ensemble",
    "EpochRecord",
    "TrainSettings",
    "member_outputs",
    "train_ensemble",
]

LEAST_TO_STOP_ON = 5
"""Patients of each class that an inner fold must hold for its loss to mean anything."""
_TILES_FOR_WHITENING = 256
_BAGS_AT_ONCE = 16
_SCHEDULES = ("constant", "one-cycle")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How heads are trained; the same for validation and for what is deployed."""

    head: str = "gated"
    """Kind of head."""
    n_members: int = 5
    """Heads in an ensemble."""
    n_components: int = 64
    """Components kept of an embedding; at most, where few patients are there."""
    early_stopping: bool = False
    """Stop each head on an inner fold of its own, else after ``fixed_steps``. One rule for all
    ensembles of a run: heads stopped otherwise give logits of another size, and the calibrator
    would be fitted on logits unlike the deployed ones."""
    max_epochs: int = 60
    """Epochs at most, with early stopping."""
    fixed_steps: int = 60
    """Steps without early stopping. Steps and not epochs: the size of the logits grows with steps,
    and the deployed heads, which learn from more patients, must give logits of the size that the
    calibrator was fitted on."""
    patience: int = 12
    """Epochs without improvement before stopping."""
    batch_patients: int = 16
    """Patients a step."""
    max_tiles: int = 512
    """Tiles drawn of a patient a step."""
    learning_rate: float = 1e-3
    """Of AdamW (Loshchilov and Hutter, 2019)."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    schedule: str = "constant"
    """Learning rate over the steps: ``constant``, or ``one-cycle`` up to ``learning_rate`` and
    down (Smith and Topin, 2019) over the most steps a head may take."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    loss: str = "balanced"
    """One of :data:`mil.losses.LOSSES`; heads are stopped on the balanced one, whatever it is."""
    label_smoothing: float = 0.0
    """Share of a label that is spread evenly over all classes, 0 to below 1."""
    instance_dropout: float = 0.0
    """Share of a patient's tiles left out of a step, 0 to below 1."""
    feature_noise: float = 0.0
    """Standard deviation of noise on whitened components, whose own is at most 1."""
    mixup: float = 0.0
    """Evenness of mixtures of two patients, see :func:`mil.augmentation.mix_bags`; 0: none."""
    device: str = "cpu"
    """Where it runs."""

    @property
    def n_inner_parts(self) -> int:
        """Inner folds to stop on: one a head, and five for a single head."""
        return self.n_members if self.n_members > 1 else 5

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "instance_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise RunError(name, found=str(getattr(self, name)), expected="0 to below 1")
        for name in ("feature_noise", "mixup"):
            if getattr(self, name) < 0:
                raise RunError(name, found=str(getattr(self, name)), expected="0 or more")
        if self.schedule not in _SCHEDULES:
            raise RunError(
                f"schedule {self.schedule!r}", found="unknown", expected=" or ".join(_SCHEDULES)
            )


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of a learning curve."""

    member: int
    """Head of the ensemble."""
    epoch: int
    """From 0."""
    train_loss: float
    """Mean over the steps of the loss that was trained on, in nats."""
    stop_loss: float
    """Class-balanced log loss of the patients stopped on; NaN with fixed steps."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Heads whose mean logit is the answer."""

    heads: tuple[Head, ...]
    """The heads, in evaluation mode, on the CPU."""
    history: tuple[EpochRecord, ...]
    """Learning curves of all of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lesson:
    """What one head learns from: whitened bags, their labels, and the patients to stop on."""

    bags: Sequence[Tensor]
    labels: Tensor
    stop_bags: Sequence[Tensor]
    stop_labels: Tensor


def train_ensemble(
    bags: PatientBags,
    labels: Mapping[str, int],
    *,
    n_classes: int,
    settings: TrainSettings,
    seed: Sequence[int],
    on_head: Callable[[], None] = lambda: None,
) -> Ensemble:
    """Train the heads of one ensemble.

    Whitening is fitted on these patients, without labels. With early stopping each head is stopped
    on another inner fold of these patients and learns from the rest; without it all heads learn
    from all patients and differ by their start and the order of patients.

    Parameters
    ----------
    bags
        The patients to learn from: a store that holds no others.
    labels
        Class index by patient id, of at least these patients.
    n_classes
        Number of classes.
    settings
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
    names = bags.filled()
    classes = np.array([labels[name] for name in names], np.int64)
    counts = np.bincount(classes, minlength=n_classes)
    if not counts.all():
        raise SplitError(
            "training",
            found=f"{counts.tolist()} patients with tiles in each class",
            expected="at least one of each",
        )
    if settings.early_stopping and counts.min() < LEAST_TO_STOP_ON * settings.n_inner_parts:
        raise SplitError(
            "early stopping",
            found=f"{counts.tolist()} patients with tiles in each class",
            expected=f"at least {LEAST_TO_STOP_ON * settings.n_inner_parts} of each",
        )
    parts = stratified_parts(classes, n_parts=settings.n_inner_parts, seed=seed)
    whitening = _fit_whitening(bags.features, names, settings.n_components)
    device = torch.device(settings.device)
    whitening.to(device)
    whitened = _whiten(bags, names, whitening)
    heads, history = [], []
    for member in range(settings.n_members):
        stops = (parts == member) & settings.early_stopping
        lesson = _Lesson(
            bags=[whitened[i] for i in np.flatnonzero(~stops)],
            labels=torch.from_numpy(classes[~stops]).to(device),
            stop_bags=[whitened[i] for i in np.flatnonzero(stops)],
            stop_labels=torch.from_numpy(classes[stops]).to(device),
        )
        # A stream of random numbers of its own leaves the caller's global one untouched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_one_seed((*seed, member)))
            head = build_head(
                settings.head,
                dim=bags.fingerprint.dim,
                n_components=whitening.matrix.shape[1],
                n_classes=n_classes,
            ).to(device)
            head.whitening.load_state_dict(whitening.state_dict())
            history += _train_head(head, lesson, member, n_classes=n_classes, settings=settings)
        heads.append(head.eval().cpu())
        on_head()
    return Ensemble(heads=tuple(heads), history=tuple(history))


def member_outputs(
    heads: Sequence[Head], tiles: Features
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What each head says of one patient.

    Parameters
    ----------
    heads
        Heads of an ensemble, on the CPU.
    tiles
        The patient's embeddings, shape (tiles, dim); at least one.

    Returns
    -------
    tuple
        Logits of shape (heads, classes) and attention of shape (heads, tiles), float64.
    """
    features = torch.from_numpy(np.asarray(tiles, np.float32))[None]  # (1, tiles, dim)
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    with torch.inference_mode():
        # The heads of an ensemble share one whitening, so the long product is taken once.
        components = heads[0].whitening(features)
        outputs = [head.score(components, mask) for head in heads]
    logits = torch.cat([output.logits for output in outputs]).double().numpy()
    attention = torch.cat([output.attention for output in outputs]).double().numpy()
    return logits, attention


def _train_head(
    head: Head, lesson: _Lesson, member: int, *, n_classes: int, settings: TrainSettings
) -> list[EpochRecord]:
    """Train ``head`` in place and leave it with its best weights."""
    criterion = bag_loss(
        settings.loss,
        lesson.labels,
        n_classes=n_classes,
        label_smoothing=settings.label_smoothing,
    )
    optimiser = torch.optim.AdamW(
        [p for p in head.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    stops = len(lesson.stop_bags) > 0
    steps_an_epoch = -(-len(lesson.bags) // settings.batch_patients)
    n_fixed = max(1, round(settings.fixed_steps / steps_an_epoch))
    n_epochs = settings.max_epochs if stops else n_fixed
    schedule = _schedule(optimiser, settings, n_steps=n_epochs * steps_an_epoch)
    best_loss, best_epoch = float("inf"), -1
    best_state: Mapping[str, Tensor] = {}
    history: list[EpochRecord] = []
    for epoch in range(n_epochs):
        train_loss = _train_epoch(head, lesson, criterion, schedule, settings)
        stop_loss = _stop_loss(head, lesson, n_classes) if stops else float("nan")
        history.append(
            EpochRecord(member=member, epoch=epoch, train_loss=train_loss, stop_loss=stop_loss)
        )
        if stops and stop_loss < best_loss:
            # A deep copy: state_dict alone would go on changing with the weights.
            best_loss, best_epoch = stop_loss, epoch
            best_state = copy.deepcopy(head.state_dict())
        if stops and epoch - best_epoch >= settings.patience:
            break
    if best_state:
        head.load_state_dict(best_state)
    return history


def _train_epoch(
    head: Head,
    lesson: _Lesson,
    criterion: BagLoss,
    schedule: LRScheduler,
    settings: TrainSettings,
) -> float:
    head.train()
    losses = []
    order = torch.randperm(len(lesson.bags))
    for chosen in torch.split(order, settings.batch_patients):
        bags = [_draw(lesson.bags[int(i)], settings) for i in chosen]
        truth = lesson.labels[chosen.to(lesson.labels.device)]
        # Weights average 1 over the patients, so a batch need not hold every class.
        loss = _batch_losses(head, bags, truth, criterion, settings).mean()
        schedule.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(head.parameters(), settings.clip_norm)
        schedule.optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def _batch_losses(
    head: Head,
    bags: Sequence[Tensor],
    truth: Tensor,
    criterion: BagLoss,
    settings: TrainSettings,
) -> Tensor:
    """Weighted losses of patients, shape (batch,); of mixtures with ``settings.mixup``."""
    if not settings.mixup:
        batch = pad(bags)
        return _weighted(head, head.score(*batch), batch.mask, truth, criterion)
    mixture = mix_bags(bags, settings.mixup)
    batch = pad(mixture.bags)
    output = head.score(*batch)
    own = _weighted(head, output, batch.mask, truth, criterion)
    other = _weighted(head, output, batch.mask, truth[mixture.partners], criterion)
    return mixture.shares * own + (1 - mixture.shares) * other


def _weighted(
    head: Head, output: HeadOutput, mask: Tensor, truth: Tensor, criterion: BagLoss
) -> Tensor:
    losses = criterion(output.logits, truth)
    auxiliary = head.auxiliary_loss(output, mask, truth)
    if auxiliary is not None:
        losses = losses + auxiliary
    return losses * criterion.weights[truth]


def _schedule(
    optimiser: torch.optim.Optimizer, settings: TrainSettings, *, n_steps: int
) -> LRScheduler:
    if settings.schedule == "one-cycle":
        return OneCycleLR(
            optimiser, max_lr=settings.learning_rate, total_steps=n_steps, cycle_momentum=False
        )
    return ConstantLR(optimiser, factor=1.0)


def _stop_loss(head: Head, lesson: _Lesson, n_classes: int) -> float:
    """Class-balanced log loss of the patients to stop on, all their tiles used."""
    head.eval()
    with torch.inference_mode():
        batch: Batch = pad(lesson.stop_bags)
        losses = functional.cross_entropy(
            head.score(*batch).logits, lesson.stop_labels, reduction="none"
        )
        weights = class_weights(lesson.stop_labels, n_classes)
        return float((losses * weights[lesson.stop_labels]).mean())


def _draw(bag: Tensor, settings: TrainSettings) -> Tensor:
    if len(bag) > settings.max_tiles:
        bag = bag[torch.randperm(len(bag))[: settings.max_tiles].to(bag.device)]
    return add_noise(drop_tiles(bag, settings.instance_dropout), settings.feature_noise)


def _whiten(bags: PatientBags, names: Sequence[str], whitening: Whitening) -> list[Tensor]:
    """Components of each patient's tiles, on the device of ``whitening``."""
    n_tiles = bags.n_tiles
    lengths = [n_tiles[name] for name in names]
    # One piece of memory: many small ones among passing large ones would tear the heap to pieces.
    device = whitening.mean.device
    whole = torch.empty(sum(lengths), whitening.matrix.shape[1], device=device)
    parts = list(torch.split(whole, lengths))
    with torch.no_grad():
        for name, part in zip(names, parts, strict=True):
            tiles = torch.from_numpy(bags.features[name].astype(np.float32)).to(device)
            part.copy_(whitening(tiles))
    return parts


def _fit_whitening(
    bags: Mapping[str, Features], names: Sequence[str], n_components: int
) -> Whitening:
    """Principal components of the tiles, every patient with the same weight.

    Components are scaled by their standard deviation with a floor (the mean variance of the kept
    ones is added), so that the smallest, mostly noise, are not blown up to the size of the first.
    At most 256 tiles a patient are looked at, evenly spaced. Each bag is read once.
    """
    centre = _evenly_drawn(bags[names[0]]).mean(axis=0)
    dim = len(centre)
    moments, means = np.zeros((dim, dim)), np.zeros(dim)
    for start in range(0, len(names), _BAGS_AT_ONCE):
        # Moved near 0 first, so that float32 suffices for the product. Rows are weighed so that
        # the product of all with themselves is a sum over patients of means over their tiles.
        block = names[start : start + _BAGS_AT_ONCE]
        drawn = [_evenly_drawn(bags[name]) - centre for name in block]
        means += sum(tiles.mean(axis=0, dtype=np.float64) for tiles in drawn) / len(names)
        rows = np.concatenate([tiles / np.float32(np.sqrt(len(tiles))) for tiles in drawn])
        moments += rows.T @ rows / len(names)
    moments -= np.outer(means, means)
    kept = min(n_components, dim)
    values, vectors = scipy.linalg.eigh(moments, subset_by_index=(dim - kept, dim - 1))
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # The sign of an eigenvector is arbitrary; fixing it makes runs comparable.
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), range(kept)] < 0, -1, 1)
    scale = 1 / np.sqrt(values + values.mean() + 1e-12)
    whitening = Whitening(dim, kept)
    whitening.mean = torch.from_numpy((centre + means).astype(np.float32))
    whitening.matrix = torch.from_numpy((vectors * scale).astype(np.float32))
    return whitening


def _evenly_drawn(bag: Features) -> npt.NDArray[np.float32]:
    """At most so many tiles as whitening looks at, shape (tiles, dim)."""
    places = np.linspace(0, len(bag) - 1, min(len(bag), _TILES_FOR_WHITENING)).astype(np.int64)
    return bag[places].astype(np.float32)


def _one_seed(numbers: Sequence[int]) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> 1)
