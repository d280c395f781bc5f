"""Overlays of the viewer: colours or outlines of tiles over a slide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion

from features.visualization.deepzoom import Region, colorize_region
from features.visualization.heatmap import ColorScale, TileLayout, apply_colormap, rasterize
from mil.arrays import Bools, Floats

__all__ = ["OVERLAYS", "Overlay", "TileScores", "draw_legend", "draw_overlay"]

_OUTLINE_PX = 4
_LEGEND_PX = 256
_MOST_ATTENDED_PERCENTILE = 90
_PERCENTILE = ColorScale(palette="viridis", low=0.0, high=100.0, words="percentile")
_DOUBLINGS = ColorScale(palette="viridis", low=0.0, high=3.0, words="doublings of an equal share")


@dataclass(frozen=True, kw_only=True, eq=False)
class TileScores:
    """What overlays show of the tiles of a slide.

    Attributes
    ----------
    shares
        Attention as a multiple of the patient's mean, shape (tiles,).
    percentile
        Rank of the attention among all tiles of the patient, shape (tiles,), 0 to 100.
    is_unlike
        Whether a tile is unlike the training tiles, bool, shape (tiles,); None where the run holds
        no training tiles to compare with.
    """

    shares: Floats
    percentile: Floats
    is_unlike: Bools | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlay:
    """One way to show the tiles of a slide.

    Attributes
    ----------
    name, low_words, high_words
        Entry in the page's menu, and the words beside the colour bar; an outline has only the
        latter.
    values
        Value of each tile, shape (tiles,), float64; NaN for tiles that stay clear.
    scale
        Colours of the values; None for an outline around the tiles that have a value.
    outline_rgb
        Colour of the outline.
    """

    name: str
    low_words: str
    high_words: str
    values: Callable[[TileScores], Floats]
    scale: ColorScale | None = None
    outline_rgb: tuple[int, int, int] = (213, 94, 0)


def _above_equal_share(scores: TileScores) -> Floats:
    values = np.full(len(scores.shares), np.nan)
    np.log2(scores.shares, out=values, where=scores.shares > 1)
    return values


def _where(chosen: Bools) -> Floats:
    return np.where(chosen, 1.0, np.nan)


OVERLAYS = (
    Overlay(
        name="attention above an equal share", low_words="1 ×", high_words="8 × an equal share",
        values=_above_equal_share, scale=_DOUBLINGS,
    ),
    Overlay(
        name="outline of the most attended tenth", low_words="",
        high_words="tenth of the patient's tiles with the highest attention",
        values=lambda scores: _where(scores.percentile >= _MOST_ATTENDED_PERCENTILE),
    ),
    Overlay(
        name="attention of every tile", low_words="least",
        high_words="most attended: percentile among the patient's tiles",
        values=lambda scores: scores.percentile, scale=_PERCENTILE,
    ),
    Overlay(
        name="outline of tiles unlike the training", low_words="",
        high_words="tiles farther from the training tiles than 99 % of those are",
        values=lambda scores: _where(
            np.zeros(len(scores.shares), np.bool_)
            if scores.is_unlike is None
            else scores.is_unlike
        ),
        outline_rgb=(0, 90, 160),
    ),
)  # fmt: skip
"""Overlays in the order of the menu; addresses name them by index."""


def draw_overlay(
    overlay: Overlay, layout: TileLayout, scores: TileScores, region: Region
) -> npt.NDArray[np.uint8]:
    """Return an overlay within a region of the pyramid, shape (height_px, width_px, 4), uint8.

    Pixels outside the tiles that have a value are transparent.
    """
    values = overlay.values(scores)
    if overlay.scale is not None:
        return colorize_region(layout, values, region, scale=overlay.scale)
    margin = _OUTLINE_PX  # so that an outline crosses the borders between regions
    corner = region.left_px - margin, region.top_px - margin
    size = region.width_px + 2 * margin, region.height_px + 2 * margin
    raster = rasterize(
        layout, np.nan_to_num(values), downsample=region.downsample, region_px=(*corner, *size)
    )
    inside = np.nan_to_num(raster) > 0
    edge = inside & ~binary_erosion(inside, iterations=_OUTLINE_PX)
    rgba = np.zeros((region.height_px, region.width_px, 4), np.uint8)
    rgba[edge[margin:-margin, margin:-margin]] = (*overlay.outline_rgb, 255)
    return rgba


def draw_legend(overlay: Overlay) -> Image.Image:
    """Return the colours of an overlay from low to high, 256 by 1 px."""
    if overlay.scale is None:
        return Image.new("RGB", (_LEGEND_PX, 1), overlay.outline_rgb)
    row = np.linspace(overlay.scale.low, overlay.scale.high, _LEGEND_PX)
    return Image.fromarray(apply_colormap(row[None], overlay.scale))
