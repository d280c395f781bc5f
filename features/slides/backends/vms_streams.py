"""Restart intervals of a Hamamatsu VMS, for zeros that OpenSlide's decoder does not notice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.slides.zeroed import ZERO_RUN
from features.utils.image_headers import jpeg_dimensions, jpeg_scan

__all__ = ["VmsStreams", "vms_streams"]

_PREFIX = "hamamatsu."
_IMAGE_KEY = re.compile(r"ImageFile(?:\((?:0,)?(\d+),(\d+)\))?\Z")
"""Key of a picture of the first layer, with its column and row."""
_HEADER_BYTES = 1 << 16
_RECORD_BYTES = 40
"""Record of the optimisation file, which begins with where a row of intervals does."""
_FACTORS = (1, 2, 4, 8)
"""OpenSlide makes further levels, decoding so many px of a picture to one."""
_RESTART_INTERVAL = re.compile(rb"\xff\xdd\x00\x04(..)", re.DOTALL)
_FRAME = re.compile(rb"\xff[\xc0\xc1]..\x08....\x03.(.)..(.)..(.).", re.DOTALL)
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Picture:
    """A JPEG file in rows of intervals; sizes in px, ``starts`` of its rows in bytes."""

    path: Path
    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    starts: npt.NDArray[np.int64]
    is_flat: bool
    """Whether zeros are the codes of plain glass."""
    _lost: dict[int, range] = field(default_factory=dict)

    def is_zeroed(self, left: float, top: float, right: float, bottom: float) -> bool:
        """Return whether zeros lie in any interval of a box, px of the picture."""
        rows = range(max(0, int(top // self.tile_height_px)), len(self.starts))
        first, last = left // self.tile_width_px, (right - 1) // self.tile_width_px
        for row in rows:
            if row * self.tile_height_px >= bottom:
                return False
            lost = self._lost_columns(row)
            if lost and lost.start <= last and first < lost.stop:
                return True
        return False

    def _lost_columns(self, row: int) -> range:
        """Numbers of the intervals of a row in which zeros lie, and of those between them.

        None of a row that the index says to begin outside the file or behind the next one.
        """
        if row not in self._lost:
            self._lost[row] = range(0)
            is_last = row + 1 == len(self.starts)
            with self.path.open("rb") as file:
                n_bytes = file.seek(0, os.SEEK_END)
                start = int(self.starts[row])
                end = n_bytes if is_last else int(self.starts[row + 1])
                stream = b""
                if 0 < start < end <= n_bytes:  # OpenSlide searches for rows of which it is untrue
                    file.seek(start)
                    stream = file.read(end - start)
            runs = [] if self.is_flat else list(ZERO_RUN.finditer(stream))
            if runs:
                before = len(_RESTART.findall(stream, 0, runs[0].start()))
                # The marker behind the row is that of the next one.
                behind = len(_RESTART.findall(stream, runs[-1].end())) - (not is_last)
                self._lost[row] = range(before, self.width_px // self.tile_width_px - behind)
        return self._lost[row]


@dataclass(frozen=True, kw_only=True, eq=False)
class VmsStreams:
    """Pictures of one level, each with its left and top, px of the finest level of its kind."""

    pictures: Sequence[tuple[int, int, _Picture]]
    factor: int

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in any interval that a region shows, px of the level."""
        return any(
            picture.is_zeroed(
                self.factor * x_px - left, self.factor * y_px - top,
                self.factor * (x_px + width_px) - left, self.factor * (y_px + height_px) - top,
            )
            for left, top, picture in self.pictures
        )  # fmt: skip


def vms_streams(path: Path, properties: Mapping[str, str]) -> dict[tuple[int, int], VmsStreams]:
    """Return the pictures of each level of a VMS by its width and height in px.

    ``properties`` are those of OpenSlide. Empty for other slides, and for a VMS without its
    optimisation file, which states where rows of intervals begin.
    """
    found: dict[tuple[int, int], VmsStreams] = {}
    with suppress(Exception):  # OpenSlide has read it already, and judges what is wrong with it
        folder = path.parent
        places = {
            (int(match[2] or 0), int(match[1] or 0)): folder / name
            for key, name in properties.items()
            if (match := _IMAGE_KEY.match(key.removeprefix(_PREFIX)))
        }
        paths = [places[place] for place in sorted(places)]
        index = (folder / properties[f"{_PREFIX}OptimisationFile"]).read_bytes()
        *images, overview = _read_pictures(
            [*paths, folder / properties[f"{_PREFIX}MapFile"]], index
        )
        across = int(properties[f"{_PREFIX}NoJpegColumns"])
        lefts = np.cumsum([0, *(image.width_px for image in images[:across])])
        tops = np.cumsum([0, *(image.height_px for image in images[::across])])
        placed = [
            (int(lefts[number % across]), int(tops[number // across]), image)
            for number, image in enumerate(images)
        ]
        for width, height, pictures in (
            (int(lefts[-1]), int(tops[-1]), placed),
            (overview.width_px, overview.height_px, [(0, 0, overview)]),
        ):
            for factor in _FACTORS:
                streams = VmsStreams(pictures=pictures, factor=factor)
                found.setdefault((width // factor, height // factor), streams)
    return found


def _read_pictures(paths: Sequence[Path], index: bytes) -> Iterator[_Picture]:
    """Pictures in the order of the index, which lacks the last row of all."""
    position = 0
    for path in paths:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        interval, frame = _RESTART_INTERVAL.search(header), _FRAME.search(header)
        size = jpeg_dimensions(header)
        if interval is None or frame is None or size is None:
            message = f"no restart intervals in {path}"
            raise ValueError(message)
        factors = [frame[number][0] for number in (1, 2, 3)]
        across, down = (8 * max(divmod(each, 16)[axis] for each in factors) for axis in (0, 1))
        rows = -(-size[1] // down)
        part = index[position : position + rows * _RECORD_BYTES]
        position += len(part)
        records = np.frombuffer(part[: len(part) // _RECORD_BYTES * _RECORD_BYTES], "<i8")
        yield _Picture(
            path=path, width_px=size[0], height_px=size[1],
            tile_width_px=across * int.from_bytes(interval[1], "big"), tile_height_px=down,
            starts=records[:: _RECORD_BYTES // 8].astype(np.int64), is_flat=jpeg_scan(header)[2],
        )  # fmt: skip
