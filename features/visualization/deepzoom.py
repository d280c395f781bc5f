"""Slides cut for zooming viewers: pyramids of small square tiles, made when they are asked for."""

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
from features.visualization.heatmap import ColorScale, TileLayout, colours_on_tiles, rasterize

__all__ = ["ZOOM_TILE_PX", "DeepZoom", "DeepZoomReader", "Region", "colour_window"]

ZOOM_TILE_PX = 256
"""Side of a tile of the pyramid, px."""

_MOST_AVERAGED = 4
_BAND_PX = 512
_MOST_OVERVIEW_PX = 80 << 20  # 240 MB; several times that while it is gathered


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of one level of a pyramid."""

    downsample: int
    """Level-0 px per px of the level: a power of two."""
    left_px: int
    """First column, px of the level."""
    top_px: int
    """First row, px of the level."""
    width_px: int
    """Width, px of the level."""
    height_px: int
    """Height, px of the level."""


@dataclass(frozen=True, kw_only=True)
class DeepZoom:
    """The pyramid over a picture: each level half as fine as the next, the first of one px.

    Levels are numbered as in Microsoft's Deep Zoom and as viewers ask for them; tiles do not
    overlap.
    """

    width_px0: int
    """Width of the picture, level-0 px."""
    height_px0: int
    """Height of the picture, level-0 px."""

    @property
    def last_level(self) -> int:
        """The level that is as fine as the picture itself."""
        return math.ceil(math.log2(max(self.width_px0, self.height_px0)))

    def window(self, level: int, column: int, row: int) -> Region | None:
        """What a tile shows; None where there is no such tile.

        Examples
        --------
        >>> zoom = DeepZoom(width_px0=1000, height_px0=300)
        >>> zoom.last_level, zoom.window(9, 1, 0)
        (10, Window(downsample=2, left_px=256, top_px=0, width_px=244, height_px=150))
        >>> zoom.window(9, 2, 0) is None
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
    """Windows of an open slide, each px the mean of the level-0 square that it covers.

    Fine windows come from the slide's coarsest level that is fine enough. Where a px would be the
    mean of more than 4 × 4 of its px, windows come from an overview that is read once, when the
    first of them is asked for: a one-level slide of gigapixels is not decoded anew for each. There,
    what a reader knows to be empty may have the glass's colour.

    Parameters
    ----------
    slide
        Open slide; stays the caller's to close.

    Attributes
    ----------
    zoom
        The pyramid over the slide.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._lock = Lock()
        self._halves: dict[int, RgbArray] = {}
        size = slide.levels[0]
        self.zoom = DeepZoom(width_px0=size.width_px, height_px0=size.height_px)
        coarsest = max(level.downsample for level in slide.levels)
        self._overview_downsample = 2 ** math.ceil(math.log2(2 * _MOST_AVERAGED * coarsest) - 0.01)
        while size.width_px * size.height_px / self._overview_downsample**2 > _MOST_OVERVIEW_PX:
            self._overview_downsample *= 2

    def read(self, window: Region) -> RgbArray:
        """Pixels of a window, shape (height_px, width_px, 3).

        Raises
        ------
        SlideError
            If it cannot be decoded.
        """
        level = nearest_level(self._slide.levels, window.downsample)
        averaged = window.downsample / self._slide.levels[level].downsample
        if averaged > _MOST_AVERAGED and window.downsample >= self._overview_downsample:
            return self._from_overview(window)
        return self._from_level(window, level)

    def _from_overview(self, window: Region) -> RgbArray:
        with self._lock:
            if not self._halves:
                self._halves = self._read_overview()
        picture = self._halves[window.downsample]
        rows = slice(window.top_px, window.top_px + window.height_px)
        return picture[rows, window.left_px : window.left_px + window.width_px]

    def _read_overview(self) -> dict[int, RgbArray]:
        """The overview, its half, and so on down to one px, by level-0 px per px."""
        downsample = self._overview_downsample
        halves = {downsample: self._slide.overview(downsample=downsample)}
        while downsample < 1 << self.zoom.last_level:
            rows_px0 = np.diff(cell_edges(self.zoom.height_px0, downsample))
            columns_px0 = np.diff(cell_edges(self.zoom.width_px0, downsample))
            halves[2 * downsample] = _halved(halves[downsample], rows_px0, columns_px0)
            downsample *= 2
        return halves

    def _from_level(self, window: Region, level: int) -> RgbArray:
        """What a window covers of a level, which is taken to show exactly what level 0 does."""
        whole, size = self._slide.levels[0], self._slide.levels[level]
        scale_x = window.downsample * size.width_px / whole.width_px
        scale_y = window.downsample * size.height_px / whole.height_px
        left, right = (scale_x * x for x in (window.left_px, window.left_px + window.width_px))
        top, bottom = (scale_y * y for y in (window.top_px, window.top_px + window.height_px))
        x_px, y_px = math.floor(left + 1e-6), math.floor(top + 1e-6)
        pixels = self._slide.read(
            level=level, x_px=x_px, y_px=y_px,
            width_px=min(math.ceil(right - 1e-6), size.width_px) - x_px,
            height_px=min(math.ceil(bottom - 1e-6), size.height_px) - y_px,
        )  # fmt: skip
        if scale_x == scale_y == (factor := round(scale_x)):
            return _reduced(pixels, factor)
        return resize_area(
            pixels, rows=(top - y_px, bottom - y_px), columns=(left - x_px, right - x_px),
            height_px=window.height_px, width_px=window.width_px,
        )  # fmt: skip


def _reduced(pixels: RgbArray, factor: int) -> RgbArray:
    """Means of squares, and of what is left of them at the end: as `resize_area`, but quicker."""
    return pixels if factor == 1 else np.asarray(Image.fromarray(pixels).reduce(factor))


def _halved(
    picture: RgbArray,
    rows_px0: npt.NDArray[np.float64],
    columns_px0: npt.NDArray[np.float64],
) -> RgbArray:
    """A picture half as fine; rows and columns count by what they cover of the slide."""
    small = np.empty((-(-len(rows_px0) // 2), -(-len(columns_px0) // 2), 3), np.uint8)
    for top in range(0, len(rows_px0), _BAND_PX):  # so that only a band becomes floats at a time
        band = _mean_of_pairs(picture[top : top + _BAND_PX], rows_px0[top : top + _BAND_PX])
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


def colour_window(
    places: TileLayout, values: npt.NDArray[np.float64], window: Region, *, scale: ColorScale
) -> npt.NDArray[np.uint8]:
    """Tiles of a slide filled with the colour of their number, within a window.

    Parameters
    ----------
    places
        Where the tiles lie.
    values
        Shape (tiles,).
    window
        Of the pyramid over the slide.
    scale
        How numbers become colours.

    Returns
    -------
    numpy.ndarray
        RGBA, shape (height_px, width_px, 4), uint8; transparent off the tiles.
    """
    numbers = rasterize(
        places,
        values,
        downsample=window.downsample,
        window_px=(window.left_px, window.top_px, window.width_px, window.height_px),
    )
    return colours_on_tiles(numbers, scale)
