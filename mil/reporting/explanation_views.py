"""What is drawn of a slide or series on its explanation page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mil.inference.attention import SlideAttention
from mil.reporting.figures import EmbeddedImage

__all__ = ["LegendEntry", "MapView", "ScaleBar", "SlideView", "TileView"]


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """Meaning of a colour (such as ``#d55e00``), or of the colours in ``image``."""

    words: str
    colour: str = ""
    image: EmbeddedImage | None = None


@dataclass(frozen=True, kw_only=True)
class MapView:
    """One transparent layer over the picture of a slide, or the attention by position of a series.

    ``key`` is ``top``, ``share``, ``percentile``, ``contribution`` or ``unlike``, or ``position``
    in a series.
    """

    key: str
    label: str
    image: EmbeddedImage
    legend: Sequence[LegendEntry] = ()


@dataclass(frozen=True, kw_only=True)
class ScaleBar:
    """Scale bar: its length as a share of the width of the picture, 0 to 1, and in words."""

    share: float
    words: str


@dataclass(frozen=True, kw_only=True)
class TileView:
    """One of the most or least attended tiles: its row in the bag, and its pixels if readable."""

    index: int
    image: EmbeddedImage | None = None


@dataclass(frozen=True, kw_only=True)
class SlideView:
    """Picture, layers, tiles and exports of a slide on its page.

    Attributes
    ----------
    slide
        Attention of its tiles.
    base
        Picture below the layers: the slide, or the grid of its tiles; None for a series, and where
        the bag has no tile coordinates.
    has_tissue
        Whether the picture is the slide itself.
    maps, unlike
        Layers, of which one is seen at a time, and the layer of unlike tiles; for a series the
        chart by position.
    bar
        Scale bar of the picture.
    thumbnail
        Small picture for the index; None without pixels.
    top, bottom
        The most and the least attended tiles, the most extreme first.
    note
        Why the tissue is not shown; empty if it is, or if no slides were given.
    overlay_downsample
        Level-0 px per px of the overlay, None without overlay.
    files
        Names of exports by description.
    """

    slide: SlideAttention
    base: EmbeddedImage | None = None
    has_tissue: bool = False
    maps: Sequence[MapView] = ()
    unlike: MapView | None = None
    bar: ScaleBar | None = None
    thumbnail: EmbeddedImage | None = None
    top: Sequence[TileView] = ()
    bottom: Sequence[TileView] = ()
    note: str = ""
    overlay_downsample: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)
