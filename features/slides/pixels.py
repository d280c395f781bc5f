"""What readers do to pixels: three channels, no transparency, no more than there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.slides.base import RgbArray

__all__ = ["clip_region", "filled_image", "to_rgb"]

_AT_ONCE_PX = 1 << 20


def filled_image(height_px: int, width_px: int, rgb: tuple[int, int, int]) -> RgbArray:
    """A picture of one colour, shape (height_px, width_px, 3)."""
    picture = np.empty((height_px, width_px, 3), np.uint8)
    if len(set(rgb)) == 1:
        picture.fill(rgb[0])  # several times as fast as colour by colour
    else:
        picture[:] = np.array(rgb, np.uint8)
    return picture


def to_rgb(pixels: npt.NDArray[Any], *, background_rgb: tuple[int, int, int]) -> RgbArray:
    """Grey, RGB or RGBA of 8 or 16 bit as RGB of 8 bit.

    Parameters
    ----------
    pixels
        Shape (height, width) or (height, width, 1 to 4), uint8 or uint16.
    background_rgb
        What shines through where alpha is not full.

    Returns
    -------
    RgbArray
        Shape (height, width, 3), uint8.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in {2, 4}:  # the last channel is alpha
        pixels = _flatten_alpha(pixels, background_rgb)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3], np.uint8)


def _flatten_alpha(
    pixels: npt.NDArray[np.uint8], background_rgb: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Colours in front of the background, shape (height, width, 3), by alpha, the last channel.

    Row by row of blocks: numbers with fractions take sixteen times the room.
    """
    height, width = pixels.shape[:2]
    flat = np.empty((height, width, 3), np.uint8)
    step = max(1, _AT_ONCE_PX // max(1, width))
    for top in range(0, height, step):
        part = pixels[top : top + step]
        alpha = part[..., -1:].astype(np.float32) / 255
        colour = part[..., :-1] * alpha + np.asarray(background_rgb, np.float32) * (1 - alpha)
        flat[top : top + step] = np.rint(colour).astype(np.uint8)
    return flat


def clip_region(
    x_px: int,
    y_px: int,
    width_px: int,
    height_px: int,
    *,
    level_width_px: int,
    level_height_px: int,
) -> tuple[slice, slice, int, int, int, int]:
    """The part of a region that lies on the level.

    Returns
    -------
    tuple
        Rows and columns of the region that are filled, then x, y, width and height to read; width
        or height is 0 where the region lies outside.
    """
    left, top = max(x_px, 0), max(y_px, 0)
    width = max(0, min(x_px + width_px, level_width_px) - left)
    height = max(0, min(y_px + height_px, level_height_px) - top)
    rows = slice(top - y_px, top - y_px + height)
    columns = slice(left - x_px, left - x_px + width)
    return rows, columns, left, top, width, height
