"""Heatmaps: one value per tile as colours over an image of the slide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

from features.bags.bag import BagMeta
from features.slides.base import RgbArray
from features.tiling.grid import TileGrid
from features.visualization.caption import add_caption, scale_bar

__all__ = [
    "ColorScale",
    "TileLayout",
    "apply_colormap",
    "colormap_rgba",
    "draw_heatmap",
    "draw_slide",
    "grid_from_layout",
    "heatmap_downsample",
    "rasterize",
    "tile_layout",
]

Floats = npt.NDArray[np.floating]

_LONG_SIDE_PX = 1200
_MIN_WIDTH_PX = 560  # so that the legend has room below a narrow slide
_OPACITY = 0.7
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
_BAR_PX = (220, 18)
_DEFAULT_TILE_PX = 224
"""For imported bags that do not state the side of a tile."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TileLayout:
    """Coordinates and size of the tiles of a slide, in level-0 px.

    ``coords_px0`` are upper left corners, x then y, of shape (tiles, 2); sizes are width and
    height. ``mpp_xy`` are µm per level-0 px along x and y, assumed where neither the file nor the
    user gives them.
    """

    coords_px0: npt.NDArray[np.int64]
    tile_size_px0: tuple[float, float]
    slide_size_px0: tuple[int, int]
    mpp_xy: tuple[float, float]
    mpp_is_assumed: bool


@dataclass(frozen=True, kw_only=True)
class ColorScale:
    """Colour map of a heatmap: values of shape (...) become colours of shape (..., 3).

    The lightness of both palettes rises monotonically, so they also read in grey and with any
    common colour vision: viridis (van der Walt and Smith, 2015) for ordered values; cividis
    (Nuñez et al., 2018), whose middle is grey, for values with two sides. ``low`` has the darkest
    colour, ``high`` the lightest; values beyond are clipped. ``words`` is the text of the legend.
    """

    palette: Literal["viridis", "cividis"]
    low: float
    high: float
    words: str


def tile_layout(meta: BagMeta, coords_px0: npt.NDArray[np.int64]) -> TileLayout | None:
    """Return the layout of a bag's tiles, shape (tiles, 2), level-0 px; None without coordinates.

    Imported bags may lack the size of slide and tiles: tiles then extend to their next neighbour,
    and the slide to its last tile.
    """
    tile_size = (
        meta.span_x_px0 or _min_distance(coords_px0[:, 0]),
        meta.span_y_px0 or _min_distance(coords_px0[:, 1]),
    )
    if not (coords_px0 >= 0).any() or not all(tile_size):
        return None
    width, height = np.ceil(coords_px0.max(axis=0) + tile_size).astype(int).tolist()
    return TileLayout(
        coords_px0=coords_px0,
        tile_size_px0=tile_size,
        slide_size_px0=(meta.width_px0 or width, meta.height_px0 or height),
        mpp_xy=(meta.mpp_x, meta.mpp_y),
        mpp_is_assumed=meta.mpp_source == "assumed",
    )


def heatmap_downsample(layout: TileLayout) -> int:
    """Return the level-0 px per px of a heatmap, shape (height, width), at most 1,200 px."""
    return max(1, math.ceil(max(layout.slide_size_px0) / _LONG_SIDE_PX))


def rasterize(
    layout: TileLayout,
    values: npt.NDArray[np.float64],
    *,
    downsample: int,
    region_px: tuple[int, int, int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """Fill every tile of a slide with its value; the mean where tiles overlap.

    ``values`` has shape (tiles,), float64; ``downsample`` is in level-0 px per px of the result;
    ``region_px`` is left, top, width and height of the part to fill, px of the result, None for
    all. The result has shape (ceil(height_px0 / downsample), ceil(width_px0 / downsample)), or that
    of the region, float32; NaN outside the tiles.
    """
    whole = (0, 0, *(math.ceil(length / downsample) for length in layout.slide_size_px0))
    corner_x, corner_y, width, height = region_px or whole
    sums = np.zeros((height, width), np.float32)
    counts = np.zeros((height, width), np.min_scalar_type(len(values)))  # all may meet in one px
    starts = np.maximum(np.rint(layout.coords_px0 / downsample).astype(np.int64), 0)
    ends = np.rint(_ends_px0(layout) / downsample).astype(np.int64)
    ends = np.maximum(ends, starts + 1) - (corner_x, corner_y)
    starts -= (corner_x, corner_y)
    visible = ((starts < (width, height)) & (ends > 0)).all(axis=1)
    starts = np.maximum(starts, 0)
    for (left, top), (right, bottom), value in zip(
        starts[visible].tolist(), ends[visible].tolist(), values[visible].tolist(), strict=True
    ):
        sums[top:bottom, left:right] += value
        counts[top:bottom, left:right] += 1
    sums[counts == 0] = np.nan
    sums /= np.maximum(counts, 1)
    return sums


def apply_colormap(values: Floats, scale: ColorScale) -> RgbArray:
    """Return the colour of each value, shape (..., 3), uint8; NaN has the lowest one."""
    palette = mpl.colormaps[scale.palette](np.arange(256), bytes=True)[:, :3]
    part = (np.nan_to_num(values, nan=scale.low) - scale.low) / ((scale.high - scale.low) or 1.0)
    indices = np.rint(255 * np.clip(part, 0, 1)).astype(np.uint8)
    return np.asarray(palette[indices], np.uint8)


def colormap_rgba(values: npt.NDArray[np.float32], scale: ColorScale) -> npt.NDArray[np.uint8]:
    """Return colours of a raster, shape (height, width, 4), uint8; NaN pixels are transparent."""
    on_tiles = np.isfinite(values)
    rgba = np.dstack([apply_colormap(values, scale), np.where(on_tiles, 255, 0).astype(np.uint8)])
    rgba[~on_tiles] = 0
    return rgba


def draw_heatmap(
    layout: TileLayout,
    values: npt.NDArray[np.float64],
    *,
    scale: ColorScale,
    overview: RgbArray | None,
    title: str,
    facts: Sequence[str],
) -> Image.Image:
    """Draw a slide with its tiles coloured by value, with scale bar and legend below.

    Below the colours the slide is grey, so that a colour always stands for a value. ``values`` has
    shape (tiles,), float64; ``overview``, shape (height, width, 3), uint8, is the slide downsampled
    to at most 1,200 px by :func:`heatmap_downsample`, None leaves it white.
    """
    downsample = heatmap_downsample(layout)
    raster = rasterize(layout, values, downsample=downsample)
    on_tiles = np.isfinite(raster)
    pixels = np.full((*raster.shape, 3), 255, np.uint8) if overview is None else overview.copy()
    opacity = 1.0 if overview is None else _OPACITY
    grey = (pixels[on_tiles] @ np.array(_GREY_WEIGHTS))[:, None]
    pixels[on_tiles] = np.rint(
        (1 - opacity) * grey + opacity * apply_colormap(raster[on_tiles], scale)
    ).astype(np.uint8)
    return _with_caption(
        Image.fromarray(pixels), layout, downsample, title=title, facts=facts,
        legend=[(_bar(scale), scale.words)],
    )  # fmt: skip


def draw_slide(
    layout: TileLayout, overview: RgbArray, *, title: str, facts: Sequence[str]
) -> Image.Image:
    """Draw the same image without a heatmap, with scale bar and caption only.

    ``overview`` has shape (height, width, 3), uint8, and at most 1,200 px per side.
    """
    return _with_caption(
        Image.fromarray(overview), layout, heatmap_downsample(layout), title=title, facts=facts,
        legend=[],
    )  # fmt: skip


def _with_caption(
    slide: Image.Image,
    layout: TileLayout,
    downsample: int,
    *,
    title: str,
    facts: Sequence[str],
    legend: Sequence[tuple[Image.Image | None, str]],
) -> Image.Image:
    bar = scale_bar(
        layout.mpp_xy[0] * downsample, max_px=slide.width // 4, assumed=layout.mpp_is_assumed
    )
    return add_caption(slide, title, facts=facts, legend=[bar, *legend], min_width_px=_MIN_WIDTH_PX)


def _bar(scale: ColorScale) -> Image.Image:
    """The palette from low to high, framed."""
    width, height = _BAR_PX
    row = apply_colormap(np.linspace(scale.low, scale.high, width), scale)
    bar = np.repeat(row[None], height, axis=0)
    bar[[0, -1]] = bar[:, [0, -1]] = 0
    return Image.fromarray(bar)


def _ends_px0(layout: TileLayout) -> npt.NDArray[np.float64]:
    """Lower right corners, shape (tiles, 2), level-0 px, aligned with adjacent tiles.

    Corners are whole px and sizes often are not, so that adjacent tiles seem up to a px apart.
    """
    ends: npt.NDArray[np.float64] = layout.coords_px0.astype(np.float64) + layout.tile_size_px0
    for axis in range(2):
        starts = np.unique(layout.coords_px0[:, axis])
        index = np.searchsorted(starts, ends[:, axis] - 1)
        nearest = starts[np.minimum(index, len(starts) - 1)]
        touches = np.abs(nearest - ends[:, axis]) <= 1
        ends[touches, axis] = nearest[touches]
    return ends


def _min_distance(coords: npt.NDArray[np.int64]) -> float:
    """Smallest distance between different coordinates along an axis; 0 where all are the same."""
    distances = np.diff(np.unique(coords))
    return float(distances.min()) if len(distances) else 0.0


def grid_from_layout(layout: TileLayout, meta: BagMeta) -> TileGrid:
    """Return the tile grid of a bag, shape (tiles, 2), level-0 px, to read its tiles again.

    Every tissue fraction is set to 1.
    """
    return TileGrid(
        coords_px0=layout.coords_px0,
        tissue_fraction=np.ones(len(layout.coords_px0), np.float32),
        tile_width_px0=layout.tile_size_px0[0],
        tile_height_px0=layout.tile_size_px0[1],
        tile_px=meta.fingerprint.tile_px or _DEFAULT_TILE_PX,
        min_tissue_used=meta.min_tissue_used,
    )
