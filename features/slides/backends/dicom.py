"""Slides opened with OpenSlide, and what it does not say of DICOM and of missing pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from features.errors import SlideError, UnsupportedFormatError
from features.slides.backends.dicom_frames import (
    FrameStreams,
    files_by_level,
    frame_grids,
    instances_of_series,
    mpp_in_frames,
)
from features.slides.backends.dicom_support import check_colours_and_planes, check_format
from features.slides.backends.incomplete import IncompleteSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff_streams import tiff_grids
from features.slides.base import Slide, StatedMpp
from features.slides.dicom_series import is_dicom

__all__ = ["open_with_openslide"]

_SAME_MPP = 0.01
"""Relative difference up to which two resolutions are one."""


def open_with_openslide(path: Path, scene: int | None = None) -> Slide:
    """Open a slide with OpenSlide; missing frames and TIFF tiles are lost pixels, not background.

    Pixels have shape (height, width, 3), uint8. Raises as
    :class:`features.slides.backends.openslide.OpenSlideSlide`, and UnsupportedFormatError for DICOM
    whose pixels it would not show as they are meant.
    """
    if not is_dicom(path):
        slide = OpenSlideSlide(path, scene)
        missing = tiff_grids(
            path, slide.vendor, [(level.width_px, level.height_px) for level in slide.levels]
        )
        if missing is not None:
            return IncompleteSlide(slide, missing, block_noun="TIFF tile")
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
        return IncompleteSlide(slide, grids, block_noun="frame")
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
