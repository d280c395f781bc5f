"""Encoded images for the viewer: regions of slides, heatmaps, tiles, and the legend."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cli.viewer.slide_cache import SlideCache
from cli.viewer.slides import ViewedSlide
from features.errors import SlideError
from features.tiling.grid import read_tile
from features.visualization.deepzoom import Region, colorize_region
from features.visualization.heatmap import ColorScale, apply_colormap, grid_from_layout

__all__ = ["draw_colours", "draw_legend", "draw_tile", "render_region"]

_SCALE = ColorScale(palette="viridis", low=0.0, high=100.0, words="percentile in the patient")
_BACKGROUND_RGB = (240, 240, 240)
_DAMAGED_RGB = (120, 120, 120)
_JPEG_QUALITY = 85


def render_region(slide: ViewedSlide, region: Region, cache: SlideCache) -> bytes:
    """Return a region of a slide as JPEG: plain without slide file, a cross if damaged."""
    if slide.path is None:
        plain = Image.new("RGB", (region.width_px, region.height_px), _BACKGROUND_RGB)
        return _encode(plain, "JPEG")
    try:
        with cache.borrow(slide.path) as opened:
            return _encode(Image.fromarray(opened.zoom.read(region)), "JPEG")
    except SlideError:
        return _encode(_draw_cross(region.width_px, region.height_px), "JPEG")


def draw_colours(slide: ViewedSlide, region: Region) -> bytes:
    """Return the attention percentiles in a region, as PNG that is transparent outside tiles.

    Raises
    ------
    KeyError
        If the slide has no tiles or no coordinates.
    """
    if slide.attention is None or slide.layout is None:
        raise KeyError(slide.slide_id)
    rgba = colorize_region(slide.layout, slide.attention.percentile, region, scale=_SCALE)
    return _encode(Image.fromarray(rgba), "PNG")


def draw_tile(slide: ViewedSlide, index: int, cache: SlideCache) -> bytes:
    """Return one tile as it was embedded, as PNG; a cross if damaged.

    Raises
    ------
    KeyError
        If there is no such tile, or no slide file.
    """
    if slide.path is None or slide.attention is None or slide.layout is None:
        raise KeyError(slide.slide_id)
    if not 0 <= index < len(slide.layout.coords_px0):
        raise KeyError(index)
    grid = grid_from_layout(slide.layout, slide.attention.meta)
    try:
        with cache.borrow(slide.path) as opened:
            return _encode(Image.fromarray(read_tile(opened.slide, grid, index)), "PNG")
    except SlideError:
        return _encode(_draw_cross(grid.tile_px, grid.tile_px), "PNG")


def draw_legend() -> bytes:
    """Return the colours from the 0th to the 100th percentile, as PNG."""
    row: npt.NDArray[np.float64] = np.linspace(_SCALE.low, _SCALE.high, 256)
    return _encode(Image.fromarray(apply_colormap(row[None], _SCALE)), "PNG")


def _draw_cross(width_px: int, height_px: int) -> Image.Image:
    """Return the replacement of pixels that cannot be decoded: a white cross on dark grey."""
    image = Image.new("RGB", (width_px, height_px), _DAMAGED_RGB)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, width_px, height_px), fill="white", width=2)
    draw.line((0, height_px, width_px, 0), fill="white", width=2)
    return image


def _encode(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "JPEG":
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()
