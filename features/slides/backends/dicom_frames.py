"""Frames that the files of a DICOM slide hold; some may be left out, as glass or by mistake."""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from features.slides.backends.base import StoredGrid, whole_grid
from features.slides.base import StatedMpp
from features.slides.zeroed import has_zeroed_data, is_zeroed_jpeg

__all__ = [
    "DicomInstance", "FrameStreams", "files_by_level", "frame_grids",
    "instances_of_series", "mpp_in_frames",
]  # fmt: skip

_TAGS = [
    "SeriesInstanceUID", "ImageType", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns",
    "Rows", "NumberOfFrames", "ConcatenationUID", "ConcatenationFrameOffsetNumber",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "TotalPixelMatrixFocalPlanes",
]  # fmt: skip
_LAST_TAG = 0x00480303
"""The last of them; behind it are the lists of frames, which pydicom takes seconds to read."""
_FIELDS = re.compile(
    rb"\x48\0\x1e\x02SL\x04\0(?P<x>.{4})\x48\0\x1f\x02SL\x04\0(?P<y>.{4})"
    rb"|\0\x52\x30\x92SQ(?P<groups>)"
    rb"|\x28\0\x30\0DS(?P<length>.)\0(?P<spacing>[-+0-9.eE\\ ]+)"
    rb"|\xe0\x7f\x10\0O[BW]\0\0(?P<pixels>)",
    re.DOTALL,
)
"""In explicit VR, little endian, the only one that OpenSlide reads: column and row of a frame from
1, PerFrameFunctionalGroupsSequence, PixelSpacing, and PixelData."""
_ITEM = b"\xfe\xff\x00\xe0"
_JPEG_START = b"\xff\xd8"
_START_BYTES = 1 << 16
_Place = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class DicomInstance:
    """One file of a series, and what its frames say of themselves.

    ``places_px`` are left and top of each frame in its level, empty where frames follow one another
    in rows. ``spacings_mm`` are all values of PixelSpacing among frames, row then column.
    ``first_stream`` is the beginning of the first compressed frame, ``pixels_at`` the offset of the
    pixels in the file, behind their tag.
    """

    path: Path
    header: Any
    places_px: tuple[_Place, ...]
    spacings_mm: frozenset[tuple[float, ...]]
    first_stream: bytes
    pixels_at: int = 0

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of its level."""
        return int(self.header.TotalPixelMatrixColumns), int(self.header.TotalPixelMatrixRows)

    @property
    def n_frames(self) -> int:
        """Number of frames that the header states."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of frames that its level needs."""
        width, height = self.size_px
        return -(-height // int(self.header.Rows)), -(-width // int(self.header.Columns))

    @property
    def n_at_one_place(self) -> int:
        """Number of frames at one place for most of its frames; 1 if each has its own."""
        if not self.places_px:
            return max(1, self.n_frames // math.prod(self.grid))
        counts = Counter(Counter(self.places_px).values())
        return max(counts, key=lambda n: n * counts[n])


def instances_of_series(path: Path) -> list[DicomInstance]:
    """Return the files of one folder that are of the series of ``path``, sizes in px, by name."""
    series = _read_header(path).get("SeriesInstanceUID")
    found = []
    for file in sorted(path.parent.iterdir()):
        try:
            header = _read_header(file)
            if header.get("SeriesInstanceUID") == series and "TotalPixelMatrixColumns" in header:
                found.append(_read_frames(file, header))
        except Exception:  # noqa: BLE001, S112 - other files of the folder, damaged or not DICOM
            continue
    return found


def frame_grids(
    instances: Sequence[DicomInstance], level_sizes_px: Sequence[tuple[int, int]]
) -> list[StoredGrid] | None:
    """Return the frames of each level of a DICOM slide, or None if no frame is missing.

    ``level_sizes_px`` are widths and heights, px. Of a level of which no file is found, all frames
    are taken to be there. Files of one concatenation are parts of one level.
    """
    parts = files_by_level(instances, level_sizes_px)
    grids = {size: _read_grid(files, size) for size, files in parts.items()}
    if all(grid.stored is None for grid in grids.values()):
        return None
    return [grids.get(size) or whole_grid(*size) for size in level_sizes_px]


def files_by_level(
    instances: Sequence[DicomInstance], level_sizes_px: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[DicomInstance]]:
    """Return the files of each level by its width and height, px."""
    parts: dict[tuple[int, int], list[DicomInstance]] = {}
    for instance in instances:
        if instance.size_px in level_sizes_px:
            parts.setdefault(instance.size_px, []).append(instance)
    return parts


def mpp_in_frames(instances: Sequence[DicomInstance]) -> tuple[StatedMpp, ...]:
    """Return each PixelSpacing that frames of the largest level state for themselves, µm per px."""
    largest = max(instances, key=lambda instance: instance.size_px, default=None)
    return tuple(
        StatedMpp(x=1000 * spacing[-1], y=1000 * spacing[0], field="PixelSpacing of frames")
        for spacing in sorted(largest.spacings_mm if largest is not None else ())
    )


def _read_header(path: Path) -> Any:
    from pydicom.filereader import read_partial  # noqa: PLC0415 - it takes 0.2 s, for few slides
    from pydicom.tag import Tag  # noqa: PLC0415

    with path.open("rb") as file:
        return read_partial(
            file, stop_when=lambda tag, _vr, _length: tag > _LAST_TAG,
            specific_tags=list(map(Tag, _TAGS)),
        )  # fmt: skip


def _read_frames(path: Path, header: Any) -> DicomInstance:
    """Find what is stated for each frame; the lists are long, and read without parsing them."""
    places: list[_Place] = []
    spacings: set[tuple[float, ...]] = set()
    is_among_frames, stream, pixels_at = False, b"", 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _FIELDS.finditer(content):
            if match["pixels"] is not None:
                pixels_at = match.end()
                stream = _first_stream(content, pixels_at)
                break
            if match["x"] is not None:
                places.append(tuple(struct.unpack("<i", match[axis])[0] - 1 for axis in "xy"))
            elif match["groups"] is not None:
                is_among_frames, places = True, []
            elif is_among_frames:
                text = match["spacing"][: match["length"][0]].decode()
                spacings.add(tuple(map(float, text.split("\\"))))
    n_frames = int(header.get("NumberOfFrames") or 1)
    return DicomInstance(
        path=path, header=header, places_px=tuple(places) if len(places) == n_frames else (),
        spacings_mm=frozenset(spacings), first_stream=stream, pixels_at=pixels_at,
    )  # fmt: skip


class FrameStreams:
    """Compressed frames of one level, shape (frame_height_px, frame_width_px), for what they lack.

    Decoders of JPEG and JPEG 2000 notice no zeros in them. ``files`` are those of the level.
    """

    def __init__(self, files: Sequence[DicomInstance]) -> None:
        self._files = files
        self._verdicts: dict[_Place, bool] = {}

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in the stream of any frame of a region, px of the level."""
        header = self._files[0].header
        rows = range(y_px // int(header.Rows), (y_px + height_px - 1) // int(header.Rows) + 1)
        columns = range(
            x_px // int(header.Columns), (x_px + width_px - 1) // int(header.Columns) + 1
        )
        return any(self._is_zeroed_at((row, column)) for row in rows for column in columns)

    def _is_zeroed_at(self, place: _Place) -> bool:
        if place not in self._verdicts:
            found = self._spans.get(place)
            stream = b""
            if found is not None:
                with found[0].open("rb") as file:
                    file.seek(found[1])
                    stream = file.read(found[2] - found[1])
            self._verdicts[place] = bool(stream) and (
                is_zeroed_jpeg(stream)
                if stream.startswith(_JPEG_START)
                else has_zeroed_data(stream)
            )
        return self._verdicts[place]

    @cached_property
    def _spans(self) -> dict[_Place, tuple[Path, int, int]]:
        """File, start and end, bytes, of the stream at each place; none where they are unclear."""
        spans = {}
        for part in self._files:
            with suppress(Exception):  # what cannot be parsed, the library that decodes it reports
                places = _places_in(part, part.grid[1])
                for place, (start, end) in zip(places, _find_streams(part), strict=True):
                    spans[place] = part.path, start, end
        return spans


def _find_streams(part: DicomInstance) -> list[tuple[int, int]]:
    """Start and end, bytes, of each compressed frame of a file; empty for other pixels."""
    with part.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = part.pixels_at + 4
        if data[part.pixels_at : position] != b"\xff\xff\xff\xff":
            return []
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        table = struct.unpack(f"<{length // 4}I", data[position + 8 : position + 8 + length])
        first = position + 8 + length
        if len(table) == part.n_frames:
            ends = [first + offset for offset in table[1:]]
            # Behind the last item are the delimiter, and often padding of zeros.
            ends.append(max(end for _, end in _items(data, first + table[-1])))
            return [(first + offset + 8, end) for offset, end in zip(table, ends, strict=True)]
        items = list(_items(data, first))
    return items if len(items) == part.n_frames else []


def _items(data: mmap.mmap, position: int) -> Iterator[tuple[int, int]]:
    """Start and end, bytes, of the content of each item in a row of them from a position on."""
    while data[position : position + 4] == _ITEM:
        start = position + 8
        position = start + int.from_bytes(data[position + 4 : start], "little")
        yield start, position


def _first_stream(content: mmap.mmap, position: int) -> bytes:
    """Beginning of the first fragment of compressed pixels; empty for others."""
    if content[position : position + 4] != b"\xff\xff\xff\xff":
        return b""
    position += 4
    for _ in range(2):  # the table of offsets, then the first fragment
        kind, length = content[position : position + 4], content[position + 4 : position + 8]
        if kind != _ITEM:
            return b""
        start = position + 8
        position = start + int.from_bytes(length, "little")
    return content[start : min(position, start + _START_BYTES)]


def _read_grid(files: Sequence[DicomInstance], size: tuple[int, int]) -> StoredGrid:
    header = files[0].header
    whole = header.get("ConcatenationUID")
    # Two files of one level that are not parts of it are copies of each other.
    files = [part for part in files if part.header.get("ConcatenationUID") == whole]
    files = files if whole else files[:1]
    n_rows, n_columns = files[0].grid
    counts = Counter(place for part in files for place in _places_in(part, n_columns))
    # Of two frames at one place nothing says which one belongs there.
    stored = frozenset(
        (row, column)
        for (row, column), n_frames in counts.items()
        if n_frames == 1 and row < n_rows and column < n_columns
    )
    return StoredGrid(
        width_px=size[0], height_px=size[1], block_width_px=int(header.Columns),
        block_height_px=int(header.Rows),
        stored=None if len(stored) == n_columns * n_rows else stored,
    )  # fmt: skip


def _places_in(part: DicomInstance, n_columns: int) -> Iterator[_Place]:
    """Row and column of each frame of a file.

    Where frames state their places, these hold, whatever DimensionOrganizationType says: so does
    the library that decodes them. Otherwise frames follow one another in rows.
    """
    if part.places_px:
        for x_px, y_px in part.places_px:
            yield y_px // int(part.header.Rows), x_px // int(part.header.Columns)
    else:
        first = int(part.header.get("ConcatenationFrameOffsetNumber") or 0)
        for index in range(first, first + part.n_frames):
            yield divmod(index, n_columns)
