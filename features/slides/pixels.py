"""What readers do to pixels: three channels, no transparency, smaller by whole factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from features.slides.protocol import RgbArray

__all__ = ["BlockMean", "clip_region", "stream_overview", "to_rgb"]

_BAND_PX = 16 << 20
"""Pixels held at a time while a level is streamed (48 MB)."""


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
        alpha = pixels[..., -1:].astype(np.float32) / 255
        colour = pixels[..., :-1] * alpha + np.asarray(background_rgb, np.float32) * (1 - alpha)
        pixels = np.rint(colour).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3], np.uint8)


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


class BlockMean:
    """The mean colour of square blocks, gathered from rectangles in any order.

    Parameters
    ----------
    width_px, height_px
        Size of what is gathered.
    block_px
        Side of a block, px.
    """

    def __init__(self, *, width_px: int, height_px: int, block_px: int) -> None:
        shape = (-(-height_px // block_px), -(-width_px // block_px))
        self._block_px = block_px
        self._sums = np.zeros((*shape, 3), np.float32)
        self._counts = np.zeros(shape, np.float32)

    def add(self, pixels: RgbArray, *, x_px: int, y_px: int) -> None:
        """Add a rectangle whose upper left corner is at (``x_px``, ``y_px``)."""
        height, width = pixels.shape[:2]
        rows = _starts(y_px, height, self._block_px)
        columns = _starts(x_px, width, self._block_px)
        # Sums over the runs of rows and columns that fall into the same block.
        sums = np.add.reduceat(pixels, rows - y_px, axis=0, dtype=np.uint32)
        sums = np.add.reduceat(sums, columns - x_px, axis=1)
        n_rows = np.diff(np.append(rows, y_px + height))
        n_columns = np.diff(np.append(columns, x_px + width))
        top, left = y_px // self._block_px, x_px // self._block_px
        place = np.s_[top : top + len(rows), left : left + len(columns)]
        self._sums[place] += sums
        self._counts[place] += n_rows[:, None] * n_columns

    def picture(self, *, fill_rgb: tuple[int, int, int]) -> RgbArray:
        """The means, shape (blocks down, blocks across, 3); untouched blocks have ``fill_rgb``."""
        empty = self._counts == 0
        means = self._sums / np.maximum(self._counts, 1)[..., None]
        means[empty] = fill_rgb
        return np.rint(means).astype(np.uint8)


def _row_bands(width_px: int, height_px: int, *, block_px: int) -> Iterator[tuple[int, int]]:
    """First row and height of bands that hold whole blocks and few pixels."""
    rows = max(1, _BAND_PX // max(1, width_px * block_px)) * block_px
    for top in range(0, height_px, rows):
        yield top, min(rows, height_px - top)


def stream_overview(
    read: Callable[[int, int], RgbArray],
    *,
    width_px: int,
    height_px: int,
    block_px: int,
    fill_rgb: tuple[int, int, int],
) -> RgbArray:
    """Block means of a level that is read band by band.

    Parameters
    ----------
    read
        Gives rows ``top`` to ``top + height`` of the level over its whole width.
    width_px, height_px
        Size of the level.
    block_px
        Side of a block in px of the level.
    fill_rgb
        Colour of blocks without pixels.
    """
    means = BlockMean(width_px=width_px, height_px=height_px, block_px=block_px)
    for top, height in _row_bands(width_px, height_px, block_px=block_px):
        means.add(read(top, height), x_px=0, y_px=top)
    return means.picture(fill_rgb=fill_rgb)


def _starts(first: int, length: int, block: int) -> npt.NDArray[np.int64]:
    """Where each block begins within [first, first + length), the first one where we begin."""
    borders = np.arange(first // block + 1, (first + length - 1) // block + 1) * block
    return np.concatenate([[first], borders]).astype(np.int64)
