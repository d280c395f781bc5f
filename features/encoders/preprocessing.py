"""Preprocessing of tiles: input size, interpolation, mean and standard deviation of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.data.config import resolve_model_data_config
from torch import nn

from features.bags.bag import as_json

__all__ = ["ConcatPreprocessing", "Preprocessing", "resolve_preprocessing"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of one encoder, from timm's data configuration of the model.

    A tile is scaled to ``input_px`` as a whole: the centre crop of ImageNet evaluation would lose
    tissue at its border.
    """

    input_px: int
    """Side of the network's square input, px."""
    interpolation: str
    """``bicubic`` or ``bilinear``, used only for tiles of another size."""
    mean: tuple[float, ...]
    """Mean of each channel, on a scale of 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, on a scale of 0 to 1."""

    def as_json(self) -> str:
        """Return one line of JSON, equal for equal preprocessing."""
        return as_json(**self.__dict__)


@dataclass(frozen=True)
class ConcatPreprocessing:
    """Preprocessing of several encoders on the same tiles."""

    parts: tuple[Preprocessing, ...]
    """One per encoder, in order."""

    def as_json(self) -> str:
        """Return one line of JSON, equal for equal preprocessing."""
        return as_json(parts=[part.__dict__ for part in self.parts])


def resolve_preprocessing(model: nn.Module) -> Preprocessing:
    """Read the preprocessing from timm's data configuration of a model.

    Parameters
    ----------
    model
        Model built by timm.
    """
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    # Some timm models state lanczos or random interpolation, which torch cannot do on a device.
    interpolation = config["interpolation"]
    return Preprocessing(
        input_px=int(config["input_size"][-1]),
        interpolation=interpolation if interpolation in {"bicubic", "bilinear"} else "bicubic",
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )
