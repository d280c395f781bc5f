"""Bits that samples of 16 bit really use, which cameras of 10, 12 or 14 bit leave partly empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import CONTENT_ERRORS

__all__ = ["bits_of_maximum", "resolve_bits", "to_eight_bits"]

_FULL = 16
_LEAST = 8


def bits_of_maximum(value: object) -> int | None:
    """Return the bits, 8 to 16, that hold a largest sample, alone or per channel; None without one.

    A stated maximum may be that of the data, so it is rounded up to the next number of bits.

    Examples
    --------
    >>> bits_of_maximum(4095), bits_of_maximum((3900, 3871, 3902))
    (12, 12)
    """
    try:
        largest = float(np.max(np.asarray(value, np.float64)))
    except CONTENT_ERRORS:
        return None
    if not 1 < largest < 1 << _FULL:
        return None
    return min(_FULL, max(_LEAST, int(largest).bit_length()))


def resolve_bits(stated: int | None, *, field: str, largest: int) -> tuple[int, tuple[str, ...]]:
    """Return the bits that pixels are scaled from, and warnings.

    ``stated`` are the bits that ``field`` of the file states, None without any; ``largest`` is the
    largest of some sampled values. A statement that the samples exceed is not used. Samples that
    use less than half of the range without a statement, or a quarter of the one that is stated, are
    warned of: glass is nearly white, so the slide would look too dark.
    """
    used = max(_LEAST, largest.bit_length())
    if stated is not None and largest >> stated:
        return _FULL, (
            f"{field} states {stated} bit, but samples reach {largest:,}: it is not used",
        )
    if stated is not None and used <= stated - 2 and largest:
        warning = (  # some writers state the size of a sample for what is used of it
            f"{field} states {stated} bit, but samples reach only {largest:,}, as if {used} bit "
            f"were used: the slide is read too dark. Let it state {used}, or export it with 8 bit."
        )
        return stated, (warning,)
    if stated is not None:
        return stated, ()
    if 0 < largest < 1 << (_FULL - 1):
        warning = (
            f"samples of 16 bit reach only {largest:,}, as if {used} bit were used, and the file "
            f"does not say so: the slide is read too dark. Write {(1 << used) - 1:,} into "
            "MaxSampleValue (TIFF) or window.max (OME-Zarr), or export it with 8 bit."
        )
        return _FULL, (warning,)
    return _FULL, ()


def to_eight_bits(samples: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Return pixels with the upper 8 of so many bits, of the same shape, uint8; more is white."""
    shifted = samples >> (bits - _LEAST)
    return np.minimum(shifted, 255).astype(np.uint8) if bits < _FULL else shifted.astype(np.uint8)
