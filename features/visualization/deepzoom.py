"""Deep Zoom pyramid over a slide, computed tile by tile on request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.slides.base import RgbArray, Slide
from features.slides.resampling import cell_edges, nearest_level, resize_area
from features.visualization.heatmap import ColorScale, TileLayout, colormap_rgba, rasterize

__all__ = ["ZOOM_TILE_PX", "DeepZoom", "DeepZoomReader", "Region", "colorize_region"]

ZOOM_TILE_PX = 256
"""Side of a tile of the pyramid, px."""

_MAX_AVERAGED = 4
_BAND_PX = 512
_MAX_OVERVIEW_PX = 80 << 20  # 240 MB; several times that while it is computed


@dataclass(frozen=True, kw_only=True)
class Region:
    """Rectangle of one level of a pyramid: pixels of shape (height_px, width_px, 3).

    ``downsample`` is in level-0 px per px of the level, a power of two; all other fields are in px
    of the level.
    """

    downsample: int
    left_px: int
    top_px: int
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class DeepZoom:
    """Pyramid over an image: each level has half the resolution of the next, the first is 1 px.

    Its shape is (height_px0, width_px0) at full resolution. Levels are numbered as in Microsoft's
    Deep Zoom; tiles do not overlap.
    """

    width_px0: int
    height_px0: int

    @property
    def last_level(self) -> int:
        """Number of the level of full resolution, shape (height, width) in px."""
        return math.ceil(math.log2(max(self.width_px0, self.height_px0)))

    def region(self, level: int, column: int, row: int) -> Region | None:
        """Return the region of a tile, shape (256, 256) px, less at edges; None without a tile.

        Examples
        --------
        >>> zoom = DeepZoom(width_px0=1000, height_px0=300)
        >>> zoom.last_level, zoom.region(9, 1, 0)
        (10, Region(downsample=2, left_px=256, top_px=0, width_px=244, height_px=150))
        >>> zoom.region(9, 2, 0) is None
        True
        """
        if not 0 <= level <= self.last_level:
            return None
        downsample = 1 << (self.last_level - level)
        left, top = column * ZOOM_TILE_PX, row * ZOOM_TILE_PX
        width = math.ceil(self.width_px0 / downsample)
        height = math.ceil(self.height_px0 / downsample)
        if not (0 <= left < width and 0 <= top < height):
            return None
        return Region(
            downsample=downsample,
            left_px=left,
            top_px=top,
            width_px=min(ZOOM_TILE_PX, width - left),
            height_px=min(ZOOM_TILE_PX, height - top),
        )


class DeepZoomReader:
    """Regions of an open slide, each px the mean of the level-0 square that it covers.

    Fine regions come from the slide's coarsest level that is fine enough. Where a px would average
    more than 4 × 4 px of it, regions come from an overview, shape (height, width, 3), that is read
    once, on first use, so that a one-level slide of gigapixels is not decoded again for each. Areas
    of the overview that a reader knows to be empty may have the colour of the glass. ``zoom`` is
    the pyramid over the slide, which the caller closes.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._lock = Lock()
        self._overviews: dict[int, RgbArray] = {}
        size = slide.levels[0]
        self.zoom = DeepZoom(width_px0=size.width_px, height_px0=size.height_px)
        coarsest = max(level.downsample for level in slide.levels)
        self._overview_downsample = 2 ** math.ceil(math.log2(2 * _MAX_AVERAGED * coarsest) - 0.01)
        while size.width_px * size.height_px / self._overview_downsample**2 > _MAX_OVERVIEW_PX:
            self._overview_downsample *= 2

    def read(self, region: Region) -> RgbArray:
        """Read the pixels of a region, shape (height_px, width_px, 3), uint8.

        Raises SlideError if it cannot be decoded.
        """
        level = nearest_level(self._slide.levels, region.downsample)
        averaged = region.downsample / self._slide.levels[level].downsample
        if averaged <= _MAX_AVERAGED or region.downsample < self._overview_downsample:
            return self._read_level(region, level)
        with self._lock:
            if not self._overviews:
                self._overviews = self._read_overviews()
        overview = self._overviews[region.downsample]
        rows = slice(region.top_px, region.top_px + region.height_px)
        return overview[rows, region.left_px : region.left_px + region.width_px]

    def _read_overviews(self) -> dict[int, RgbArray]:
        """Overviews by level-0 px per px, each half the size of the one before, down to 1 px."""
        downsample = self._overview_downsample
        overviews = {downsample: self._slide.overview(downsample=downsample)}
        while downsample < 1 << self.zoom.last_level:
            rows_px0 = np.diff(cell_edges(self.zoom.height_px0, downsample))
            columns_px0 = np.diff(cell_edges(self.zoom.width_px0, downsample))
            overviews[2 * downsample] = _halve(overviews[downsample], rows_px0, columns_px0)
            downsample *= 2
        return overviews

    def _read_level(self, region: Region, level: int) -> RgbArray:
        """Pixels of a region from one level, which is taken to cover the same area as level 0."""
        whole, size = self._slide.levels[0], self._slide.levels[level]
        scale_x = region.downsample * size.width_px / whole.width_px
        scale_y = region.downsample * size.height_px / whole.height_px
        left, right = (scale_x * x for x in (region.left_px, region.left_px + region.width_px))
        top, bottom = (scale_y * y for y in (region.top_px, region.top_px + region.height_px))
        x_px, y_px = math.floor(left + 1e-6), math.floor(top + 1e-6)
        pixels = self._slide.read(
            level=level, x_px=x_px, y_px=y_px,
            width_px=min(math.ceil(right - 1e-6), size.width_px) - x_px,
            height_px=min(math.ceil(bottom - 1e-6), size.height_px) - y_px,
        )  # fmt: skip
        if scale_x == scale_y == (factor := round(scale_x)):
            # Pillow computes the same means of whole squares faster than `resize_area`.
            return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))
        return resize_area(
            pixels, rows=(top - y_px, bottom - y_px), columns=(left - x_px, right - x_px),
            height_px=region.height_px, width_px=region.width_px,
        )  # fmt: skip


def _halve(
    image: RgbArray,
    rows_px0: npt.NDArray[np.float64],
    columns_px0: npt.NDArray[np.float64],
) -> RgbArray:
    """An image of half the resolution; rows and columns are weighted by their level-0 size."""
    small = np.empty((-(-len(rows_px0) // 2), -(-len(columns_px0) // 2), 3), np.uint8)
    for top in range(0, len(rows_px0), _BAND_PX):  # so that only a band becomes floats at a time
        band = _mean_of_pairs(image[top : top + _BAND_PX], rows_px0[top : top + _BAND_PX])
        means = _mean_of_pairs(band.swapaxes(0, 1), columns_px0).swapaxes(0, 1)
        small[top // 2 : top // 2 + len(means)] = np.rint(means)
    return small


def _mean_of_pairs(
    lines: npt.NDArray[Any], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Weighted means of the first two lines, the next two, and so on; an odd last one by itself."""
    wide = weights.astype(np.float32)[:, None, None]
    means: npt.NDArray[np.float32] = (lines * wide)[::2]
    means[: len(lines) // 2] += lines[1::2] * wide[1::2]
    sums = wide[::2].copy()
    sums[: len(lines) // 2] += wide[1::2]
    return means / sums


def colorize_region(
    layout: TileLayout, values: npt.NDArray[np.float64], region: Region, *, scale: ColorScale
) -> npt.NDArray[np.uint8]:
    """Return the tiles of a slide in the colours of their values, within a region of its pyramid.

    ``values`` has shape (tiles,), float64; the result is RGBA of shape (height_px, width_px, 4),
    uint8, with transparent pixels outside the tiles.
    """
    region_px = (region.left_px, region.top_px, region.width_px, region.height_px)
    raster = rasterize(layout, values, downsample=region.downsample, region_px=region_px)
    return colormap_rgba(raster, scale)
