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
    green and blue vary together, and bright red without green and blue is no glass.
    """
    channels = samples.reshape(-1, 3).astype(np.float32)
    spread, middle = channels.std(axis=0), channels.mean(axis=0)
    shares = spread[1:] / max(float(spread[0]), 1.0)
    is_centred = bool((np.abs(middle[1:] - _NEUTRAL) < 3 * _MOST_CHROMA).all())
    if is_centred and shares.max() < _CHROMA_SPREAD and spread[0] > 1:
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
