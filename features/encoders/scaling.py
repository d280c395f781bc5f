"""Antialiased scaling of tiles, with the weights of torch's ``interpolate`` and without torch."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from features.slides.base import RgbArray

__all__ = ["scale_antialiased"]

_REACH_PX = {"bilinear": 1.0, "bicubic": 2.0}
"""Distance at which the weight of a pixel becomes 0, in px of the coarser image."""


def scale_antialiased(
    tiles: RgbArray, side_px: int, interpolation: str
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Scale tiles, shape (n, height, width, 3), uint8, to shape (n, side_px, side_px, 3).

    ``interpolation`` is ``bilinear`` or ``bicubic``. Values stay within 0 to 255 and are not
    rounded.
    """
    n_tiles, height, width, _ = tiles.shape
    down = _weights(height, side_px, interpolation)
    across = _weights(width, side_px, interpolation)
    scaled = np.empty((n_tiles, side_px, side_px, 3), np.float32)
    for tile, result in zip(tiles, scaled, strict=True):
        rows = down @ tile.reshape(height, -1).astype(np.float32)
        columns = np.ascontiguousarray(rows.reshape(side_px, width, 3).swapaxes(0, 1))
        both = across @ columns.reshape(width, -1)
        np.clip(both.reshape(side_px, side_px, 3).swapaxes(0, 1), 0, 255, out=result)
    return scaled


@cache
def _weights(length_px: int, side_px: int, interpolation: str) -> csr_array:
    """Return the weights of pixels in scaled ones, shape (side_px, length_px), float32.

    A pixel that a scaled one reaches has the weight of the filter at their distance. Rounded as by
    torch, whose centres are float32: others move embeddings by 1e-5 of their length.
    """
    factor = float(np.float32(length_px / side_px))
    stretch = max(1.0, factor)
    reach = _REACH_PX[interpolation] * stretch
    shrink = float(np.float32(1 / stretch))
    rows, columns, values = [], [], []
    for row in range(side_px):
        centre = float(np.float32(factor * (row + 0.5)))
        first = max(int(centre - reach + 0.5), 0)
        pixels = np.arange(first, min(int(centre + reach + 0.5), length_px))
        distances = ((pixels - centre).astype(np.float32) + 0.5) * shrink
        weights = _filter(distances, interpolation)
        rows.append(np.full(len(pixels), row))
        columns.append(pixels)
        values.append(weights / weights.sum())
    data = np.concatenate(values).astype(np.float32)
    where = (np.concatenate(rows), np.concatenate(columns))
    return csr_array((data, where), shape=(side_px, length_px))


def _filter(x: npt.NDArray[np.float32], interpolation: str) -> npt.NDArray[np.float32]:
    """Return the triangle, or the cubic of Keys with a = -0.5, at distances of shape (n,)."""
    x = np.abs(x)
    if interpolation == "bilinear":
        return (1 - x).clip(0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
