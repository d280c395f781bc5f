"""Compressed tiles of a TIFF or NDPI that OpenSlide reads, for zeros its decoders do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from features.slides.backends.tiff_tags import ENTROPY_CODED, PLAIN_JPEGS
from features.slides.zeroed import has_zeroed_data, is_zeroed_jpeg

__all__ = ["TiffStreams", "tiff_streams"]

_MAX_PAGES = 64
_VENDORS = {"aperio", "generic-tiff", "hamamatsu", "philips"}
"""Those of whose levels OpenSlide places the tiles as the TIFF does, without overlap."""
_SOURCE_LENS, _FOCAL_PLANE = "65421", "65424"
"""NDPI's magnification of a page, below 0 for companions, and focal plane; OpenSlide shows 0."""
_NDPI_FACTORS = (8, 4, 2, 1)
"""OpenSlide makes further levels of an NDPI, decoding so many px of a page to one."""
_MAX_NDPI_BYTES = 1 << 24
"""Longest JPEG of an NDPI without restart intervals that is looked at."""
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True, kw_only=True, eq=False)
class TiffStreams:
    """Tiles of one level of shape (tile_height_px, tile_width_px), in rows of ``columns``."""

    path: Path
    tile_width_px: int
    tile_height_px: int
    columns: int
    offsets: npt.NDArray[np.uint64]
    byte_counts: npt.NDArray[np.uint64]
    is_jpeg: bool
    jpeg_tables: bytes
    ndpi_header: bytes = b""
    """What precedes the tiles of an NDPI page, which are restart intervals of one JPEG."""
    _verdicts: dict[int, bool] = field(default_factory=dict)

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in the stream of any tile of a region, px of the level."""
        last_row = (y_px + height_px - 1) // self.tile_height_px
        last_column = min(self.columns - 1, (x_px + width_px - 1) // self.tile_width_px)
        return any(
            self._is_zeroed_at(row * self.columns + column)
            for row in range(max(0, y_px) // self.tile_height_px, last_row + 1)
            for column in range(max(0, x_px) // self.tile_width_px, last_column + 1)
        )

    def _is_zeroed_at(self, index: int) -> bool:
        if index >= len(self.offsets):
            return False
        if index not in self._verdicts:
            with self.path.open("rb") as file:
                file.seek(int(self.offsets[index]))
                stream = file.read(int(self.byte_counts[index]))
            self._verdicts[index] = bool(stream) and self._has_zeros(stream)
        return self._verdicts[index]

    def _has_zeros(self, stream: bytes) -> bool:
        if not self.is_jpeg:
            return has_zeroed_data(stream)
        if self.ndpi_header:
            stream = self.ndpi_header + stream + _JPEG_END
        return is_zeroed_jpeg(stream, tables=self.jpeg_tables)


def tiff_streams(path: Path, vendor: str) -> dict[tuple[int, int], TiffStreams]:
    """Return the tiles of each level of a TIFF by its width and height in px; empty for others."""
    found: dict[tuple[int, int], TiffStreams] = {}
    if vendor in _VENDORS:
        is_ndpi = vendor == "hamamatsu"
        with suppress(Exception), tifffile.TiffFile(path, is_ndpi=is_ndpi) as file:
            for page in islice(file.pages, _MAX_PAGES):
                if is_ndpi:
                    found.update(_ndpi_streams_of(path, page.aspage()))
                    continue
                for size, streams in _streams_of(path, page.aspage()):
                    found.setdefault(size, streams)
    return found


def _streams_of(path: Path, page: Any) -> Iterator[tuple[tuple[int, int], TiffStreams]]:
    """The tiles of a page, if they are compressed in a way that is looked at."""
    is_jpeg = page.compression in PLAIN_JPEGS
    if not page.is_tiled or not (is_jpeg or page.compression in ENTROPY_CODED):
        return
    yield (page.imagewidth, page.imagelength), TiffStreams(
        path=path, tile_width_px=page.tilewidth, tile_height_px=page.tilelength,
        columns=-(-page.imagewidth // page.tilewidth),
        offsets=np.array(page.dataoffsets, np.uint64),
        byte_counts=np.array(page.databytecounts, np.uint64),
        is_jpeg=is_jpeg, jpeg_tables=page.jpegtables or b"",
    )  # fmt: skip


def _ndpi_streams_of(path: Path, page: Any) -> Iterator[tuple[tuple[int, int], TiffStreams]]:
    """The restart intervals of a page, also for the levels that OpenSlide makes of it."""
    width, height = page.imagewidth, page.imagelength
    is_whole = page.jpegheader is None
    is_level = page.tags.valueof(_SOURCE_LENS, 0) > 0 and not page.tags.valueof(_FOCAL_PLANE, 0)
    if not is_level or (is_whole and sum(page.databytecounts) > _MAX_NDPI_BYTES):
        return
    tile_width, tile_height = (width, height) if is_whole else (page.tilewidth, page.tilelength)
    offsets, byte_counts = (
        np.array(values, np.uint64) for values in (page.dataoffsets, page.databytecounts)
    )
    for factor in _NDPI_FACTORS:
        yield (width // factor, height // factor), TiffStreams(
            path=path, tile_width_px=max(1, tile_width // factor),
            tile_height_px=max(1, tile_height // factor), columns=-(-width // tile_width),
            offsets=offsets, byte_counts=byte_counts, is_jpeg=True, jpeg_tables=b"",
            ndpi_header=page.jpegheader or b"",
        )  # fmt: skip
