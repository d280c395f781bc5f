"""Heads taught side by side, each by patients of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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

__all__ = ["EpochRecord", "TrainSplit", "build_schedule", "tiles_at_once", "train_heads"]

_STEPS_BETWEEN_CHECKS = 10  # between two looks at the loss stopped on
_TILES_TO_STOP_ON = 256  # of a patient at most
_TILES_AT_ONCE = 16_384
_TILES_AT_ONCE_ON_ACCELERATOR = 4_194_304
_ATTENTION_WEIGHT = 0.3  # of labels of images beside that of the patient


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of a learning curve."""

    member: int
    """Head of the ensemble."""
    epoch: int
    """From 0."""
    train_loss: float
    """Mean over the steps of the loss that was trained on, in nats."""
    val_loss: float
    """Class-balanced log loss of the patients stopped on; NaN with fixed steps, and in epochs after
    which it was not looked at."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainSplit:
    """Patients of a shelf that one head learns from and is stopped on."""

    member: int
    """Number of the head in its ensemble."""
    learned: Tensor
    """Shape (patients,), int64: whom it learns from."""
    stopped_on: Tensor
    """Shape (patients,), int64: whose loss it is stopped by; empty with fixed steps."""
    stream: torch.Generator
    """Where random numbers come from, on the shelf's device; the same for a whole ensemble."""

    def moved(self, n_patients: int) -> TrainSplit:
        """The same, behind so many other patients of a shelf."""
        return replace(
            self, learned=self.learned + n_patients, stopped_on=self.stopped_on + n_patients
        )


def train_heads(
    heads: Sequence[Head],
    lessons: Sequence[TrainSplit],
    shelf: FeatureCache,
    *,
    n_classes: int,
    config: TrainConfig,
    on_head: Callable[[], None],
) -> list[list[EpochRecord]]:
    """Train heads in place, together where they can be stacked, and leave the best weights in each.

    Those are taught together whose steps have one shape, so that nothing in what a head learns
    depends on the ensembles beside it but the last bit of sums. A head that has stopped leaves the
    others.

    Parameters
    ----------
    heads
        Of one kind, with random weights, on the shelf's device.
    lessons
        One a head.
    shelf
        Patients of all lessons.
    n_classes, config
        As for :func:`mil.training.ensemble.train_ensemble`.
    on_head
        Called when a head is done.

    Returns
    -------
    list
        Learning curve of each head.
    """
    pupils = [_HeadState(head, lesson) for head, lesson in zip(heads, lessons, strict=True)]
    for size, some in _group_by_shape(pupils, shelf, config):
        Trainer(some, shelf, size, n_classes=n_classes, config=config, on_head=on_head).run()
    return [pupil.curve for pupil in pupils]


def tiles_at_once(device: torch.device) -> int:
    """Tiles that heads are best shown at once: a device is kept busy, a processor's cache holds."""
    return _TILES_AT_ONCE if device.type == "cpu" else _TILES_AT_ONCE_ON_ACCELERATOR


def build_schedule(
    optimiser: torch.optim.Optimizer, config: TrainConfig, *, n_steps: int
) -> LRScheduler:
    """Learning rate over at most ``n_steps`` steps."""
    if config.schedule == "one-cycle":
        return OneCycleLR(
            optimiser,
            max_lr=config.effective_learning_rate,
            total_steps=n_steps,
            cycle_momentum=False,
        )
    return ConstantLR(optimiser, factor=1.0)


@dataclass(eq=False)
class _HeadState:
    """A head and how it gets on."""

    head: Head
    """Holds the best weights so far."""
    lesson: TrainSplit
    """Whom it learns from."""
    curve: list[EpochRecord] = field(default_factory=list)
    """Its epochs so far."""
    best_loss: float = float("inf")
    """Smallest loss of the patients stopped on."""
    best_epoch: int = -1
    """When that was; -1 as long as there is none."""

    def note(self, epoch: int, train_loss: float, val_loss: float) -> bool:
        """Add to the curve; whether the weights are the best so far."""
        self.curve.append(
            EpochRecord(
                member=self.lesson.member, epoch=epoch, train_loss=train_loss, val_loss=val_loss
            )
        )
        if not val_loss < self.best_loss:
            return False
        self.best_loss, self.best_epoch = val_loss, epoch
        return True


class _EpochShape(NamedTuple):
    """Of the epochs of a head."""

    n_steps: int
    """Steps of an epoch, so many that every patient is seen."""
    n_patients: int
    """Of a step."""
    n_tiles: int
    """Of a patient in a step, fewer if it has fewer."""

    @classmethod
    def of(cls, lesson: TrainSplit, shelf: FeatureCache, config: TrainConfig) -> _EpochShape:
        """What it takes to learn from these patients."""
        n = len(lesson.learned)
        n_steps = -(-n // config.batch_patients)
        longest = int(shelf.lengths[lesson.learned.to(shelf.lengths.device)].max())
        return cls(n_steps, -(-n // n_steps), min(config.max_tiles, longest))


def _group_by_shape(
    pupils: Sequence[_HeadState], shelf: FeatureCache, config: TrainConfig
) -> Iterable[tuple[_EpochShape, list[_HeadState]]]:
    """Pupils who can be taught at once: of one size, and one at a time if heads do not stack."""
    alike: dict[_EpochShape, list[_HeadState]] = {}
    for pupil in pupils:
        alike.setdefault(_EpochShape.of(pupil.lesson, shelf, config), []).append(pupil)
    for size, some in sorted(alike.items()):  # in one order, whoever is there
        if can_stack(some[0].head):
            yield size, some
        else:
            yield from ((size, [pupil]) for pupil in some)


class Trainer:
    """Epochs of heads that are taught together."""

    def __init__(
        self,
        pupils: Sequence[_HeadState],
        shelf: FeatureCache,
        size: _EpochShape,
        *,
        n_classes: int,
        config: TrainConfig,
        on_head: Callable[[], None],
    ) -> None:
        self._shelf, self._size, self._settings = shelf, size, config
        self._on_head = on_head
        self._present = list(pupils)  # those in the stack, in its order
        self._luck = RandomStreams([pupil.lesson.stream for pupil in pupils])
        self._stack = StackedHeads([pupil.head for pupil in pupils], self._luck)
        n_fixed = max(1, round(config.fixed_steps / size.n_steps))
        self._n_epochs = config.max_epochs if config.early_stopping else n_fixed
        self._losses = [
            bag_loss(
                config.loss,
                shelf.labels[pupil.lesson.learned],
                n_classes=n_classes,
                label_smoothing=config.label_smoothing,
            )
            for pupil in pupils
        ]
        self._exam = (
            _Validator([pupil.lesson.stopped_on for pupil in pupils], shelf, n_classes=n_classes)
            if config.early_stopping
            else None
        )
        self._optimiser = torch.optim.AdamW(
            self._stack.parameters(),
            lr=config.effective_learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._schedule = build_schedule(
            self._optimiser, config, n_steps=self._n_epochs * size.n_steps
        )

    def run(self) -> None:
        """Teach until every head is done."""
        pause = max(1, round(_STEPS_BETWEEN_CHECKS / self._size.n_steps))
        for epoch in range(self._n_epochs):
            train_losses = self._train_epoch()
            stop_losses = [float("nan")] * len(self._present)
            if self._exam and epoch % pause == 0:
                stop_losses = self._exam.losses(self._stack.module)
            instance_labels = zip(self._present, train_losses, stop_losses, strict=True)
            for place, (pupil, train_loss, val_loss) in enumerate(instance_labels):
                if pupil.note(epoch, train_loss, val_loss):
                    self._stack.copy_to(place, pupil.head)
            self._drop_finished(last_epoch=epoch)
            if not self._present:
                break

    def _drop_finished(self, *, last_epoch: int) -> None:
        """Let those go who are done."""
        over = last_epoch == self._n_epochs - 1
        patience = self._settings.patience if self._exam else self._n_epochs
        staying = []
        for place, pupil in enumerate(self._present):
            if not over and last_epoch - pupil.best_epoch < patience:
                staying.append(place)
                continue
            if pupil.best_epoch < 0:  # was never examined
                self._stack.copy_to(place, pupil.head)
            self._on_head()
        if 0 < len(staying) < len(self._present):
            self._stack.keep(staying, self._optimiser)
            self._luck.keep(staying)
            if self._exam:
                self._exam.keep(staying)
            self._losses = [self._losses[place] for place in staying]
        self._present = [self._present[place] for place in staying]

    def _train_epoch(self) -> list[float]:
        """One epoch; mean loss of each head."""
        self._stack.module.train()
        losses = []
        for patients in self._order():
            loss = self._loss(patients)  # (heads,)
            self._optimiser.zero_grad()
            loss.sum().backward()  # type: ignore[no-untyped-call]
            self._clip()
            self._optimiser.step()
            self._schedule.step()
            losses.append(loss.detach())
        means: list[float] = torch.stack(losses).double().mean(dim=0).tolist()
        return means

    def _order(self) -> Tensor:
        """Patients of an epoch in random order, shape (steps, heads x batch); some come twice."""
        device, (n_steps, n_patients, _) = self._shelf.labels.device, self._size
        places = torch.arange(n_steps * n_patients, device=device)
        drawn = self._luck.uniform(len(self._present), len(places), device=device)
        rows = []
        for pupil, ranks in zip(self._present, drawn, strict=True):
            learned = pupil.lesson.learned.to(device)
            rows.append(learned[ranks[: len(learned)].argsort()[places % len(learned)]])
        return torch.stack([row.view(n_steps, -1) for row in rows], dim=1).flatten(1)

    def _loss(self, patients: Tensor) -> Tensor:
        """Mean loss of each head over its patients, shape (heads,)."""
        config, luck = self._settings, self._luck
        batch, instance_labels = self._shelf.draw_marked(patients, self._size.n_tiles, luck)
        batch = apply_instance_dropout(batch, config.instance_dropout, luck)
        batch = add_noise(batch, config.feature_noise, luck)
        truth = self._shelf.labels[patients]
        if not config.mixup:
            output = self._stack.module.score(*batch)
            losses = self._weighted(output, batch.mask, truth)
            if instance_labels is not None:
                beside = instance_attention_loss(output.attention, batch.mask, instance_labels)
                losses = losses + _ATTENTION_WEIGHT * beside
        else:
            mixture = mix_bags(batch, config.mixup, luck, n_heads=self._stack.n_heads)
            output = self._stack.module.score(*mixture.batch)
            own, other = (
                self._weighted(output, mixture.batch.mask, labels)
                for labels in (truth, truth[mixture.partners])
            )
            losses = mixture.shares * own + (1 - mixture.shares) * other
        # Weights average 1 over the patients, so a batch need not hold every class.
        return losses.view(self._stack.n_heads, -1).mean(dim=1)

    def _weighted(self, output: HeadOutput, mask: Tensor, truth: Tensor) -> Tensor:
        """Weighted losses of patients, shape (heads x batch,)."""
        losses = self._losses[0](output.logits, truth)
        auxiliary = self._stack.module.auxiliary_loss(output, mask, truth)
        if auxiliary is not None:
            losses = losses + auxiliary
        weights = torch.stack([loss.weights for loss in self._losses])  # (heads, classes)
        own = weights.gather(1, truth.view(len(weights), -1))  # (heads, batch)
        return losses * own.view(-1)

    def _clip(self) -> None:
        """Shorten the gradient of each head to the largest norm allowed."""
        slopes = [
            self._stack.by_head(p.grad) for p in self._stack.parameters() if p.grad is not None
        ]
        norms = torch.stack([slope.square().sum(dim=1) for slope in slopes]).sum(dim=0).sqrt()
        scale = (self._settings.clip_norm / (norms + 1e-6)).clamp(max=1)[:, None]
        for slope in slopes:
            slope.mul_(scale)


class _Validator:
    """What heads are stopped on: of each, patients that it does not learn from."""

    def __init__(
        self, stopped_on: Sequence[Tensor], shelf: FeatureCache, *, n_classes: int
    ) -> None:
        self._shelf = shelf
        n_most = max(len(patients) for patients in stopped_on)
        rows, shares = [], []
        for patients in (patients.to(shelf.labels.device) for patients in stopped_on):
            # By size, so that patients of a block are padded little.
            longest = patients[shelf.lengths[patients].argsort(descending=True, stable=True)]
            labels = shelf.labels[longest]
            weights = class_weights(labels, n_classes)[labels] / len(labels)
            n_missing = n_most - len(longest)
            rows.append(torch.cat([longest, longest[-1:].expand(n_missing)]))
            shares.append(functional.pad(weights, (0, n_missing)))
        self._patients = torch.stack(rows)  # (heads, patients)
        self._shares = torch.stack(shares)  # (heads, patients): in the loss; 0 on filling
        self._blocks = self._make_blocks()

    def losses(self, module: Head) -> list[float]:
        """Class-balanced log loss of the patients of each head, evenly spaced tiles used."""
        module.eval()
        parts = []
        with torch.inference_mode():
            for block in self._blocks:
                patients = self._patients[:, block].flatten()
                output = module.score(*self._shelf.spread(patients, _TILES_TO_STOP_ON))
                losses = functional.cross_entropy(
                    output.logits, self._shelf.labels[patients], reduction="none"
                )
                parts.append(losses.view(len(self._patients), -1))
            # In double precision, so that neither blocks nor filling change what is compared.
            found: list[float] = (torch.cat(parts, dim=1).double() * self._shares).sum(1).tolist()
        return found

    def keep(self, places: Sequence[int]) -> None:
        """Go on with these heads only."""
        self._patients, self._shares = self._patients[places], self._shares[places]
        self._blocks = self._make_blocks()

    def _make_blocks(self) -> list[slice]:
        """Columns that are judged at once."""
        widths = self._shelf.lengths[self._patients].amax(dim=0).clamp(max=_TILES_TO_STOP_ON)
        room = tiles_at_once(self._shares.device) // len(self._patients)
        return length_buckets(widths.tolist(), room)
