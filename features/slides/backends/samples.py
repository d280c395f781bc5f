"""Samples of a slide that are no picture as they are stored: wrong tags, other colours or order."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["is_ycbcr", "misread_reason", "rgb_order"]

_LEAST_ROUGHNESS = 12.0
"""Mean difference of neighbours, grey levels; a picture may have more, wrongly read ones have."""
_SMOOTHER = 0.35
"""Share of it that is left in the right reading; other readings of a picture are rougher."""
_NEUTRAL = 128
"""Cb and Cr of what has no colour."""
_MOST_CHROMA = 24
"""Difference of tinted glass from it."""
_LEAST_LUMA = 190
_CHROMA_SPREAD, _PEN_SPREAD = 0.5, 0.75
"""Standard deviation of Cb and Cr over that of Y; of RGB, those of green and blue over that of red
are 0.6 and more, at least one of them."""
_TOGETHER = 0.8
"""Correlation of red with green and blue, both bright, in a stain that absorbs little but red; Cb
and Cr that vary with Y are of green, and below the middle."""
_RGB_OF_CHROMA = np.array([[0, -0.344, 1.772], [1.402, -0.714, 0]], np.float32)
"""Red, green and blue per Cb and Cr (ITU-T T.871, 2011)."""
_ROUNDED, _MOST_OUTSIDE = 24, 0.02
"""Grey levels by which colours leave the range as compression is lossy, and share of those that
leave it by more: up to 0.016 of tissue with pen at JPEG quality 10."""
_NAMES = tuple(
    re.compile(rf"(?<![a-z])(?:{name})(?![a-z])", re.IGNORECASE)
    for name in ("r|red", "g|green", "b|blue")
)


def misread_reason(samples: npt.NDArray[np.unsignedinteger]) -> str:
    """Return what a tag must have got wrong where samples are noise and would be smooth otherwise.

    ``samples`` has shape (height, width, channels), uint8 or uint16. Empty for pictures, and for
    noise that is noise in every reading.
    """
    roughness = _roughness(samples)
    if roughness < _LEAST_ROUGHNESS:
        return ""
    readings = {
        "differences between neighbours, without the tag Predictor": np.cumsum(
            samples, axis=1, dtype=samples.dtype
        ),
        "no differences between neighbours, which its tag Predictor denies": np.diff(
            samples, axis=1, prepend=samples.dtype.type(0)
        ),
    }
    if samples.dtype == np.uint16:
        readings["in another byte order than the header states"] = samples.byteswap()
    for reason, reading in readings.items():
        if _roughness(reading) < _SMOOTHER * roughness:
            return f"samples that are {reason}"
    return ""


def _roughness(samples: npt.NDArray[np.unsignedinteger]) -> float:
    """Mean difference of horizontal neighbours, grey levels of 8 bit."""
    grey_levels = samples.astype(np.float32) * (255 / np.iinfo(samples.dtype).max)
    return float(np.abs(np.diff(grey_levels, axis=1)).mean())


def is_ycbcr(samples: npt.NDArray[np.uint8]) -> bool:
    """Return whether samples, shape (height, width, 3), are luma and chroma, whatever a tag says.

    Chroma varies less than luma and around the middle of the range, on glass it is there; red,
    green and blue vary together, and bright red without green and blue is no glass. Nearly all
    luma and chroma of a picture are of colours within the range of red, green and blue.
    """
    channels = samples.reshape(-1, 3).astype(np.float32)
    colours = channels[:, :1] + (channels[:, 1:] - _NEUTRAL) @ _RGB_OF_CHROMA
    is_outside = (colours < -_ROUNDED).any(axis=1) | (colours > 255 + _ROUNDED).any(axis=1)
    if is_outside.mean() > _MOST_OUTSIDE:
        return False
    spread, middle = channels.std(axis=0), channels.mean(axis=0)
    shares = spread[1:] / max(float(spread[0]), 1.0)
    is_centred = bool((np.abs(middle[1:] - _NEUTRAL) < 3 * _MOST_CHROMA).all())
    covariances = ((channels[:, :1] - middle[0]) * (channels[:, 1:] - middle[1:])).mean(axis=0)
    vary_together = (covariances > _TOGETHER * spread[0] * spread[1:]) & (middle[1:] > _NEUTRAL)
    is_steady = bool(shares.max() < _CHROMA_SPREAD and not vary_together.all())
    if is_centred and is_steady and spread[0] > 1:
        return True
    bright = np.median(channels[channels[:, 0] >= np.quantile(channels[:, 0], 0.9)], axis=0)
    is_neutral = bool((np.abs(bright[1:] - _NEUTRAL) < _MOST_CHROMA).all())
    return is_neutral and bool(bright[0] > _LEAST_LUMA) and bool(shares.max() < _PEN_SPREAD)


def rgb_order(names: Sequence[str], colours: Sequence[int | None]) -> tuple[int, ...] | None:
    """Return the indices of red, green and blue among three channels; None if they are not stated.

    ``colours`` are 0xRRGGBB; the names, such as "B", "blue" or "Channel blue", come first.

    Examples
    --------
    >>> rgb_order(["Blue", "Green", "Red"], [None] * 3), rgb_order([], [0xFF, 0xFF00, 0xFF0000])
    ((2, 1, 0), (2, 1, 0))
    """
    by_name = [
        [index for index, name in enumerate(names) if pattern.search(name)] for pattern in _NAMES
    ]
    pure = (0xFF0000, 0x00FF00, 0x0000FF)
    by_colour = [
        [index for index, colour in enumerate(colours) if colour == primary] for primary in pure
    ]
    for found in (by_name, by_colour):
        order = tuple(indices[0] for indices in found if len(indices) == 1)
        if len(set(order)) == len(pure):
            return order
    return None
