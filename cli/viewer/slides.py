"""One slide as the viewer knows it: its bag, its file, and what does not fit."""

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
    """A slide and all that can be shown of it."""

    slide_id: str
    """Its name."""
    shown: SlideAttention | None
    """Its tiles; None where it has no bag or no tile."""
    places: TileLayout | None
    """Where they lie; None where that is not known."""
    path: Path | None
    """Its file; None where there is none that fits."""
    zoom: DeepZoom | None
    """The pyramid over it; None where neither file nor bag tells its size."""
    notes: tuple[str, ...]
    """What is missing, and why."""


def view_slide(
    slide_id: str,
    shown: SlideAttention | None,
    path: Path | None,
    shelf: SlideCache,
    *,
    has_bag: bool,
    expects_file: bool,
) -> ViewedSlide:
    """Bring a slide's bag and file together.

    Parameters
    ----------
    slide_id
        Its name.
    shown
        Its tiles, if any.
    path
        Its file, if any.
    shelf
        Opens the file.
    has_bag
        Whether it has a bag, be it empty.
    expects_file
        Whether a folder of slides was named, so that a missing file is worth a word.
    """
    notes = []
    places = None if shown is None else tile_layout(shown.meta, shown.coords_px0)
    if shown is None:
        notes.append("No colours: its bag holds no tile." if has_bag else "No colours: no bag.")
    elif places is None:
        notes.append("No colours: its bag does not know where on the slide its tiles lie.")
    if path is None and expects_file:
        notes.append("No picture: no file of that name is in the folder of slides.")
    zoom = None
    if places is not None:
        zoom = DeepZoom(width_px0=places.slide_size_px0[0], height_px0=places.slide_size_px0[1])
    if path is not None:
        try:
            zoom = _zoom_of_file(path, None if shown is None else shown.meta, shelf)
        except SlideError as error:
            notes.append(printable(f"No picture: {error.actual}; expected {error.expected}."))
            path = None
    return ViewedSlide(
        slide_id=slide_id, shown=shown, places=places, path=path, zoom=zoom, notes=tuple(notes)
    )


def _zoom_of_file(path: Path, meta: BagMeta | None, shelf: SlideCache) -> DeepZoom:
    """The pyramid over a slide's file, which must be of the size that its bag tells, if it does."""
    with shelf.lend(path) as lent:
        zoom = lent.zoom.zoom
    found = (zoom.width_px0, zoom.height_px0)
    expected = (meta.width_px0, meta.height_px0) if meta else (0, 0)
    if all(expected) and found != expected:
        raise SlideError(
            path,
            actual=f"the file has {found[0]:,} × {found[1]:,} px",
            expected=f"{expected[0]:,} × {expected[1]:,} px, as its bag says",
        )
    return zoom
