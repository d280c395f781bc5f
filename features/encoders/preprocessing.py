"""What a backbone wants done to tiles before it sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.data.config import resolve_model_data_config
from torch import nn

from features.bags.bag import as_json

__all__ = ["ConcatPreprocessing", "Preprocessing", "resolve_preprocessing"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a backbone wants done to a tile, from timm's data configuration of the model.

    A tile is scaled to ``input_px`` as a whole: the centre crop of ImageNet evaluation would throw
    away tissue at its border.
    """

    input_px: int
    """Side of the square the network sees, px."""
    interpolation: str
    """``bicubic`` or ``bilinear``, used only where a tile has another size."""
    mean: tuple[float, ...]
    """Subtracted from each channel, on a scale of 0 to 1."""
    std: tuple[float, ...]
    """Each channel is divided by it, on a scale of 0 to 1."""

    def as_json(self) -> str:
        """One line for the bag: equal preprocessing gives equal text."""
        return as_json(**self.__dict__)


@dataclass(frozen=True)
class ConcatPreprocessing:
    """What several backbones want done to a tile, each for itself."""

    parts: tuple[Preprocessing, ...]
    """One a backbone, in their order."""

    def as_json(self) -> str:
        """One line for the bag: equal preprocessing gives equal text."""
        return as_json(parts=[part.__dict__ for part in self.parts])


def resolve_preprocessing(model: nn.Module) -> Preprocessing:
    """What timm's data configuration says of a model.

    Parameters
    ----------
    model
        Built by timm.
    """
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    # Some timm models ask for lanczos or random interpolation, which torch cannot do on a device.
    interpolation = config["interpolation"]
    return Preprocessing(
        input_px=int(config["input_size"][-1]),
        interpolation=interpolation if interpolation in {"bicubic", "bilinear"} else "bicubic",
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )
