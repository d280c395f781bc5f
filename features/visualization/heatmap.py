"""Numbers of tiles as colours: over a picture of the slide, or on its bare grid."""

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
from features.visualization.caption import draw_caption, scale_bar

__all__ = [
    "ColorScale",
    "TileLayout",
    "colours",
    "colours_on_tiles",
    "draw_heatmap",
    "draw_plain",
    "grid_from_layout",
    "picture_downsample",
    "rasterize",
    "tile_layout",
]

Floats = npt.NDArray[np.floating]

_LONG_SIDE_PX = 1200
_LEAST_WIDTH_PX = 560  # so that the legend has room below a narrow slide
_OPACITY = 0.7
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
_BAR_PX = (220, 18)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileLayout:
    """Where the tiles of a slide lie."""

    coords_px0: npt.NDArray[np.int64]
    """Upper left corners, x then y, shape (tiles, 2), level-0 px."""
    span_px0: tuple[float, float]
    """Width and height of a tile, level-0 px."""
    size_px0: tuple[int, int]
    """Width and height of the slide, level-0 px."""
    mpp_xy: tuple[float, float]
    """µm per level-0 px along x and y."""
    mpp_is_assumed: bool
    """Whether nobody knows the resolution."""


@dataclass(frozen=True, kw_only=True)
class ColorScale:
    """How numbers become colours.

    Both palettes grow lighter all the way, so that they read in grey, and are told apart by people
    with any common colour vision: viridis (van der Walt and Smith, 2015) for what has an order;
    cividis (Nuñez et al., 2018), whose middle is grey, for what has two sides.
    """

    palette: Literal["viridis", "cividis"]
    """Name of the palette, in matplotlib's words."""
    low: float
    """The number that is darkest; less is as dark."""
    high: float
    """The number that is lightest; more is as light."""
    words: str
    """What the colours mean, for the legend."""


def tile_layout(meta: BagMeta, coords_px0: npt.NDArray[np.int64]) -> TileLayout | None:
    """Places of tiles as a bag tells them; None where it does not know them.

    Bags that were imported may know neither the slide's size nor how far a tile reaches: tiles then
    reach to their next neighbour, and the slide to its last tile.

    Parameters
    ----------
    meta
        What the bag says about itself.
    coords_px0
        Its coordinates, shape (tiles, 2), level-0 px.
    """
    span = (
        meta.span_x_px0 or _least_distance(coords_px0[:, 0]),
        meta.span_y_px0 or _least_distance(coords_px0[:, 1]),
    )
    if not (coords_px0 >= 0).any() or not all(span):
        return None
    width, height = np.ceil(coords_px0.max(axis=0) + span).astype(int).tolist()
    return TileLayout(
        coords_px0=coords_px0,
        span_px0=span,
        size_px0=(meta.width_px0 or width, meta.height_px0 or height),
        mpp_xy=(meta.mpp_x, meta.mpp_y),
        mpp_is_assumed=meta.mpp_source == "assumed",
    )


def picture_downsample(places: TileLayout) -> int:
    """Level-0 px per px of a picture whose long side is at most 1,200 px."""
    return max(1, math.ceil(max(places.size_px0) / _LONG_SIDE_PX))


def rasterize(
    places: TileLayout,
    values: npt.NDArray[np.float64],
    *,
    downsample: int,
    window_px: tuple[int, int, int, int] | None = None,
) -> npt.NDArray[np.float32]:
    """A slide on which every tile is filled with its number; the mean where tiles overlap.

    Parameters
    ----------
    places
        Where the tiles lie.
    values
        Shape (tiles,).
    downsample
        Level-0 px per px of the result.
    window_px
        Left, top, width and height of the part that is wanted, px of the result; None for all.

    Returns
    -------
    numpy.ndarray
        Shape (ceil(height_px0 / downsample), ceil(width_px0 / downsample)), or that of the window;
        NaN off the tiles.
    """
    whole = (0, 0, *(math.ceil(length / downsample) for length in places.size_px0))
    corner_x, corner_y, width, height = window_px or whole
    sums = np.zeros((height, width), np.float32)
    counts = np.zeros((height, width), np.min_scalar_type(len(values)))  # all may meet in one px
    starts = np.maximum(np.rint(places.coords_px0 / downsample).astype(np.int64), 0)
    ends = np.rint(_ends_px0(places) / downsample).astype(np.int64)
    ends = np.maximum(ends, starts + 1) - (corner_x, corner_y)
    starts -= (corner_x, corner_y)
    seen = ((starts < (width, height)) & (ends > 0)).all(axis=1)
    starts = np.maximum(starts, 0)
    for (left, top), (right, bottom), value in zip(
        starts[seen].tolist(), ends[seen].tolist(), values[seen].tolist(), strict=True
    ):
        sums[top:bottom, left:right] += value
        counts[top:bottom, left:right] += 1
    sums[counts == 0] = np.nan
    sums /= np.maximum(counts, 1)
    return sums


def colours(values: Floats, scale: ColorScale) -> RgbArray:
    """Colour of each number, shape (*values.shape, 3), uint8; NaN is as the lowest number."""
    palette = mpl.colormaps[scale.palette](np.arange(256), bytes=True)[:, :3]
    part = (np.nan_to_num(values, nan=scale.low) - scale.low) / ((scale.high - scale.low) or 1.0)
    places = np.rint(255 * np.clip(part, 0, 1)).astype(np.uint8)
    return np.asarray(palette[places], np.uint8)


def colours_on_tiles(numbers: npt.NDArray[np.float32], scale: ColorScale) -> npt.NDArray[np.uint8]:
    """Colours of a raster, RGBA, shape (height, width, 4), uint8; transparent where it is NaN."""
    on_tiles = np.isfinite(numbers)
    rgba = np.dstack([colours(numbers, scale), np.where(on_tiles, 255, 0).astype(np.uint8)])
    rgba[~on_tiles] = 0
    return rgba


def draw_heatmap(
    places: TileLayout,
    values: npt.NDArray[np.float64],
    *,
    scale: ColorScale,
    overview: RgbArray | None,
    title: str,
    facts: Sequence[str],
) -> Image.Image:
    """A picture of a slide with its tiles coloured by a number, and scale bar and legend below.

    Under the colours the slide is shown in grey, so that a colour has one meaning only.

    Parameters
    ----------
    places
        Where the tiles lie.
    values
        Shape (tiles,).
    scale
        How numbers become colours.
    overview
        The slide, made smaller by :func:`picture_downsample`; None leaves it white.
    title, facts
        For the caption.
    """
    downsample = picture_downsample(places)
    numbers = rasterize(places, values, downsample=downsample)
    on_tiles = np.isfinite(numbers)
    ground = np.full((*numbers.shape, 3), 255, np.uint8) if overview is None else overview.copy()
    opacity = 1.0 if overview is None else _OPACITY
    grey = (ground[on_tiles] @ np.array(_GREY_WEIGHTS))[:, None]
    ground[on_tiles] = np.rint(
        (1 - opacity) * grey + opacity * colours(numbers[on_tiles], scale)
    ).astype(np.uint8)
    return _with_caption(
        Image.fromarray(ground), places, downsample, title=title, facts=facts,
        legend=[(_bar(scale), scale.words)],
    )  # fmt: skip


def draw_plain(
    places: TileLayout, overview: RgbArray, *, title: str, facts: Sequence[str]
) -> Image.Image:
    """The same picture of a slide without any colour on it."""
    return _with_caption(
        Image.fromarray(overview), places, picture_downsample(places), title=title, facts=facts,
        legend=[],
    )  # fmt: skip


def _with_caption(
    slide: Image.Image,
    places: TileLayout,
    downsample: int,
    *,
    title: str,
    facts: Sequence[str],
    legend: Sequence[tuple[Image.Image | None, str]],
) -> Image.Image:
    bar = scale_bar(
        places.mpp_xy[0] * downsample, most_px=slide.width // 4, assumed=places.mpp_is_assumed
    )
    caption = draw_caption(
        title, facts=facts, legend=[bar, *legend], width_px=max(slide.width, _LEAST_WIDTH_PX)
    )
    picture = Image.new("RGB", (caption.width, slide.height + caption.height), "white")
    picture.paste(slide, (0, 0))
    picture.paste(caption, (0, slide.height))
    return picture


def _bar(scale: ColorScale) -> Image.Image:
    """The palette from low to high, framed."""
    width, height = _BAR_PX
    row = colours(np.linspace(scale.low, scale.high, width), scale)
    bar = np.repeat(row[None], height, axis=0)
    bar[[0, -1]] = bar[:, [0, -1]] = 0
    return Image.fromarray(bar)


def _ends_px0(places: TileLayout) -> npt.NDArray[np.float64]:
    """Lower right corners, shape (tiles, 2): where the neighbour begins, if there is one.

    Corners are whole px and spans often are not, so that neighbours seem up to a px apart.
    """
    ends: npt.NDArray[np.float64] = places.coords_px0.astype(np.float64) + places.span_px0
    for axis in range(2):
        starts = np.unique(places.coords_px0[:, axis])
        index = np.searchsorted(starts, ends[:, axis] - 1)
        nearest = starts[np.minimum(index, len(starts) - 1)]
        touches = np.abs(nearest - ends[:, axis]) <= 1
        ends[touches, axis] = nearest[touches]
    return ends


def _least_distance(places: npt.NDArray[np.int64]) -> float:
    """Smallest distance between different coordinates along an axis; 0 where all are the same."""
    distances = np.diff(np.unique(places))
    return float(distances.min()) if len(distances) else 0.0


_TILE_PX = 224
"""Of bags from elsewhere that do not say it."""


def grid_from_layout(places: TileLayout, meta: BagMeta) -> TileGrid:
    """The grid whose tiles a bag holds; their shares of tissue are not kept and stand as 1.

    Parameters
    ----------
    places
        Where the tiles lie.
    meta
        What the bag says of their making.
    """
    return TileGrid(
        coords_px0=places.coords_px0,
        tissue_fraction=np.ones(len(places.coords_px0), np.float32),
        span_x_px0=places.span_px0[0],
        span_y_px0=places.span_px0[1],
        tile_px=meta.fingerprint.tile_px or _TILE_PX,
        min_tissue_used=meta.min_tissue_used,
    )
