"""How heads are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mil.errors import RunError

__all__ = ["TrainConfig"]

_SCHEDULES = ("constant", "one-cycle")
_COUNTS = (
    "n_members", "n_components", "max_epochs", "fixed_steps", "patience", "batch_patients",
    "max_tiles",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
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
    fixed_steps: int = 120
    """Steps without early stopping. Steps and not epochs: the size of the logits grows with steps,
    and the deployed heads, which learn from more patients, must give logits of the size that the
    calibrator was fitted on."""
    patience: int = 12
    """Epochs without improvement before stopping."""
    batch_patients: int = 16
    """Patients a step."""
    max_tiles: int = 64
    """Tiles drawn of a patient a step."""
    learning_rate: float | None = None
    """Of AdamW (Loshchilov and Hutter, 2019). By default 1e-2 with early stopping and 1e-3 without,
    where nothing but a number of small steps keeps a head from learning its patients by heart."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    schedule: str = "constant"
    """Learning rate over the steps: ``constant``, or ``one-cycle`` up to ``learning_rate`` and
    down (Smith and Topin, 2019) over the most steps a head may take."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    loss: str = "balanced"
    """One of :data:`mil.training.losses.LOSSES`; heads are stopped on the balanced one, whatever it
    is."""
    label_smoothing: float = 0.0
    """Share of a label that is spread evenly over all classes, 0 to below 1."""
    instance_dropout: float = 0.0
    """Share of a patient's tiles left out of a step, 0 to below 1."""
    feature_noise: float = 0.0
    """Standard deviation of noise on whitened components, whose own is at most 1."""
    mixup: float = 0.0
    """Evenness of mixtures of two patients, see :func:`mil.training.augmentation.mix_bags`; 0:
    none. Labels of images do not teach mixtures."""
    device: str = "cpu"
    """Where it runs."""

    @property
    def n_inner_folds(self) -> int:
        """Inner folds to stop on: one a head, and five for a single head."""
        return self.n_members if self.n_members > 1 else 5

    @property
    def effective_learning_rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-2 if self.early_stopping else 1e-3

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not (isinstance(value, int | np.integer) and value >= 1):
                raise _out_of_range(name, value, expected="a whole number, 1 or more")
        for name in ("label_smoothing", "instance_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise _out_of_range(name, getattr(self, name), expected="0 to below 1")
        for name in ("weight_decay", "feature_noise", "mixup"):
            if not getattr(self, name) >= 0:
                raise _out_of_range(name, getattr(self, name), expected="0 or more")
        for name, value in (
            ("learning_rate", self.effective_learning_rate),
            ("clip_norm", self.clip_norm),
        ):
            if not value > 0:
                raise _out_of_range(name, value, expected="above 0")
        if self.schedule not in _SCHEDULES:
            raise RunError(
                f"schedule {self.schedule!r}", actual="unknown", expected=" or ".join(_SCHEDULES)
            )


def _out_of_range(name: str, value: object, *, expected: str) -> RunError:
    return RunError(name, actual=str(value), expected=expected)
