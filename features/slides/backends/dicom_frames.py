"""Frames that the files of a DICOM slide hold; some may be left out, as glass or by mistake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FrameGrid", "incomplete_levels"]

_TAGS = [
    "SeriesInstanceUID", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns", "Rows",
    "NumberOfFrames", "ConcatenationUID", "ConcatenationFrameOffsetNumber",
]  # fmt: skip
_GROUPS = "PerFrameFunctionalGroupsSequence"
_POSITION = "PlanePositionSlideSequence"


@dataclass(frozen=True, kw_only=True)
class FrameGrid:
    """Frames of one level: size of the level and of a frame, px, and which frames are stored.

    ``stored`` holds row and column of each frame that the file has; None if it has all.
    """

    width_px: int
    height_px: int
    frame_width_px: int
    frame_height_px: int
    stored: frozenset[tuple[int, int]] | None


def incomplete_levels(
    path: Path, level_sizes_px: Sequence[tuple[int, int]]
) -> list[FrameGrid] | None:
    """Return the frames of each level of a DICOM slide, or None if no frame is missing.

    ``level_sizes_px`` are widths and heights, px. Of a level of which no file is found, all frames
    are taken to be there. Files of one concatenation are parts of one level.
    """
    parts: dict[tuple[int, int], list[tuple[Any, Path]]] = {}
    for header, file in _headers_of_series(path):
        size = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
        if size in level_sizes_px:
            parts.setdefault(size, []).append((header, file))
    grids = {size: _read_grid(files, size) for size, files in parts.items()}
    if all(grid.stored is None for grid in grids.values()):
        return None
    return [
        grids.get(size)
        or FrameGrid(
            width_px=size[0], height_px=size[1], frame_width_px=min(size[0], 512),
            frame_height_px=min(size[1], 512), stored=None,
        )
        for size in level_sizes_px
    ]  # fmt: skip


def _headers_of_series(path: Path) -> Iterator[tuple[Any, Path]]:
    """Headers of the files of one folder that are of the series of ``path``."""
    from pydicom import dcmread  # noqa: PLC0415 - it takes 0.2 s, and few slides are DICOM

    series = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS).SeriesInstanceUID
    for file in sorted(path.parent.iterdir()):
        try:
            header = dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        except Exception:  # noqa: BLE001, S112 - other files of the folder, damaged or not DICOM
            continue
        if header.get("SeriesInstanceUID") == series and "TotalPixelMatrixColumns" in header:
            yield header, file


def _read_grid(files: Sequence[tuple[Any, Path]], size: tuple[int, int]) -> FrameGrid:
    header = files[0][0]
    whole = header.get("ConcatenationUID")
    # Two files of one level that are not parts of it are copies of each other.
    files = [part for part in files if part[0].get("ConcatenationUID") == whole]
    files = files if whole else files[:1]
    width, height = int(header.Columns), int(header.Rows)
    n_columns, n_rows = -(-size[0] // width), -(-size[1] // height)
    stored = None
    if sum(_n_frames(part) for part, _ in files) < n_columns * n_rows:
        stored = frozenset(
            place for part, file in files for place in _stored_in(part, file, n_columns)
        )
    return FrameGrid(
        width_px=size[0], height_px=size[1], frame_width_px=width, frame_height_px=height,
        stored=stored,
    )  # fmt: skip


def _n_frames(header: Any) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _stored_in(header: Any, file: Path, n_columns: int) -> Iterator[tuple[int, int]]:
    """Row and column of each frame of a file.

    Where frames state their places, these hold, whatever DimensionOrganizationType says: so does
    the library that decodes them. Otherwise frames follow one another in rows.
    """
    from pydicom import dcmread  # noqa: PLC0415 - loaded above already

    # A long list, which is read only where frames are missing.
    groups = dcmread(file, stop_before_pixels=True, specific_tags=[_GROUPS]).get(_GROUPS) or ()
    if groups and all(_POSITION in group for group in groups):
        for x_px, y_px in map(_place_of, groups):
            yield y_px // int(header.Rows), x_px // int(header.Columns)
    else:
        first = int(header.get("ConcatenationFrameOffsetNumber") or 0)
        for index in range(first, first + _n_frames(header)):
            yield divmod(index, n_columns)


def _place_of(group: Any) -> tuple[int, int]:
    """Left and top of a frame in its level, px from 0."""
    place = group[_POSITION].value[0]
    return (
        int(place.ColumnPositionInTotalImagePixelMatrix) - 1,
        int(place.RowPositionInTotalImagePixelMatrix) - 1,
    )
