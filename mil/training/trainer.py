"""Training loop of heads, several at a time where they can be stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from mil.heads import Head, HeadOutput, StackedHeads, can_stack
from mil.heads.random_streams import RandomStreams
from mil.training.augmentation import add_noise, apply_instance_dropout, mix_bags
from mil.training.config import TrainConfig
from mil.training.feature_cache import FeatureCache, length_buckets
from mil.training.losses import bag_loss, class_weights, instance_attention_loss

__all__ = [
    "EpochRecord",
    "TrainSplit",
    "Trainer",
    "build_scheduler",
    "tiles_per_batch",
    "train_heads",
]

_STEPS_PER_VALIDATION = 10
_VALIDATION_TILES = 256  # per patient at most
_TILES_PER_BATCH_CPU = 16_384
_TILES_PER_BATCH_ACCELERATOR = 4_194_304
_INSTANCE_LOSS_WEIGHT = 0.3  # of the labels of images, relative to the patient's label


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of the learning curve of a head, ``member`` of its ensemble; losses are in nats.

    ``train_loss`` is the mean over the steps. ``val_loss`` is the class-balanced log loss of the
    validation patients, NaN without early stopping and in epochs without validation.
    """

    member: int
    epoch: int
    train_loss: float
    val_loss: float


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainSplit:
    """Patients of one head, ``member`` of its ensemble, as indices into a feature cache.

    Training patients and validation patients each have shape (patients,), int64; the latter are
    empty without early stopping. The random generator ``stream`` is on the device of the cache and
    common to an ensemble.
    """

    member: int
    train_idx: Tensor
    val_idx: Tensor
    stream: torch.Generator


def train_heads(
    heads: Sequence[Head],
    splits: Sequence[TrainSplit],
    cache: FeatureCache,
    *,
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None],
) -> list[list[EpochRecord]]:
    """Train heads in place, keep the weights of the best validation loss, return learning curves.

    Heads whose batches have the same shape are stacked and trained together. A head's result
    depends on the others only in the last bits of sums. A head that stops early leaves the stack.
    The heads are of one kind, with random weights, on the device of the cache.
    """
    states = [_HeadState(head, split) for head, split in zip(heads, splits, strict=True)]
    for shape, group in _group_by_shape(states, cache, config):
        Trainer(group, cache, shape, n_classes=n_classes, config=config, on_head=on_head).train()
    return [state.curve for state in states]


def tiles_per_batch(device: torch.device) -> int:
    """Return the number of tiles that uses an accelerator fully, or fits a processor's cache."""
    return _TILES_PER_BATCH_CPU if device.type == "cpu" else _TILES_PER_BATCH_ACCELERATOR


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, *, n_steps: int
) -> LRScheduler:
    """Return the learning rate schedule over at most ``n_steps`` steps of training."""
    if config.schedule == "one-cycle":
        return OneCycleLR(
            optimizer,
            max_lr=config.effective_learning_rate,
            total_steps=n_steps,
            cycle_momentum=False,
        )
    return ConstantLR(optimizer, factor=1.0)


@dataclass(eq=False)
class _HeadState:
    """A head with the best weights so far, its split, learning curve and best validation loss.

    ``best_epoch`` is -1 before the first validation.
    """

    head: Head
    split: TrainSplit
    curve: list[EpochRecord] = field(default_factory=list)
    best_loss: float = float("inf")
    best_epoch: int = -1

    def update(self, epoch: int, train_loss: float, val_loss: float) -> bool:
        """Add an epoch to the curve; return whether its validation loss is the best so far."""
        self.curve.append(
            EpochRecord(
                member=self.split.member, epoch=epoch, train_loss=train_loss, val_loss=val_loss
            )
        )
        if not val_loss < self.best_loss:
            return False
        self.best_loss, self.best_epoch = val_loss, epoch
        return True


class _EpochShape(NamedTuple):
    """Size of a head's epochs: every patient is drawn, at most ``n_tiles`` tiles of each."""

    n_steps: int
    n_patients: int
    """Patients per step."""
    n_tiles: int

    @classmethod
    def of(cls, split: TrainSplit, cache: FeatureCache, config: TrainConfig) -> _EpochShape:
        """Return the size for the training patients of a split."""
        n = len(split.train_idx)
        n_steps = -(-n // config.batch_patients)
        longest = int(cache.lengths[split.train_idx.to(cache.lengths.device)].max())
        return cls(n_steps, -(-n // n_steps), min(config.max_tiles, longest))


def _group_by_shape(
    states: Sequence[_HeadState], cache: FeatureCache, config: TrainConfig
) -> Iterable[tuple[_EpochShape, list[_HeadState]]]:
    """Yield groups of heads to train together: of one shape, and single if they do not stack."""
    groups: dict[_EpochShape, list[_HeadState]] = {}
    for state in states:
        groups.setdefault(_EpochShape.of(state.split, cache, config), []).append(state)
    for shape, group in sorted(groups.items()):
        if can_stack(group[0].head):
            yield shape, group
        else:
            yield from ((shape, [state]) for state in group)


class Trainer:
    """Trainer of heads that are stacked and trained together, step by step, as one module."""

    def __init__(
        self,
        states: Sequence[_HeadState],
        cache: FeatureCache,
        shape: _EpochShape,
        *,
        n_classes: int,
        config: TrainConfig,
        on_head: Callable[[], None],
    ) -> None:
        self.cache, self.shape, self.config = cache, shape, config
        self._on_head = on_head
        self.active = list(states)  # in the order of the stack
        self.rng = RandomStreams([state.split.stream for state in states])
        self.stack = StackedHeads([state.head for state in states], self.rng)
        n_fixed = max(1, round(config.fixed_steps / shape.n_steps))
        self.validation_interval = max(1, round(_STEPS_PER_VALIDATION / shape.n_steps))
        self.n_epochs = config.max_epochs if config.early_stopping else n_fixed
        self.losses = [
            bag_loss(
                config.loss,
                cache.labels[state.split.train_idx],
                n_classes=n_classes,
                label_smoothing=config.label_smoothing,
            )
            for state in states
        ]
        self.validator = (
            _Validator([state.split.val_idx for state in states], cache, n_classes=n_classes)
            if config.early_stopping
            else None
        )
        self.optimizer = torch.optim.AdamW(
            self.stack.parameters(),
            lr=config.effective_learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.scheduler = build_scheduler(
            self.optimizer, config, n_steps=self.n_epochs * shape.n_steps
        )

    def train(self) -> None:
        """Train until every head has finished its epochs or stopped early."""
        for epoch in range(self.n_epochs):
            self._end_epoch(epoch, self._train_epoch())
            if not self.active:
                break

    def _train_epoch(self) -> list[float]:
        """Train for one epoch; return the mean training loss of each head, in nats."""
        self.stack.module.train()
        losses = []
        for patients in self._shuffle():
            loss = self._train_loss(patients)  # (heads,)
            self.optimizer.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            self._clip_gradients()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.detach())
        means: list[float] = torch.stack(losses).double().mean(dim=0).tolist()
        return means

    def _end_epoch(self, epoch: int, train_losses: Sequence[float]) -> None:
        """Validate the heads, keep the best weights, and drop the heads that are finished."""
        val_losses = [float("nan")] * len(self.active)
        if self.validator and epoch % self.validation_interval == 0:
            val_losses = self.validator.val_loss(self.stack.module)
        rows = zip(self.active, train_losses, val_losses, strict=True)
        for index, (state, train_loss, val_loss) in enumerate(rows):
            if state.update(epoch, train_loss, val_loss):
                self.stack.export(index, state.head)
        self._drop_finished(epoch)

    def _train_loss(self, patients: Tensor) -> Tensor:
        """Return the mean loss of each head over its patients, shape (heads,)."""
        config, rng = self.config, self.rng
        batch, instance_labels = self.cache.sample_labelled(patients, self.shape.n_tiles, rng)
        batch = apply_instance_dropout(batch, config.instance_dropout, rng)
        batch = add_noise(batch, config.feature_noise, rng)
        target = self.cache.labels[patients]
        if not config.mixup:
            output = self.stack.module.forward_components(*batch)
            losses = self._weighted_loss(output, batch.mask, target)
            if instance_labels is not None:
                instance_loss = instance_attention_loss(
                    output.attention, batch.mask, instance_labels
                )
                losses = losses + _INSTANCE_LOSS_WEIGHT * instance_loss
        else:
            mixed = mix_bags(batch, config.mixup, rng, n_heads=self.stack.n_heads)
            output = self.stack.module.forward_components(*mixed.batch)
            own, other = (
                self._weighted_loss(output, mixed.batch.mask, labels)
                for labels in (target, target[mixed.partners])
            )
            losses = mixed.shares * own + (1 - mixed.shares) * other
        # Class weights average 1 over all patients, so a batch need not hold every class.
        return losses.view(self.stack.n_heads, -1).mean(dim=1)

    def _weighted_loss(self, output: HeadOutput, mask: Tensor, target: Tensor) -> Tensor:
        """Return class-weighted losses of patients, shape (heads × batch,)."""
        losses = self.losses[0](output.logits, target)
        auxiliary = self.stack.module.auxiliary_loss(output, mask, target)
        if auxiliary is not None:
            losses = losses + auxiliary
        weights = torch.stack([loss.weights for loss in self.losses])  # (heads, classes)
        return losses * weights.gather(1, target.view(len(weights), -1)).view(-1)

    def _shuffle(self) -> Tensor:
        """Return the patients of an epoch in random order, shape (steps, heads × batch).

        The last step is filled up with patients from the beginning of the order.
        """
        device, (n_steps, n_patients, _) = self.cache.labels.device, self.shape
        positions = torch.arange(n_steps * n_patients, device=device)
        ranks = self.rng.uniform(len(self.active), len(positions), device=device)
        rows = []
        for state, rank in zip(self.active, ranks, strict=True):
            train_idx = state.split.train_idx.to(device)
            n = len(train_idx)
            rows.append(train_idx[rank[:n].argsort()[positions % n]])
        return torch.stack([row.view(n_steps, -1) for row in rows], dim=1).flatten(1)

    def _clip_gradients(self) -> None:
        """Scale the gradient of each head to at most the maximum norm."""
        gradients = [
            self.stack.per_head(p.grad) for p in self.stack.parameters() if p.grad is not None
        ]
        norms = torch.stack([each.square().sum(dim=1) for each in gradients]).sum(dim=0).sqrt()
        scale = (self.config.clip_norm / (norms + 1e-6)).clamp(max=1)[:, None]
        for gradient in gradients:
            gradient.mul_(scale)

    def _drop_finished(self, epoch: int) -> None:
        """Remove heads from the stack whose training ends with this epoch."""
        is_last = epoch == self.n_epochs - 1
        patience = self.config.patience if self.validator else self.n_epochs
        remaining = []
        for index, state in enumerate(self.active):
            if not is_last and epoch - state.best_epoch < patience:
                remaining.append(index)
                continue
            if state.best_epoch < 0:  # without validation the last weights are kept
                self.stack.export(index, state.head)
            self._on_head()
        if 0 < len(remaining) < len(self.active):
            self.stack.select(remaining, self.optimizer)
            self.rng.select(remaining)
            if self.validator:
                self.validator.select(remaining)
            self.losses = [self.losses[index] for index in remaining]
        self.active = [self.active[index] for index in remaining]


class _Validator:
    """Validation loss of each head, in nats, from indices of its patients, shape (patients,)."""

    def __init__(self, val_idx: Sequence[Tensor], cache: FeatureCache, *, n_classes: int) -> None:
        self._cache = cache
        n_most = max(len(patients) for patients in val_idx)
        rows, weights = [], []
        for patients in (patients.to(cache.labels.device) for patients in val_idx):
            # Sorted by length, so that the patients of a block need little padding.
            longest = patients[cache.lengths[patients].argsort(descending=True, stable=True)]
            labels = cache.labels[longest]
            n_missing = n_most - len(longest)
            rows.append(torch.cat([longest, longest[-1:].expand(n_missing)]))
            weight = class_weights(labels, n_classes)[labels] / len(labels)
            weights.append(functional.pad(weight, (0, n_missing)))
        self._patients = torch.stack(rows)  # (heads, patients)
        self._weights = torch.stack(weights)  # (heads, patients): 0 on padding
        self._blocks = self._make_blocks()

    def val_loss(self, module: Head) -> list[float]:
        """Return the class-balanced log loss of each head, in nats, on evenly spaced tiles."""
        module.eval()
        parts = []
        with torch.inference_mode():
            for block in self._blocks:
                patients = self._patients[:, block].flatten()
                batch = self._cache.take_evenly(patients, _VALIDATION_TILES)
                logits = module.forward_components(*batch).logits
                losses = functional.cross_entropy(
                    logits, self._cache.labels[patients], reduction="none"
                )
                parts.append(losses.view(len(self._patients), -1))
            # Double precision keeps the comparison independent of blocks and padding.
            losses = torch.cat(parts, dim=1).double() * self._weights
            means: list[float] = losses.sum(1).tolist()
        return means

    def select(self, indices: Sequence[int]) -> None:
        """Keep only these heads."""
        self._patients, self._weights = self._patients[indices], self._weights[indices]
        self._blocks = self._make_blocks()

    def _make_blocks(self) -> list[slice]:
        """Return slices of columns whose padded tiles fit one batch."""
        widths = self._cache.lengths[self._patients].amax(dim=0).clamp(max=_VALIDATION_TILES)
        room = tiles_per_batch(self._weights.device) // len(self._patients)
        return length_buckets(widths.tolist(), room)
