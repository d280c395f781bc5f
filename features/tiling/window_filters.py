"""Filters of square and round windows, with the results of ``scipy.ndimage`` in less time.

Windows are added up and compared by shifting whole arrays: of 2, 4 and 8 px each from two of half
the length. Bands of rows stay in the cache of a processor. Beyond the border the picture is
reflected, as by default there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["close_disc", "open_disc", "window_max", "window_mean", "window_min"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_BAND_PX = 1 << 15
_LEAST_ROWS = 16
_DISC_SLACK_PX = 0.3
"""Added to the radius of a disc, which makes it round."""


def window_mean(values: Floats, size_px: int) -> Floats:
    """Return the means of windows of ``size_px`` px, odd, shape (height, width), float32."""

    def mean(band: npt.NDArray[Any], axis: int) -> Floats:
        # Rounded after each axis, as by SciPy; sums of float64 are exact before.
        return (_sum_along(band.astype(np.float64), size_px, axis) / size_px).astype(np.float32)

    return _in_bands(values, size_px, "symmetric", lambda band: mean(mean(band, 0), 1))


def window_max(values: npt.NDArray[Any], size_px: int) -> npt.NDArray[Any]:
    """Return the largest value in windows of ``size_px`` px, odd, shape (height, width)."""
    return _extreme(values, size_px, np.maximum)


def window_min(values: npt.NDArray[Any], size_px: int) -> npt.NDArray[Any]:
    """Return the smallest value in windows of ``size_px`` px, odd, shape (height, width)."""
    return _extreme(values, size_px, np.minimum)


def close_disc(mask: Bools, radius_px: int) -> Bools:
    """Fill gaps of a mask, shape (height, width), in which no disc has room."""
    return ~_dilate(~_dilate(_with_border(mask, radius_px), radius_px), radius_px)


def open_disc(mask: Bools, radius_px: int) -> Bools:
    """Remove parts of a mask, shape (height, width), in which no disc has room."""
    return _dilate(~_dilate(~_with_border(mask, radius_px), radius_px), radius_px)


def _with_border(mask: Bools, radius_px: int) -> Bools:
    """A mask that goes on beyond its border for one radius, and is False for another."""
    return np.pad(np.pad(mask, radius_px, mode="edge"), radius_px)


def _dilate(mask: Bools, radius_px: int) -> Bools:
    """Union of discs around the pixels of a mask, without a border of ``radius_px`` px."""
    height, width = (side - 2 * radius_px for side in mask.shape)
    dilated = np.zeros((height, width), bool)
    for dy in range(-radius_px, radius_px + 1):
        reach = int(((radius_px + _DISC_SLACK_PX) ** 2 - dy**2) ** 0.5)
        rows = mask[radius_px + dy : radius_px + dy + height]
        rows = rows[:, radius_px - reach : radius_px + width + reach]
        dilated |= _extreme_along(rows, 2 * reach + 1, 1, np.logical_or)
    return dilated


def _extreme(values: npt.NDArray[Any], size_px: int, better: np.ufunc) -> npt.NDArray[Any]:
    def extreme(band: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _extreme_along(_extreme_along(band, size_px, 0, better), size_px, 1, better)

    # A window at the border holds the edge, and all that would be reflected into it.
    return _in_bands(values, size_px, "edge", extreme)


def _in_bands(
    values: npt.NDArray[Any],
    size_px: int,
    mode: Any,
    function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
) -> npt.NDArray[Any]:
    """Apply a function to bands of rows with what their windows reach beyond them."""
    around = np.pad(values, size_px // 2, mode=mode)
    result = np.empty_like(values, order="C")
    step = max(_LEAST_ROWS, _BAND_PX // around.shape[1])
    for top in range(0, len(values), step):
        result[top : top + step] = function(around[top : top + step + size_px - 1])
    return result


def _sum_along(values: npt.NDArray[Any], size: int, axis: int) -> npt.NDArray[Any]:
    """Sums of ``size`` adjacent values."""
    n_sums = values.shape[axis] - size + 1
    total, length, at = None, 1, 0
    while True:
        if size & length:
            part = _cut(values, axis, at, n_sums)
            total = part if total is None else total + part
            at += length
        length *= 2
        if length > size:
            return np.asarray(total)
        half = length // 2
        n_left = values.shape[axis] - half
        values = _cut(values, axis, 0, n_left) + _cut(values, axis, half, n_left)


def _extreme_along(
    values: npt.NDArray[Any], size: int, axis: int, better: np.ufunc
) -> npt.NDArray[Any]:
    """The best of ``size`` adjacent values."""
    length = 1
    while length < size:
        shift = min(length, size - length)
        n_left = values.shape[axis] - shift
        values = better(_cut(values, axis, 0, n_left), _cut(values, axis, shift, n_left))
        length += shift
    return values


def _cut(values: npt.NDArray[Any], axis: int, first: int, length: int) -> npt.NDArray[Any]:
    part = slice(first, first + length)
    return values[part] if axis == 0 else values[:, part]
