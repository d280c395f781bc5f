"""Hyper-parameters of training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mil.base_learners import STACK, head_kind
from mil.errors import RunError

__all__ = ["N_INNER_FOLDS", "TrainConfig"]

N_INNER_FOLDS = 5
"""Inner folds for early stopping, whatever the number of heads; heads beyond it start again."""

_SCHEDULES = ("constant", "one-cycle")
_POSITIVE_INTEGERS = (
    "n_members", "n_components", "max_epochs", "fixed_steps", "patience", "batch_patients",
    "max_tiles",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyper-parameters of training, the same for cross-validation and the deployed ensemble.

    Attributes
    ----------
    head
        ``stack``, gated attention heads and base learners; or a kind of head by itself, see
        :func:`mil.heads.head_names`.
    n_members
        Heads per ensemble.
    n_components
        Whitened components per embedding; fewer for few patients.
    early_stopping
        Stop each head by the validation loss on an inner fold of its own, with five patients of
        each class in each of five, instead of after ``fixed_steps``. No number of patients or heads
        chooses it: the loss would have a step where it begins (decision 0019).
    max_epochs, patience
        Maximum number of epochs, and of epochs without improvement, with early stopping.
    fixed_steps
        Steps without early stopping. Steps and not epochs: the scale of the logits grows with
        steps, and must be the same for the deployed heads, which have more training patients.
    batch_patients, max_tiles
        Patients per step, and tiles sampled per patient and step: batches have shape
        (batch_patients, max_tiles, n_components) per head.
    learning_rate
        Learning rate of AdamW (Loshchilov and Hutter, 2019). By default 1e-2 with early stopping
        and 1e-3 without, where only the number of small steps limits overfitting.
    weight_decay
        Weight decay of AdamW.
    schedule
        Learning rate schedule: ``constant``, or ``one-cycle`` up to ``learning_rate`` and down
        (Smith and Topin, 2019) over the maximum number of steps.
    clip_norm
        Maximum norm of the gradient.
    loss
        One of :data:`mil.training.losses.LOSSES`; early stopping always uses the balanced one.
    label_smoothing
        Share of a label that is distributed over all classes, 0 to below 1.
    instance_dropout
        Probability of leaving a tile out of a step, 0 to below 1.
    feature_noise
        Standard deviation of noise on whitened components, whose own is at most 1.
    mixup
        Parameter α of mixup, see :func:`mil.training.augmentation.mix_bags`; 0 for none. Labels of
        images are not used with mixup.
    device
        Torch device.
    """

    head: str = "stack"
    n_members: int = 5
    n_components: int = 64
    early_stopping: bool = False
    max_epochs: int = 60
    fixed_steps: int = 120
    patience: int = 12
    batch_patients: int = 16
    max_tiles: int = 64
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    schedule: str = "constant"
    clip_norm: float = 1.0
    loss: str = "balanced"
    label_smoothing: float = 0.0
    instance_dropout: float = 0.0
    feature_noise: float = 0.0
    mixup: float = 0.0
    device: str = "cpu"

    @property
    def is_stack(self) -> bool:
        """Whether base learners are trained beside the heads."""
        return self.head == STACK

    @property
    def head_kind(self) -> str:
        """Kind of the heads."""
        return head_kind(self.head)

    @property
    def effective_learning_rate(self) -> float:
        """Learning rate with the default resolved."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-2 if self.early_stopping else 1e-3

    def __post_init__(self) -> None:
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            if not (isinstance(value, int | np.integer) and value >= 1):
                raise _out_of_range(name, value, expected="a whole number, 1 or more")
        for name in ("label_smoothing", "instance_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise _out_of_range(name, getattr(self, name), expected="0 to below 1")
        for name in ("weight_decay", "feature_noise", "mixup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise _out_of_range(name, getattr(self, name), expected="0 or more, and finite")
        for name, value in (
            ("learning_rate", self.effective_learning_rate),
            ("clip_norm", self.clip_norm),
        ):
            if not 0 < value < math.inf:
                raise _out_of_range(name, value, expected="above 0, and finite")
        if self.schedule not in _SCHEDULES:
            raise RunError(
                f"schedule {self.schedule!r}", actual="unknown", expected=" or ".join(_SCHEDULES)
            )


def _out_of_range(name: str, value: object, *, expected: str) -> RunError:
    return RunError(name, actual=str(value), expected=expected)
