"""Views of a tile: the same tissue laid, lit and stained a little otherwise, the same each time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as ops

from features.errors import MilError
from features.slides.base import RgbArray

__all__ = ["AugmentationConfig", "augment_tile"]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How many views of a tile there are besides the plain one, and how far they go.

    Every number of a view is drawn evenly from its range, the same for all slides: nothing in it
    knows a class.
    """

    n_views: int = 0
    """Views of a tile besides the plain one."""
    seed: int = 0
    """Another seed draws other views."""
    angle_deg: float = 10.0
    """Turned by at most so much to either side, after flips and quarter turns."""
    shift: float = 0.05
    """Moved along each axis by at most this share of the tile's side."""
    scale: float = 0.1
    """Made smaller or larger by at most this share."""
    shear_deg: float = 5.0
    """Sheared by at most so much to either side."""
    brightness: float = 0.15
    """Brightness times 1 ± this."""
    contrast: float = 0.15
    """Contrast times 1 ± this."""
    saturation: float = 0.15
    """Saturation times 1 ± this."""
    hue: float = 0.03
    """Hue moved by at most this share of the colour circle to either side."""
    sharpness: float = 0.5
    """Sharpness times 1 ± this: below 1 blurred, above 1 sharpened."""

    def __post_init__(self) -> None:
        if self.n_views < 0:
            raise MilError("views", actual=f"{self.n_views} of a tile", expected="0 or more")


def augment_tile(
    tile: RgbArray,
    settings: AugmentationConfig,
    *,
    number: int,
    key: str,
    glass_rgb: tuple[int, int, int],
) -> RgbArray:
    """One view of a tile.

    Flips and quarter turns, then a small turn, shift, scale and shear in one step, with the colour
    of the glass where nothing of the tile lies, then brightness, contrast, saturation, hue and
    sharpness. All of it follows from ``settings``, ``number`` and ``key``: whichever thread or
    batch comes first, and however many views there are, view 3 of a tile is the same.

    Parameters
    ----------
    tile
        Shape (tile_px, tile_px, 3), uint8.
    settings
        How far a view may go.
    number
        Which view, from 1.
    key
        Tells the tile from all others: content of its slide, and its place there.
    glass_rgb
        Colour of the slide's glass.

    Returns
    -------
    RgbArray
        Of the tile's shape.
    """
    luck = _stream(settings.seed, number, key)

    def about(middle: float, most: float) -> float:
        return float(luck.uniform(middle - most, middle + most))

    turned = np.rot90(tile, k=int(luck.integers(4)))
    if luck.integers(2):
        turned = turned[:, ::-1]
    side_px = len(tile)
    view = ops.affine(
        Image.fromarray(np.ascontiguousarray(turned)),
        angle=about(0, settings.angle_deg),
        translate=[round(about(0, settings.shift) * side_px) for _ in range(2)],
        scale=about(1, settings.scale),
        shear=[about(0, settings.shear_deg), 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=list(glass_rgb),
    )
    view = ops.adjust_brightness(view, about(1, settings.brightness))
    view = ops.adjust_contrast(view, about(1, settings.contrast))
    view = ops.adjust_saturation(view, about(1, settings.saturation))
    view = ops.adjust_hue(view, about(0, settings.hue))
    return np.asarray(ops.adjust_sharpness(view, about(1, settings.sharpness)))


def _stream(seed: int, number: int, key: str) -> np.random.Generator:
    """Random numbers of one view of one tile."""
    digest = hashlib.sha256(f"{seed} {number} {key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))
