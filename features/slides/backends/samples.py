"""Samples of a slide that are no picture as they are stored: a wrong tag or a swapped channel."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["misread_reason", "rgb_order"]

_LEAST_ROUGHNESS = 12.0
"""Mean difference of neighbours, grey levels; a picture may have more, wrongly read ones have."""
_SMOOTHER = 0.35
"""Share of it that is left in the right reading; other readings of a picture are rougher."""
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
