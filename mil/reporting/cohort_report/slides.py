"""What is known of slides beside their table: from headers of files, and from bags."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from features.bags.bag import IMAGE, Bag, Fingerprint
from features.bags.h5 import read_bag
from features.bags.store import open_bags
from features.errors import BagError
from mil.reporting.cohort_report.statistics import Variable

__all__ = [
    "SlideBag",
    "SlideFiles",
    "SlideHeader",
    "bag_measures",
    "header_measures",
    "read_slide_bags",
]


@dataclass(frozen=True, kw_only=True)
class SlideHeader:
    """What a slide's file says without its pixels."""

    slide_id: str
    """Its name without folder and suffix."""
    width_px0: int
    """Width, level-0 px."""
    height_px0: int
    """Height, level-0 px."""
    n_levels: int
    """Resolutions in the file."""
    file_bytes: int | None
    """Size of the file or folder; None where it cannot be had, as behind a URL."""
    mpp: float
    """µm per level-0 px, geometric mean of both axes; NaN where the file says nothing plausible."""
    reader: str
    """What reads it."""
    compression: str
    """How level 0 is compressed, e.g. ``JPEG``; empty where that is not known."""
    content_id: str
    """Equal for files of equal content; empty for a file that shares its size with no other."""


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """A folder of slides as its reader saw it."""

    headers: Mapping[str, SlideHeader]
    """Headers by slide id, slides included that the table does not name."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Why slides could not be opened, by slide id."""
    thumbnails: Mapping[str, Image.Image] = field(default_factory=dict)
    """Small pictures of some slides, by slide id."""


@dataclass(frozen=True, kw_only=True)
class SlideBag:
    """A bag in short."""

    slide_id: str
    """Name of the slide."""
    n_tiles: int
    """Embeddings in it."""
    tissue_share: float
    """Share of the slide's area that is tissue inside its tiles, 0 to 1; NaN where not known."""
    is_series: bool
    """Whether it is a series of images, of which nobody looked for tissue."""
    glass_rgb: tuple[int, int, int]
    """Colour of the slide's glass."""
    empty_reason: str
    """Why it holds no tile; empty if it holds one."""
    fingerprint: Fingerprint
    """How it was made."""


def read_slide_bags(
    bags_dir: Path, slide_ids: Iterable[str], *, on_slide: Callable[[], None]
) -> dict[str, SlideBag]:
    """Read the bags of these slides one after the other; slides without a bag are left out.

    Raises
    ------
    BagError
        If there is no bag of any of these slides, or one of them is damaged.
    """
    paths = open_bags(bags_dir)
    found = {}
    for slide_id in slide_ids:
        if slide_id in paths:
            found[slide_id] = _summarize(slide_id, read_bag(paths[slide_id]))
        on_slide()
    if not found:
        raise BagError(
            bags_dir,
            actual="no slide of the table has a bag",
            expected="a bag named after each slide",
            hint="Check --bags, and that slide ids equal file names without suffix.",
        )
    return found


def header_measures(
    headers: Mapping[str, SlideHeader], slide_ids: Sequence[str]
) -> tuple[Variable, ...]:
    """Widths, heights, areas, sizes, aspects and resolutions in the order of ``slide_ids``."""
    known = [headers.get(slide_id) for slide_id in slide_ids]
    width = np.array([h.width_px0 if h else np.nan for h in known], np.float64)
    height = np.array([h.height_px0 if h else np.nan for h in known], np.float64)
    n_bytes = [h.file_bytes if h and h.file_bytes is not None else math.nan for h in known]
    mpp = np.array([h.mpp if h else np.nan for h in known], np.float64)
    return (
        Variable(name="width", unit="px", values=width),
        Variable(name="height", unit="px", values=height),
        Variable(name="area", unit="megapixels", values=width * height / 1e6, log=True),
        Variable(name="file size", unit="MB", values=np.array(n_bytes) / 1e6, log=True),
        Variable(name="aspect (width / height)", unit="", values=width / height, log=True),
        Variable(name="resolution", unit="µm/px", values=mpp),
    )


def bag_measures(bags: Mapping[str, SlideBag], slide_ids: Sequence[str]) -> tuple[Variable, ...]:
    """Tiles and tissue, or images of series, in the order of ``slide_ids``."""
    known = [bags.get(slide_id) for slide_id in slide_ids]
    tiles = np.array([bag.n_tiles if bag else np.nan for bag in known], np.float64)
    if all(bag.is_series for bag in known if bag):
        return (Variable(name="images", unit="", values=tiles),)
    tissue = np.array([bag.tissue_share if bag else np.nan for bag in known], np.float64)
    return (
        Variable(name="tiles", unit="", values=tiles),
        Variable(name="tissue in tiles", unit="% of the slide", values=100 * tissue),
    )


def _summarize(slide_id: str, bag: Bag) -> SlideBag:
    meta, how = bag.meta, bag.meta.fingerprint
    # Overlapping tiles see tissue twice; a tile stands for its own step of the grid only.
    step = 1 - how.overlap_px / how.tile_px if how.tile_px else 1.0
    tile_px0 = meta.span_x_px0 * meta.span_y_px0 * step * step
    tissue = float(bag.tissue_fraction.sum(dtype=np.float64)) * tile_px0
    area = meta.width_px0 * meta.height_px0
    share = tissue / area if area and meta.kind != IMAGE else math.nan
    return SlideBag(
        slide_id=slide_id,
        n_tiles=len(bag.features),
        tissue_share=min(share, 1.0),  # NaN, where an imported bag does not know, stays NaN
        is_series=meta.kind == IMAGE,
        glass_rgb=meta.background_rgb,
        empty_reason=meta.empty_reason,
        fingerprint=how,
    )
