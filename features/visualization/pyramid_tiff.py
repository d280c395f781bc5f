"""Heatmap as a TIFF pyramid, to overlay on the slide in other viewers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from features.utils.files import atomic_write
from features.visualization.heatmap import ColorScale, TileLayout, colormap_rgba, rasterize

__all__ = ["overlay_downsample", "write_heatmap_tiff"]

_MIN_TILE_PX = 16  # side of a tile of the slide, in the overlay
_MAX_SIDE_PX = 8192
_SEGMENT_PX = 256
_UM_PER_CM = 10_000


def overlay_downsample(layout: TileLayout) -> int:
    """Return the level-0 px per px of the overlay's finest level, a power of two.

    It is the coarsest level at which a tile has a shape of at least (16, 16) px, or a coarser one
    where the overlay would exceed 8,192 px.
    """
    downsample = 1
    while (
        min(layout.tile_size_px0) / (2 * downsample) >= _MIN_TILE_PX
        or max(layout.slide_size_px0) / downsample > _MAX_SIDE_PX
    ):
        downsample *= 2
    return downsample


def write_heatmap_tiff(
    path: Path, layout: TileLayout, values: npt.NDArray[np.float64], *, scale: ColorScale
) -> int:
    """Write the values of tiles, shape (tiles,), float64, as a tiled RGBA pyramid.

    It is transparent outside the tiles, and each level has half the resolution of the one before.
    Resolution tags give the µm per px of each, and the description names the downsample, so that
    viewers can align overlay and slide. Returns the level-0 px per px of the finest level; raises
    OutputError if the file cannot be written.
    """
    first = overlay_downsample(layout)
    mpp_x, mpp_y = layout.mpp_xy
    with atomic_write(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        for downsample in _downsamples(layout, first):
            tiff.write(
                colormap_rgba(rasterize(layout, values, downsample=downsample), scale),
                photometric="rgb",
                extrasamples=["unassalpha"],
                tile=(_SEGMENT_PX, _SEGMENT_PX),
                compression="adobe_deflate",
                subfiletype=0 if downsample == first else 1,
                resolution=(_UM_PER_CM / mpp_x / downsample, _UM_PER_CM / mpp_y / downsample),
                resolutionunit="CENTIMETER",
                description=json.dumps({"downsample": downsample, "shows": scale.words}),
                metadata=None,
                software=False,
            )
    return first


def _downsamples(layout: TileLayout, first: int) -> Iterator[int]:
    """Downsamples of the levels, down to one that fits a single segment."""
    yield first
    while max(layout.slide_size_px0) / first > _SEGMENT_PX:
        first *= 2
        yield first
