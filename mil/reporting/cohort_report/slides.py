"""Properties of slides from the headers of their files and from their bags."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.bags.bag import IMAGE, Bag, Fingerprint
from features.bags.h5 import read_bag
from features.bags.store import open_bags
from features.errors import BagError

__all__ = [
    "SlideBag",
    "SlideFiles",
    "SlideHeader",
    "Variable",
    "bag_variables",
    "header_variables",
    "read_slide_bags",
]


@dataclass(frozen=True, kw_only=True)
class SlideHeader:
    """Metadata of a slide file, read without its pixels."""

    slide_id: str
    width_px0: int
    height_px0: int
    n_levels: int
    file_bytes: int | None
    """Size of the file or folder, bytes; None if not known, as for a URL."""
    mpp: float
    """µm per level-0 px, geometric mean of both axes; NaN if the file states none plausible."""
    reader: str
    compression: str
    """Compression of level 0, e.g. ``JPEG``; empty if not known."""
    content_id: str
    """Content hash; empty if no other file has the same size."""


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """Headers and thumbnails of a folder of slides."""

    headers: Mapping[str, SlideHeader]
    """Headers by slide id, including slides not in the table."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Reasons why slides could not be opened, by slide id."""
    thumbnails: Mapping[str, Image.Image] = field(default_factory=dict)
    """Thumbnails of some slides, by slide id."""
    repeated: Mapping[Path, Path] = field(default_factory=dict)
    """Files ignored because another file has the same slide id, with that other file."""


@dataclass(frozen=True, kw_only=True)
class SlideBag:
    """A bag without its embeddings."""

    slide_id: str
    n_tiles: int
    tissue_share: float
    """Share of the slide's area that is tissue inside its tiles, 0 to 1; NaN if not known."""
    is_series: bool
    """Whether it is a series of images, for which tissue is not segmented."""
    glass_rgb: tuple[int, int, int]
    empty_reason: str
    """Why it holds no tile; empty if it holds one."""
    fingerprint: Fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One number per slide."""

    name: str
    unit: str
    """Unit; empty for a ratio."""
    values: npt.NDArray[np.float64]
    """Shape (slides,), in the order of the table's slides; NaN if not known."""
    log: bool = False
    """Whether plots use a logarithmic axis."""

    @property
    def label(self) -> str:
        """``width (px)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def varies(self) -> bool:
        """Whether any two known values differ."""
        known = self.values[np.isfinite(self.values)]
        return len(known) > 1 and bool(np.ptp(known) > 0)


def read_slide_bags(
    bags_dir: Path, slide_ids: Collection[str], *, on_slide: Callable[[int], None]
) -> dict[str, SlideBag]:
    """Read the bags of these slides one after the other; slides without a bag are left out.

    ``on_slide`` is called after each slide with the number of slides done.

    Raises
    ------
    BagError
        If there is no bag of any of these slides, or one of them is damaged.
    """
    refs = open_bags(bags_dir)
    bags = {}
    for done, slide_id in enumerate(slide_ids, start=1):
        if slide_id in refs:
            bags[slide_id] = _summarize(slide_id, read_bag(refs[slide_id]))
        on_slide(done)
    if not bags:
        raise BagError(
            bags_dir,
            actual="no slide of the table has a bag",
            expected="a bag named after each slide",
            hint="Check --bags, and that slide ids equal file names without suffix.",
        )
    return bags


def header_variables(
    headers: Mapping[str, SlideHeader], slide_ids: Sequence[str]
) -> tuple[Variable, ...]:
    """Return size, aspect ratio and resolution (µm/px), with values of shape (slides,)."""
    known = [headers.get(slide_id) for slide_id in slide_ids]
    width = np.array([h.width_px0 if h else np.nan for h in known], np.float64)
    height = np.array([h.height_px0 if h else np.nan for h in known], np.float64)
    n_bytes = [h.file_bytes if h and h.file_bytes is not None else math.nan for h in known]
    mpp = np.array([h.mpp if h else np.nan for h in known], np.float64)
    return _known(
        Variable(name="width", unit="px", values=width),
        Variable(name="height", unit="px", values=height),
        Variable(name="area", unit="megapixels", values=width * height / 1e6, log=True),
        Variable(name="file size", unit="MB", values=np.array(n_bytes) / 1e6, log=True),
        Variable(name="aspect (width / height)", unit="", values=width / height, log=True),
        Variable(name="resolution", unit="µm/px", values=mpp),
    )


def bag_variables(bags: Mapping[str, SlideBag], slide_ids: Sequence[str]) -> tuple[Variable, ...]:
    """Return tiles and tissue, or images of series, with values of shape (slides,)."""
    known = [bags.get(slide_id) for slide_id in slide_ids]
    tiles = np.array([bag.n_tiles if bag else np.nan for bag in known], np.float64)
    if all(bag.is_series for bag in known if bag):
        return _known(Variable(name="images", unit="", values=tiles))
    tissue = np.array([bag.tissue_share if bag else np.nan for bag in known], np.float64)
    return _known(
        Variable(name="tiles", unit="", values=tiles),
        Variable(name="tissue in tiles", unit="% of the slide", values=100 * tissue),
    )


def _known(*variables: Variable) -> tuple[Variable, ...]:
    """Return the variables that are known for at least one slide."""
    return tuple(variable for variable in variables if np.isfinite(variable.values).any())


def _summarize(slide_id: str, bag: Bag) -> SlideBag:
    meta, how = bag.meta, bag.meta.fingerprint
    # Overlapping tiles count tissue twice, so each tile counts for its own step of the grid only.
    step = 1 - how.overlap_px / how.tile_px if how.tile_px else 1.0
    tile_px0 = meta.span_x_px0 * meta.span_y_px0 * step * step
    tissue = float(bag.tissue_fraction.sum(dtype=np.float64)) * tile_px0
    area = meta.width_px0 * meta.height_px0
    share = tissue / area if area and meta.kind != IMAGE else math.nan
    return SlideBag(
        slide_id=slide_id,
        n_tiles=len(bag.features),
        tissue_share=min(share, 1.0),  # NaN, if an imported bag states no tissue, stays NaN
        is_series=meta.kind == IMAGE,
        glass_rgb=meta.background_rgb,
        empty_reason=meta.empty_reason,
        fingerprint=how,
    )
