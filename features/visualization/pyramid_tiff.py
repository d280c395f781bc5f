"""Numbers of tiles as a TIFF pyramid that lies over the slide in other viewers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from features.utils.files import atomic_write
from features.visualization.heatmap import ColorScale, TileLayout, colours_on_tiles, rasterize

__all__ = ["overlay_downsample", "write_heatmap_tiff"]

_LEAST_TILE_PX = 16  # a tile of the slide, in the overlay
_MOST_LONG_PX = 8192
_SEGMENT_PX = 256
_UM_PER_CM = 10_000


def overlay_downsample(places: TileLayout) -> int:
    """Level-0 px per px of the overlay's finest level: a power of two.

    The coarsest at which a tile is at least 16 px wide and high, as long as the overlay stays
    within 8,192 px.
    """
    downsample = 1
    while (
        min(places.span_px0) / (2 * downsample) >= _LEAST_TILE_PX
        or max(places.size_px0) / downsample > _MOST_LONG_PX
    ):
        downsample *= 2
    return downsample


def write_heatmap_tiff(
    path: Path, places: TileLayout, values: npt.NDArray[np.float64], *, scale: ColorScale
) -> int:
    """Write numbers of tiles as a tiled RGBA pyramid; transparent off the tiles.

    Each level is half as fine as the one before. Resolution tags give the µm a px of each, and the
    description names the downsample, so that the overlay can be laid over the slide.

    Parameters
    ----------
    path
        Where to.
    places
        Where the tiles lie.
    values
        Shape (tiles,).
    scale
        How numbers become colours.

    Returns
    -------
    int
        Level-0 px per px of the finest level.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    first = overlay_downsample(places)
    mpp_x, mpp_y = places.mpp_xy
    with atomic_write(path) as beside, tifffile.TiffWriter(beside) as tiff:
        for downsample in _downsamples(places, first):
            tiff.write(
                colours_on_tiles(rasterize(places, values, downsample=downsample), scale),
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


def _downsamples(places: TileLayout, first: int) -> Iterator[int]:
    """Downsamples of the levels, down to one that fits a single segment."""
    yield first
    while max(places.size_px0) / first > _SEGMENT_PX:
        first *= 2
        yield first
