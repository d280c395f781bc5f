"""Compressed tiles of a TIFF that OpenSlide reads, for zeros that its decoders do not notice."""

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
_VENDORS = {"aperio", "generic-tiff", "philips"}
"""Those of whose levels OpenSlide places the tiles as the TIFF does, without overlap."""


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
            self._verdicts[index] = bool(stream) and (
                is_zeroed_jpeg(stream, tables=self.jpeg_tables)
                if self.is_jpeg
                else has_zeroed_data(stream)
            )
        return self._verdicts[index]


def tiff_streams(path: Path, vendor: str) -> dict[tuple[int, int], TiffStreams]:
    """Return the tiles of each level of a TIFF by its width and height in px; empty for others."""
    found: dict[tuple[int, int], TiffStreams] = {}
    if vendor in _VENDORS:
        with suppress(Exception), tifffile.TiffFile(path, is_ndpi=False) as file:
            for page in islice(file.pages, _MAX_PAGES):
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
