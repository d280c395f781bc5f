"""Large strips of uncompressed TIFF, divided into rows so that a region needs only its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

__all__ = ["decode_rows", "divide_strips", "rows_per_part"]

_MAX_PART_PX = 1 << 22
"""Pixels of a part: 12 MB in colours."""


def rows_per_part(page: Any) -> int | None:
    """Return the rows, px, into which the strips of a page are divided; None for other pages.

    Only strips of more than 4 megapixels without compression, predictor and reversed bits are, of
    shape (rows, width, channels). A number that divides the strip exactly is needed if there are
    several.
    """
    rows: int = min(page.rowsperstrip, page.imagelength)
    if (
        page.is_tiled
        or page.compression != tifffile.COMPRESSION.NONE
        or page.fillorder != 1
        or page.predictor != 1
        or page.bitspersample not in {8, 16}
        or rows * page.imagewidth <= _MAX_PART_PX
    ):
        return None
    limit: int = max(1, _MAX_PART_PX // page.imagewidth)
    if rows == page.imagelength:
        return limit
    return max(part for part in range(1, limit + 1) if rows % part == 0)


def divide_strips(
    page: Any, part_rows: int, offsets: Sequence[int], byte_counts: npt.NDArray[np.uint64]
) -> tuple[list[int], npt.NDArray[np.uint64]]:
    """Return offset and bytes of each part of ``part_rows`` rows, px, of the strips of a plane.

    Both have shape (parts,). A strip without bytes gives parts without bytes; parts beyond the end
    of a strip that is too short have one byte, so that they cannot be decoded and are counted as
    failed.
    """
    rows = min(page.rowsperstrip, page.imagelength)
    row_bytes = math.prod(_row_shape(page)) * page.bitspersample // 8
    starts: list[int] = []
    counts: list[int] = []
    for strip, (offset, n_bytes) in enumerate(zip(offsets, byte_counts.tolist(), strict=True)):
        height = min(rows, page.imagelength - strip * rows)
        for top in range(0, height, part_rows):
            expected = min(part_rows, height - top) * row_bytes
            remaining = n_bytes - top * row_bytes
            starts.append(offset + top * row_bytes)
            counts.append(0 if not n_bytes else expected if remaining >= expected else 1)
    return starts, np.array(counts, np.uint64)


def decode_rows(page: Any, stream: bytes) -> npt.NDArray[Any]:
    """Return whole rows, shape (rows, width, channels) in px; ValueError for a part of one."""
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    pixels = np.frombuffer(stream, stored).reshape(-1, *_row_shape(page))
    return pixels.astype(page.dtype, copy=False)


def _row_shape(page: Any) -> tuple[int, int]:
    """Width, px, and number of channels of a row of one plane."""
    is_planar = page.planarconfig != tifffile.PLANARCONFIG.CONTIG
    return page.imagewidth, 1 if is_planar else page.samplesperpixel
