"""Slides in the viewer: cache of open files, tile layout and pyramid, and encoded images."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from PIL import Image, ImageDraw

from cli.viewer.overlays import Overlay, TileScores, draw_legend, draw_overlay
from features.bags.bag import BagMeta
from features.errors import SlideError
from features.slides.base import Slide
from features.slides.reader import open_slide, scene_of
from features.tiling.grid import read_tile
from features.visualization.deepzoom import DeepZoom, DeepZoomReader, Region
from features.visualization.heatmap import TileLayout, grid_from_layout, tile_layout
from mil.inference.attention import SlideAttention

__all__ = [
    "OpenSlide",
    "SlideCache",
    "ViewedSlide",
    "check_slide_size",
    "draw_tile",
    "encode_legend",
    "encode_overlay",
    "render_region",
    "view_slide",
]

_MAX_OPEN = 2  # each slide caches an overview and decoded tiles of up to 0.75 GiB
_BACKGROUND_RGB = (240, 240, 240)
_DAMAGED_RGB = (120, 120, 120)
_JPEG_QUALITY = 85


@dataclass(kw_only=True, eq=False)
class OpenSlide:
    """An open slide with the reader of its Deep Zoom pyramid, whose regions are 256 px wide."""

    slide: Slide
    zoom: DeepZoomReader
    n_users: int = 0  # threads that are reading from it


class SlideCache:
    """Least recently used cache of up to two open slides, each with 0.75 GiB of pixels at most.

    Safe for threads; a slide that is being read is never closed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[tuple[Path, int], OpenSlide] = OrderedDict()
        self._max_open = _MAX_OPEN

    @contextmanager
    def borrow(self, path: Path, scene: int = 0) -> Iterator[OpenSlide]:
        """Yield an open slide, which stays open as long as the context, or raise ``SlideError``.

        ``scene`` is the number of its scene, 0 for the largest.
        """
        key = path, scene
        with self._lock:
            opened = self._open.get(key)
            if opened is None:
                slide = open_slide(path, scene=scene or None)
                opened = self._open[key] = OpenSlide(slide=slide, zoom=DeepZoomReader(slide))
            self._open.move_to_end(key)
            opened.n_users += 1
            self._shrink()
        try:
            yield opened
        finally:
            with self._lock:
                opened.n_users -= 1
                self._shrink()

    def close(self) -> None:
        """Close all slides; those being read as soon as their contexts end."""
        with self._lock:
            self._max_open = 0
            self._shrink()

    def _shrink(self) -> None:
        idle = [key for key, opened in self._open.items() if not opened.n_users]
        for key in idle[: max(0, len(self._open) - self._max_open)]:
            self._open.pop(key).slide.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewedSlide:
    """A slide with its attention, tile layout, file and pyramid, as far as they are known.

    ``attention`` and ``scores`` are None without bag or tiles, ``layout`` without coordinates,
    ``path`` without a file that matches the bag, and ``zoom`` if neither file nor bag states the
    size in level-0 px. ``scene`` is the number of its scene in the file, 0 for the only or largest
    one. ``notes`` state what is missing, and why.
    """

    slide_id: str
    attention: SlideAttention | None
    scores: TileScores | None
    layout: TileLayout | None
    path: Path | None
    scene: int
    zoom: DeepZoom | None
    notes: tuple[str, ...]


def view_slide(
    slide_id: str,
    attention: SlideAttention | None,
    path: Path | None,
    cache: SlideCache,
    *,
    scores: TileScores | None = None,
    has_bag: bool,
    expects_file: bool,
) -> ViewedSlide:
    """Match a slide's bag, with tile coordinates in level-0 px, and file.

    ``has_bag`` is true even for an empty bag; ``expects_file`` is true if a folder of slides was
    given, so that a missing file is noted.
    """
    notes = []
    scene = 0
    if attention is not None:
        scene = attention.meta.scene
    elif path is not None:
        scene = scene_of(slide_id, path) or 0
    layout = None if attention is None else tile_layout(attention.meta, attention.coords_px0)
    if attention is None:
        notes.append("No overlay: its bag holds no tile." if has_bag else "No overlay: no bag.")
    elif layout is None:
        notes.append("No overlay: its bag has no tile coordinates.")
    if path is None and expects_file:
        notes.append("No picture: no file of that name is in the folder of slides.")
    zoom = None
    if layout is not None:
        zoom = DeepZoom(width_px0=layout.slide_size_px0[0], height_px0=layout.slide_size_px0[1])
    if path is not None:
        try:
            with cache.borrow(path, scene) as opened:
                if attention is not None:
                    check_slide_size(opened.slide, attention.meta)
                zoom = opened.zoom.zoom
        except SlideError as error:
            notes.append(f"No picture: {error.actual}; expected {error.expected}.")
            path = None
    return ViewedSlide(
        slide_id=slide_id,
        attention=attention,
        scores=scores,
        layout=layout,
        path=path,
        scene=scene,
        zoom=zoom,
        notes=tuple(notes),
    )


def render_region(slide: ViewedSlide, region: Region, cache: SlideCache) -> bytes:
    """Return a region of a slide, shape (height, width, 3) in px, as JPEG.

    Without slide file it is plain, and if damaged a cross.
    """
    if slide.path is None:
        plain = Image.new("RGB", (region.width_px, region.height_px), _BACKGROUND_RGB)
        return _encode(plain, "JPEG")
    try:
        with cache.borrow(slide.path, slide.scene) as opened:
            return _encode(Image.fromarray(opened.zoom.read(region)), "JPEG")
    except SlideError:
        return _encode(_draw_cross(region.width_px, region.height_px), "JPEG")


def encode_overlay(slide: ViewedSlide, overlay: Overlay, region: Region) -> bytes:
    """Return an overlay over a region of a slide as PNG of the region's size, px.

    Raises ``KeyError`` without tiles or coordinates.
    """
    if slide.scores is None or slide.layout is None:
        raise KeyError(slide.slide_id)
    rgba = draw_overlay(overlay, slide.layout, slide.scores, region)
    return _encode(Image.fromarray(rgba), "PNG")


def draw_tile(slide: ViewedSlide, index: int, cache: SlideCache) -> bytes:
    """Return one tile as embedded, shape (side, side, 3) in px, as PNG; a cross if damaged.

    Raises ``KeyError`` if there is no such tile, or no slide file.
    """
    if slide.path is None or slide.attention is None or slide.layout is None:
        raise KeyError(slide.slide_id)
    if not 0 <= index < len(slide.layout.coords_px0):
        raise KeyError(index)
    grid = grid_from_layout(slide.layout, slide.attention.meta)
    try:
        with cache.borrow(slide.path, slide.scene) as opened:
            return _encode(Image.fromarray(read_tile(opened.slide, grid, index)), "PNG")
    except SlideError:
        return _encode(_draw_cross(grid.tile_px, grid.tile_px), "PNG")


def encode_legend(overlay: Overlay) -> bytes:
    """Return the colours of an overlay from low to high, as PNG of 256 by 1 px."""
    return _encode(draw_legend(overlay), "PNG")


def check_slide_size(slide: Slide, meta: BagMeta) -> None:
    """Raise ``SlideError`` if a slide has another size, level-0 px, than its bag states."""
    actual = (slide.levels[0].width_px, slide.levels[0].height_px)
    expected = (meta.width_px0, meta.height_px0)
    if all(expected) and actual != expected:
        raise SlideError(
            slide.path,
            actual=f"the file has {actual[0]:,} × {actual[1]:,} px",
            expected=f"{expected[0]:,} × {expected[1]:,} px, as stated in its bag",
            hint="Name the slides that the bags were made from with --slides.",
        )


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
