"""DICOM slides that lack frames, read frame by frame through OpenSlide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from features.errors import SlideError, UnsupportedFormatError
from features.slides.backends.base import BlockGrid, BlockReader
from features.slides.backends.dicom_frames import (
    FrameGrid,
    FrameStreams,
    files_by_level,
    frame_grids,
    instances_of_series,
    mpp_in_frames,
)
from features.slides.backends.dicom_support import check_colours_and_planes, check_format
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.base import RgbArray, Slide, StatedMpp
from features.slides.dicom_series import is_dicom

__all__ = ["IncompleteDicomSlide", "open_with_openslide"]

_SAME_MPP = 0.01
"""Relative difference up to which two resolutions are one."""


def open_with_openslide(path: Path, scene: int | None = None) -> Slide:
    """Open a slide with OpenSlide; missing frames of DICOM are lost pixels, not background.

    Pixels have shape (height, width, 3), uint8. OpenSlide shows missing frames as background, or
    does not read what is beside them. Raises as
    :class:`features.slides.backends.openslide.OpenSlideSlide`, and UnsupportedFormatError for DICOM
    whose pixels it would not show as they are meant.
    """
    if not is_dicom(path):
        slide = OpenSlideSlide(path, scene)
        slide.set_levels_aside()
        return slide
    try:
        instances = instances_of_series(path)
    except Exception:  # noqa: BLE001 - pydicom raises errors of many kinds; OpenSlide says it better
        instances = []
    spacings = mpp_in_frames(instances)
    try:
        slide = OpenSlideSlide(path, scene, more_mpp=spacings if len(spacings) == 1 else ())
    except SlideError:
        check_format(instances)
        raise
    slide.warnings += _describe_spacings(spacings, slide.stated_mpp)
    sizes = [(level.width_px, level.height_px) for level in slide.levels]
    levels = [instance for instance in instances if instance.size_px in sizes]
    try:
        check_colours_and_planes(levels)
    except UnsupportedFormatError:
        slide.close()
        raise
    parts = files_by_level(levels, sizes)
    slide.streams = {size: FrameStreams(files) for size, files in parts.items()}
    grids = frame_grids(levels, sizes)
    if grids is not None:
        return IncompleteDicomSlide(slide, grids)
    slide.set_levels_aside()
    return slide


def _describe_spacings(spacings: Sequence[StatedMpp], used: StatedMpp | None) -> tuple[str, ...]:
    """A sentence if the frames differ in their resolution, µm per px, or from the one used."""
    if len(spacings) > 1:
        return (f"frames differ in PixelSpacing, {len(spacings)} values: none of them is used",)
    for own in spacings:
        if used is not None and not math.isclose(own.x, used.x, rel_tol=_SAME_MPP):
            text = f"{own.x:.4g} x {own.y:.4g} µm/px in {own.field} is not used"
            return (f"{text}: {used.field} states {used.x:.4g}",)
    return ()


class IncompleteDicomSlide(BlockReader):
    """A DICOM slide of which some frames are not stored, shape (height, width, 3), uint8.

    A frame that a level lacks is computed from the finer one; on the finest, it is an error unless
    it is glass. ``grids`` are the frames of each of its levels, sizes in px.
    """

    reader = "openslide"
    _block_noun = "frame"

    def __init__(self, slide: OpenSlideSlide, grids: Sequence[FrameGrid]) -> None:
        super().__init__(slide.path)
        self._slide = slide
        self._stored = [grid.stored for grid in grids]
        self._grids = [
            BlockGrid(
                width_px=grid.width_px, height_px=grid.height_px,
                block_width_px=grid.frame_width_px, block_height_px=grid.frame_height_px,
            )
            for grid in grids
        ]  # fmt: skip
        self.levels = slide.levels
        self.stated_mpp = slide.stated_mpp
        self.background_rgb = slide.background_rgb
        self.associated_images = slide.associated_images
        self.warnings = (*slide.warnings, *self._describe_gaps())

    def close(self) -> None:
        """Close the file and release cached frames."""
        super().close()
        self._slide.close()

    def _describe_gaps(self) -> list[str]:
        """Sentences on missing frames, by level."""
        return [
            f"{grid.rows * grid.columns - len(stored):,} of {grid.rows * grid.columns:,} frames "
            f"of level {level} are not stored"
            for level, (grid, stored) in enumerate(zip(self._grids, self._stored, strict=True))
            if stored is not None
        ]

    def _is_stored(self, level: int, row: int, column: int) -> bool:
        stored = self._stored[level]
        return stored is None or (row, column) in stored

    def _decode(self, level: int, row: int, column: int) -> RgbArray | None:
        if not self._is_stored(level, row, column):
            return None
        grid = self._grids[level]
        x_px, y_px = column * grid.block_width_px, row * grid.block_height_px
        return self._slide.read(
            level=level, x_px=x_px, y_px=y_px,
            width_px=min(grid.block_width_px, grid.width_px - x_px),
            height_px=min(grid.block_height_px, grid.height_px - y_px),
        )  # fmt: skip
