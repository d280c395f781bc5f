"""One slide in the viewer: its bag, its file, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli.viewer.slide_cache import SlideCache
from features.bags.bag import BagMeta
from features.errors import SlideError
from features.utils.text import printable
from features.visualization.deepzoom import DeepZoom
from features.visualization.heatmap import TileLayout, tile_layout
from mil.inference.attention import SlideAttention

__all__ = ["ViewedSlide", "view_slide"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewedSlide:
    """A slide with its attention, tile layout, file and pyramid, as far as they are known."""

    slide_id: str
    attention: SlideAttention | None
    """Attention on its tiles; None without bag or tiles."""
    layout: TileLayout | None
    """Coordinates of its tiles; None if not known."""
    path: Path | None
    """Slide file; None if there is none that matches the bag."""
    zoom: DeepZoom | None
    """Deep Zoom pyramid; None if neither file nor bag states the size of the slide."""
    notes: tuple[str, ...]
    """What is missing, and why."""


def view_slide(
    slide_id: str,
    attention: SlideAttention | None,
    path: Path | None,
    cache: SlideCache,
    *,
    has_bag: bool,
    expects_file: bool,
) -> ViewedSlide:
    """Match a slide's bag and file.

    ``has_bag`` is true even for an empty bag; ``expects_file`` is true if a folder of slides was
    given, so that a missing file is noted.
    """
    notes = []
    layout = None if attention is None else tile_layout(attention.meta, attention.coords_px0)
    if attention is None:
        notes.append("No colours: its bag holds no tile." if has_bag else "No colours: no bag.")
    elif layout is None:
        notes.append("No colours: its bag has no tile coordinates.")
    if path is None and expects_file:
        notes.append("No picture: no file of that name is in the folder of slides.")
    zoom = None
    if layout is not None:
        zoom = DeepZoom(width_px0=layout.slide_size_px0[0], height_px0=layout.slide_size_px0[1])
    if path is not None:
        try:
            zoom = _open_pyramid(path, None if attention is None else attention.meta, cache)
        except SlideError as error:
            notes.append(printable(f"No picture: {error.actual}; expected {error.expected}."))
            path = None
    return ViewedSlide(
        slide_id=slide_id,
        attention=attention,
        layout=layout,
        path=path,
        zoom=zoom,
        notes=tuple(notes),
    )


def _open_pyramid(path: Path, meta: BagMeta | None, cache: SlideCache) -> DeepZoom:
    """Return the pyramid of a slide file, whose size must be that stated in the bag, if any."""
    with cache.borrow(path) as opened:
        zoom = opened.zoom.zoom
    actual = (zoom.width_px0, zoom.height_px0)
    expected = (meta.width_px0, meta.height_px0) if meta else (0, 0)
    if all(expected) and actual != expected:
        raise SlideError(
            path,
            actual=f"the file has {actual[0]:,} × {actual[1]:,} px",
            expected=f"{expected[0]:,} × {expected[1]:,} px, as stated in its bag",
        )
    return zoom
