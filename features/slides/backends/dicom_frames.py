"""Frames that the files of a DICOM slide hold; some may be left out, as glass or by mistake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FrameGrid", "incomplete_levels"]

_TAGS = [
    "SeriesInstanceUID", "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns", "Rows",
    "NumberOfFrames", "DimensionOrganizationType",
]  # fmt: skip
_SPARSE = "TILED_SPARSE"
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

    ``level_sizes_px`` are widths and heights, px. Of a level that no file states alone, such as one
    in several files, all frames are taken to be there.
    """
    grids: dict[tuple[int, int], FrameGrid] = {}
    for header, file in _headers_of_series(path):
        size = int(header.TotalPixelMatrixColumns), int(header.TotalPixelMatrixRows)
        if size in level_sizes_px:
            grids[size] = _read_grid(header, file, size)
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


def _read_grid(header: Any, file: Path, size: tuple[int, int]) -> FrameGrid:
    from pydicom import dcmread  # noqa: PLC0415 - loaded above already

    width, height = int(header.Columns), int(header.Rows)
    n_columns, n_rows = -(-size[0] // width), -(-size[1] // height)
    n_frames = int(header.get("NumberOfFrames") or 1)
    stored = None
    if n_frames < n_columns * n_rows:
        if header.get("DimensionOrganizationType") == _SPARSE:
            # A long list, which is read only where frames are missing.
            full = dcmread(
                file, stop_before_pixels=True, specific_tags=["PerFrameFunctionalGroupsSequence"]
            )
            places = {_place_of(group) for group in full.PerFrameFunctionalGroupsSequence}
            stored = frozenset((y // height, x // width) for x, y in places)
        else:  # frames follow one another in rows
            stored = frozenset(divmod(index, n_columns) for index in range(n_frames))
    return FrameGrid(
        width_px=size[0], height_px=size[1], frame_width_px=width, frame_height_px=height,
        stored=stored,
    )  # fmt: skip


def _place_of(group: Any) -> tuple[int, int]:
    """Left and top of a frame in its level, px from 0."""
    place = group[_POSITION].value[0]
    return (
        int(place.ColumnPositionInTotalImagePixelMatrix) - 1,
        int(place.RowPositionInTotalImagePixelMatrix) - 1,
    )
