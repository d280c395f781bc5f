"""Pictures that the viewer asks for, encoded: tiles of slides, of colours, and the legend."""

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
_GROUND_RGB = (240, 240, 240)
_DAMAGED_RGB = (120, 120, 120)
_JPEG_QUALITY = 85


def render_region(slide: ViewedSlide, window: Region, shelf: SlideCache) -> bytes:
    """A window of a slide as JPEG: plain ground without its file, crossed where it is damaged."""
    if slide.path is None:
        ground = Image.new("RGB", (window.width_px, window.height_px), _GROUND_RGB)
        return _encode(ground, "JPEG")
    try:
        with shelf.lend(slide.path) as lent:
            return _encode(Image.fromarray(lent.zoom.read(window)), "JPEG")
    except SlideError:
        return _encode(_crossed(window.width_px, window.height_px), "JPEG")


def draw_colours(slide: ViewedSlide, window: Region) -> bytes:
    """The percentiles of a slide's tiles within a window, as PNG; transparent off the tiles.

    Raises
    ------
    KeyError
        If nothing is known of its tiles.
    """
    if slide.shown is None or slide.places is None:
        raise KeyError(slide.slide_id)
    rgba = colorize_region(slide.places, slide.shown.percentile, window, scale=_SCALE)
    return _encode(Image.fromarray(rgba), "PNG")


def draw_tile(slide: ViewedSlide, index: int, shelf: SlideCache) -> bytes:
    """One tile as the backbone saw it, as PNG; crossed where it is damaged.

    Raises
    ------
    KeyError
        If there is no such tile, or no picture of the slide.
    """
    if slide.path is None or slide.shown is None or slide.places is None:
        raise KeyError(slide.slide_id)
    places, meta = slide.places, slide.shown.meta
    if not 0 <= index < len(places.coords_px0):
        raise KeyError(index)
    grid = grid_from_layout(places, meta)
    try:
        with shelf.lend(slide.path) as lent:
            return _encode(Image.fromarray(read_tile(lent.slide, grid, index)), "PNG")
    except SlideError:
        return _encode(_crossed(grid.tile_px, grid.tile_px), "PNG")


def draw_legend() -> bytes:
    """The colours from the 0th to the 100th percentile, as PNG."""
    row: npt.NDArray[np.float64] = np.linspace(_SCALE.low, _SCALE.high, 256)
    return _encode(Image.fromarray(apply_colormap(row[None], _SCALE)), "PNG")


def _crossed(width_px: int, height_px: int) -> Image.Image:
    """What stands for pixels that cannot be decoded: a grey nobody takes for glass, and a cross."""
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
