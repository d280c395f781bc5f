"""Properties of slides from the headers of their files and from their bags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.bags.digest import BagDigest

__all__ = [
    "SlideFiles",
    "SlideHeader",
    "Variable",
    "bag_variables",
    "header_variables",
]


@dataclass(frozen=True, kw_only=True)
class SlideHeader:
    """Metadata of a slide file, read without its pixels.

    ``file_bytes`` is the size of the file or folder, None if not known, as for a URL. ``mpp`` is
    the geometric mean of both axes, NaN if the file states no plausible one. ``compression`` is
    that of level 0, e.g. ``JPEG``, empty if not known. ``content_id`` is the content hash, empty if
    no other file has the same size.
    """

    slide_id: str
    width_px0: int
    height_px0: int
    n_levels: int
    file_bytes: int | None
    mpp: float
    reader: str
    compression: str
    content_id: str


@dataclass(frozen=True, kw_only=True)
class SlideFiles:
    """Headers of the slides of a folder, and thumbnails of some, by slide id.

    Slides need not be in the table. ``failures`` are the reasons why slides could not be opened,
    ``repeated`` the files ignored because another, their value, has the same slide id.
    """

    headers: Mapping[str, SlideHeader]
    failures: Mapping[str, str] = field(default_factory=dict)
    thumbnails: Mapping[str, Image.Image] = field(default_factory=dict)
    repeated: Mapping[Path, Path] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One number per slide, shape (slides,), float64, in the order of the table's slides.

    Unknown values are NaN; the unit (px, µm/px, ...) is empty for a ratio or count. ``log`` asks
    for a logarithmic axis.
    """

    name: str
    unit: str
    values: npt.NDArray[np.float64]
    log: bool = False

    @property
    def label(self) -> str:
        """``width (px)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def varies(self) -> bool:
        """Whether any two known values differ."""
        known = self.values[np.isfinite(self.values)]
        return len(known) > 1 and bool(np.ptp(known) > 0)


def header_variables(
    headers: Mapping[str, SlideHeader], slide_ids: Sequence[str]
) -> tuple[Variable, ...]:
    """Return size, aspect ratio and resolution (µm/px), with values of shape (slides,)."""
    known = [headers.get(slide_id) for slide_id in slide_ids]
    rows = [(h.width_px0, h.height_px0, h.file_bytes, h.mpp) if h else (None,) * 4 for h in known]
    width, height, n_bytes, mpp = np.array(rows, np.float64).reshape(-1, 4).T  # None becomes NaN
    return _known(
        Variable(name="width", unit="px", values=width),
        Variable(name="height", unit="px", values=height),
        Variable(name="area", unit="megapixels", values=width * height / 1e6, log=True),
        Variable(name="file size", unit="MB", values=n_bytes / 1e6, log=True),
        Variable(name="aspect (width / height)", unit="", values=width / height, log=True),
        Variable(name="resolution", unit="µm/px", values=mpp),
    )


def bag_variables(bags: Mapping[str, BagDigest], slide_ids: Sequence[str]) -> tuple[Variable, ...]:
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
