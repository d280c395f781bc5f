"""Preprocessing of tiles: input size, interpolation, mean and standard deviation of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import as_json
from features.errors import EncoderError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ConcatPreprocessing",
    "Preprocessing",
    "require_colours",
    "require_input",
    "resolve_preprocessing",
]

_INTERPOLATIONS = ("bicubic", "bilinear")
"""Ways to scale tiles to the side of the input."""
_LARGEST_INPUT_PX = 4096
"""No encoder takes larger images; a batch of them would not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of one encoder, from timm's data configuration of the model.

    A tile of another size is scaled as a whole, ``bicubic`` or ``bilinear``, to a square of
    ``input_px`` px, shape (input_px, input_px, 3): the centre crop of ImageNet evaluation would
    lose tissue at its border. ``mean`` and ``std`` of each channel are on a scale of 0 to 1.
    """

    input_px: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def as_json(self) -> str:
        """Return one line of JSON, equal for equal preprocessing."""
        return as_json(**self.__dict__)

    @property
    def scale_and_shift(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Factor and summand, each of shape (3,), that normalise values of 0 to 255."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.reciprocal(255 * std, dtype=np.float32), np.divide(-mean, std, dtype=np.float32)

    @property
    def normalised_levels(self) -> npt.NDArray[np.float32]:
        """Normalised value of each level of each channel, shape (3, 256)."""
        scale, shift = self.scale_and_shift
        # Rounded once, as by the fused multiplication and addition of torch.
        products = scale[:, None].astype(np.float64) * np.arange(256)
        return np.asarray(products + shift[:, None], np.float32)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Return the preprocessing of a text by :meth:`as_json`."""
        stated = json.loads(text)
        return cls(**stated | {key: tuple(stated[key]) for key in ("mean", "std")})


@dataclass(frozen=True)
class ConcatPreprocessing:
    """Preprocessing of several encoders on the same tiles, one per encoder, in order."""

    parts: tuple[Preprocessing, ...]

    def as_json(self) -> str:
        """Return one line of JSON, equal for equal preprocessing."""
        return as_json(parts=[part.__dict__ for part in self.parts])


def require_colours(where: str, stated: Mapping[str, Any], *, source: str) -> None:
    """Raise EncoderError if a stated ``mean`` or ``std`` is not three numbers on a scale of 0 to 1.

    ``where`` and ``source``, which says where they were stated, are words of the message.
    """
    for key, least in (("mean", "from 0"), ("std", "above 0")):
        values = stated.get(key)
        if values is None:
            continue
        is_valid = (
            isinstance(values, Sequence)
            and len(values) == 3
            and all(type(one) in (int, float) and 0 <= one <= 1 for one in values)
            and (key == "mean" or all(values))
        )
        if not is_valid:
            raise EncoderError(
                where,
                actual=f"{key} {values!r} ({source})",
                expected=f"three numbers {least} to 1, e.g. [0.5,0.5,0.5]",
                hint=f"State it with --model-arg {key}=[RED,GREEN,BLUE]; divide values of 0 to 255 "
                "by 255.",
            )


def require_input(where: str, stated: Mapping[str, Any]) -> None:
    """Raise EncoderError if a stated ``input_px`` or ``interpolation`` cannot be that of a network.

    ``where`` is the beginning of the message.
    """
    side, interpolation = stated.get("input_px", 1), stated.get("interpolation", "bicubic")
    if type(side) is not int or not 1 <= side <= _LARGEST_INPUT_PX:
        raise EncoderError(
            where,
            actual=f"input_px {side!r}",
            expected=f"a whole number of px up to {_LARGEST_INPUT_PX}, e.g. 224",
        )
    if interpolation not in _INTERPOLATIONS:
        raise EncoderError(
            where,
            actual=f"interpolation {interpolation!r}",
            expected=" or ".join(_INTERPOLATIONS),
        )


def resolve_preprocessing(
    model: nn.Module, *, stated: Mapping[str, Any] | None = None, img_size: int | None = None
) -> Preprocessing:
    """Return the preprocessing that is stated, else that of timm's data configuration of a model.

    ``img_size`` is the side in px of images that the network was built for, if that was stated.
    """
    from timm.data.config import resolve_model_data_config  # noqa: PLC0415 - timm is slow to load

    inner = getattr(model, "model", model)  # of a TokenPooling
    config: dict[str, Any] = resolve_model_data_config(inner)  # type: ignore[no-untyped-call]
    config = config | {"input_px": img_size or config["input_size"][-1]} | dict(stated or {})
    # Some timm models state lanczos or random interpolation, which torch cannot do on a device.
    interpolation = config["interpolation"]
    return Preprocessing(
        input_px=int(config["input_px"]),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
    )
