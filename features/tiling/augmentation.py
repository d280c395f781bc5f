"""Augmented views of a tile: flips, small affine and colour changes, repeatable for each tile."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from features.errors import MilError
from features.slides.base import RgbArray

__all__ = ["AugmentationConfig", "augment_tile"]


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Number and strength of the augmented views of a tile of shape (tile_px, tile_px, 3).

    Every parameter is drawn uniformly from its range, the same for all slides and classes. Angles
    are in degrees to either side, the rotation after flips and quarter turns; ``shift`` is a share
    of the tile's side, ``hue`` of the colour circle. All others are factors of 1 ± the value; a
    sharpness below 1 blurs. ``n_views`` does not count the plain tile.
    """

    n_views: int = 0
    seed: int = 0
    angle_deg: float = 10.0
    shift: float = 0.05
    scale: float = 0.1
    shear_deg: float = 5.0
    brightness: float = 0.15
    contrast: float = 0.15
    saturation: float = 0.15
    hue: float = 0.03
    sharpness: float = 0.5

    def __post_init__(self) -> None:
        if self.n_views < 0:
            raise MilError("views", actual=f"{self.n_views} per tile", expected="0 or more")


def augment_tile(
    tile: RgbArray,
    settings: AugmentationConfig,
    *,
    view: int,
    key: str,
    glass_rgb: tuple[int, int, int],
) -> RgbArray:
    """Return one augmented view of a tile; both have shape (tile_px, tile_px, 3), uint8.

    Flips and quarter turns; then rotation, shift, scale and shear in one step, filled with the
    colour of the glass; then brightness, contrast, saturation, hue and sharpness. All draws follow
    from ``settings.seed``, the number of the view, from 1, and ``key``, a text unique to the tile
    (content hash of its slide, and its coordinates in level-0 px), so neither threads, batches nor
    the number of views change a view.
    """
    # Settings are read without torchvision, which takes seconds to load.
    from torchvision.transforms.v2 import InterpolationMode  # noqa: PLC0415
    from torchvision.transforms.v2 import functional as ops  # noqa: PLC0415

    digest = hashlib.sha256(f"{settings.seed} {view} {key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))

    def around(centre: float, half_range: float) -> float:
        return float(rng.uniform(centre - half_range, centre + half_range))

    turned = np.rot90(tile, k=int(rng.integers(4)))
    if rng.integers(2):
        turned = turned[:, ::-1]
    side_px = len(tile)
    image = ops.affine(
        Image.fromarray(np.ascontiguousarray(turned)),
        angle=around(0, settings.angle_deg),
        translate=[round(around(0, settings.shift) * side_px) for _ in range(2)],
        scale=around(1, settings.scale),
        shear=[around(0, settings.shear_deg), 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=list(glass_rgb),
    )
    image = ops.adjust_brightness(image, around(1, settings.brightness))
    image = ops.adjust_contrast(image, around(1, settings.contrast))
    image = ops.adjust_saturation(image, around(1, settings.saturation))
    image = ops.adjust_hue(image, around(0, settings.hue))
    return np.asarray(ops.adjust_sharpness(image, around(1, settings.sharpness)))
