"""HTML page over the previews of slides."""

from __future__ import annotations

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from PIL import Image

from features.slides.resolution import OUTLIER_FACTOR, mpp_outliers
from features.tiling.artifacts import RULES
from features.utils.html import page_environment
from features.visualization.thumbnail import legend_patch, sort_rules

__all__ = ["PreviewRow", "known_mpp", "render_page"]

_THUMBNAIL_PX = (130, 100)

Status = Literal["done", "empty", "failed"]
"""``done`` has tiles, ``empty`` has none left, ``failed`` could not be read."""


@dataclass(frozen=True, kw_only=True)
class PreviewRow:
    """Numbers of one slide: one row of the page, stored as ``<slide_id>.json`` by these names.

    ``picture_px`` is width and height of the slide in ``<slide_id>.jpg``, px, None where there is
    no image. ``mpp_source`` is ``file``, ``derived``, ``given`` or ``assumed``. ``tissue_share`` is
    the share of the slide that is tissue, None where all was taken, ``min_tissue_used`` the least
    one of a tile that was applied, both 0 to 1. ``n_found`` counts tiles with enough tissue,
    ``left_out`` rejected tiles by rule, ``n_failed`` those that could not be decoded. ``message``
    is an error, or the reason why no tile is kept.
    """

    slide_id: str
    status: Status
    picture_px: tuple[int, int] | None = None
    width_px0: int | None = None
    height_px0: int | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str = ""
    reader: str = ""
    glass_rgb: tuple[int, int, int] | None = None
    tissue_share: float | None = None
    min_tissue_used: float | None = None
    n_found: int | None = None
    n_read: int | None = None
    n_kept: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    n_failed: int | None = None
    message: str = ""

    @property
    def mpp(self) -> float | None:
        """Geometric mean of both axes, µm per level-0 px."""
        if self.mpp_x is None or self.mpp_y is None:
            return None
        return math.sqrt(self.mpp_x * self.mpp_y)


def render_page(rows: Sequence[PreviewRow], folder: Path) -> str:
    """Return the HTML page over slides, with sizes in px and mpp.

    Its only links are those to their images in ``folder``.
    """
    left_out: Counter[str] = Counter()
    for row in rows:
        left_out.update(row.left_out)
    mpps = _mpp_counts(rows)
    return (
        page_environment("features")
        .get_template("preview.html")
        .render(
            rows=rows,
            links={row.slide_id: _link(row.slide_id) for row in rows},
            thumbnails={row.slide_id: _thumbnail(row, folder) for row in rows},
            rules=sort_rules(left_out),
            left_out=left_out,
            meanings=_legend_rows(left_out),
            totals={
                name: sum(getattr(row, name) or 0 for row in rows)
                for name in ("n_found", "n_read", "n_kept", "n_failed")
            },
            statuses=Counter(row.status for row in rows),
            mpps=mpps,
            most_slides=max((count for _, _, count in mpps), default=1),
            outliers=mpp_outliers(known_mpp(rows)),
            outlier_factor=OUTLIER_FACTOR,
        )
    )


def known_mpp(rows: Sequence[PreviewRow]) -> dict[str, float]:
    """Return µm per level-0 px by slide id, of the slides for which it was not assumed."""
    return {
        row.slide_id: row.mpp for row in rows if row.mpp is not None and row.mpp_source != "assumed"
    }


def _legend_rows(left_out: Collection[str]) -> list[tuple[str, str, str]]:
    """Name, symbol and meaning of everything that images may show."""
    fixed = {
        "tissue": "outline of the tissue mask",
        "kept": "tiles that pass all rules",
        "failed": "tiles that could not be decoded",
    }
    rules = {name: RULES[name].meaning if name in RULES else "" for name in sort_rules(left_out)}
    return [
        (name, _data_uri(legend_patch(name), "PNG"), text) for name, text in (fixed | rules).items()
    ]


def _mpp_counts(rows: Sequence[PreviewRow]) -> list[tuple[float, str, int]]:
    """µm/px to three digits, its source, and its number of slides; finest first."""
    counts = Counter(
        (float(f"{row.mpp:.3g}"), row.mpp_source) for row in rows if row.mpp is not None
    )
    return sorted((mpp, source, count) for (mpp, source), count in counts.items())


def _link(slide_id: str) -> str:
    """Relative URL of a slide's image, escaped for any name that a file system allows."""
    return "./" + quote(os.fsencode(f"{slide_id}.jpg"), safe="")


def _thumbnail(row: PreviewRow, folder: Path) -> str:
    """Data URI of the slide's part of its image, scaled down; empty where there is none."""
    if row.picture_px is None:
        return ""
    try:
        with Image.open(folder / f"{row.slide_id}.jpg") as picture:
            small = picture.crop((0, 0, *row.picture_px))
    except OSError:
        return ""
    small.thumbnail(_THUMBNAIL_PX)
    return _data_uri(small, "JPEG")


def _data_uri(image: Image.Image, kind: Literal["JPEG", "PNG"]) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
