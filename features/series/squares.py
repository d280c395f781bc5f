"""Images of any size as squares of one size."""

from __future__ import annotations

import numpy as np
from PIL import Image

from features.slides.protocol import RgbArray

__all__ = ["as_square"]


def as_square(pixels: RgbArray, *, side_px: int) -> RgbArray:
    """An image scaled to a square as a whole: its shape is kept, what is left stays black.

    Parameters
    ----------
    pixels
        Shape (height_px, width_px, 3), uint8.
    side_px
        Side of the square.

    Returns
    -------
    numpy.ndarray
        Shape (side_px, side_px, 3), uint8.
    """
    height_px, width_px = pixels.shape[:2]
    scale = side_px / max(height_px, width_px)
    size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    small = pixels
    if size != (width_px, height_px):
        # Pillow's filters grow with the reduction, so nothing is skipped on the way down.
        small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    if small.shape[:2] == (side_px, side_px):
        return np.ascontiguousarray(small)
    square = np.zeros((side_px, side_px, 3), np.uint8)
    top, left = (side_px - size[1]) // 2, (side_px - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = small
    return square
