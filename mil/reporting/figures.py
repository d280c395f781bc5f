"""Common style of all figures: safe for colour-blind readers, readable in grey, with units.

The macro ``figure`` of ``templates/macros.html`` puts an :class:`EmbeddedImage` on a page. All text
from a table (names of classes, centres, slides) is passed through :func:`plain` first. The colours
are those of Okabe and Ito (2008), which can be distinguished with any common colour vision; each
has its own hatch, marker and line style, so figures can also be read in grey.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter
from PIL import Image

__all__ = [
    "BAND_ALPHA",
    "CHANCE_COLOUR",
    "MARK_COLOUR",
    "ClassStyle",
    "EmbeddedImage",
    "class_styles",
    "count_ticks",
    "embed_image",
    "embed_layer",
    "plain",
    "render_figure",
    "share_ticks",
]

MARK_COLOUR = "#d55e00"
"""Colour that highlights one element of a figure; no class has it."""
CHANCE_COLOUR = "#6b6b6b"
"""Colour of references: chance, the prior, perfect calibration."""
BAND_ALPHA = 0.22
"""Opacity of the band of an interval, on white."""

_PX_PER_INCH = 96
_RASTER_DPI = 160
_MAX_LETTERS = 24
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,  # names may contain two dollar signs
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "hatch.linewidth": 0.7,
    "hatch.color": "white",
    "patch.linewidth": 0.6,
    "figure.facecolor": "none",  # pages have a light and a dark ground
    "axes.facecolor": "none",
    "savefig.dpi": _RASTER_DPI,
    "svg.fonttype": "path",  # so that glyphs do not depend on installed fonts
    "svg.hashsalt": "mil",  # so that the same figure gives the same bytes
}


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """A figure or photograph embedded in a page as a ``data:`` URI.

    ``alt`` describes it for readers who cannot see it; the full size is in CSS px.
    """

    uri: str
    alt: str
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class ClassStyle:
    """Style of one class on all figures of a page, in the values of matplotlib."""

    colour: str
    hatch: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


_CLASS_STYLES = (
    ClassStyle(colour="#0072b2", hatch="", marker="o", line="solid"),
    ClassStyle(colour="#e69f00", hatch="////", marker="^", line=(0, (5, 2))),
    ClassStyle(colour="#009e73", hatch="....", marker="s", line=(0, (1, 1))),
    ClassStyle(colour="#cc79a7", hatch="\\\\\\\\", marker="D", line=(0, (5, 1, 1, 1))),
    ClassStyle(colour="#56b4e9", hatch="xxxx", marker="v", line=(0, (8, 2))),
    ClassStyle(colour="#4d4d4d", hatch="----", marker="P", line=(0, (3, 1, 1, 1, 1, 1))),
)


def class_styles(classes: Sequence[str]) -> tuple[ClassStyle, ...]:
    """Return the style of each class, the same on every figure; styles repeat after six."""
    return tuple(_CLASS_STYLES[index % len(_CLASS_STYLES)] for index in range(len(classes)))


def render_figure(
    paint: Callable[[Figure], None],
    *,
    alt: str,
    width_in: float = 6.4,
    height_in: float = 3.4,
    kind: Literal["svg", "png"] = "svg",
) -> EmbeddedImage:
    """Draw a figure in the common style.

    ``paint`` draws on an empty figure of a size in inches of 96 px, whose layout is automatic, and
    is called once. ``alt`` describes the figure with its most important number. ``svg`` scales
    without loss; ``png`` is smaller for figures of several thousand points.
    """
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its stub lists the keys it knows
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        paint(figure)
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    media = "image/svg+xml" if kind == "svg" else "image/png"
    return EmbeddedImage(
        uri=_data_uri(buffer.getvalue(), media),
        alt=alt,
        width_px=round(width_in * _PX_PER_INCH),
        height_px=round(height_in * _PX_PER_INCH),
    )


def embed_image(image: Image.Image, *, alt: str, max_px: int, quality: int = 82) -> EmbeddedImage:
    """Return a photograph as JPEG, scaled down to fit a square of ``max_px`` px."""
    small = image.convert("RGB")
    small.thumbnail((max_px, max_px))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return EmbeddedImage(
        uri=_data_uri(buffer.getvalue(), "image/jpeg"),
        alt=alt,
        width_px=small.width,
        height_px=small.height,
    )


def embed_layer(pixels: npt.NDArray[np.uint8], *, alt: str) -> EmbeddedImage:
    """Return colours, shape (height_px, width_px, 3 or 4), as PNG, which keeps them exactly."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return EmbeddedImage(
        uri=_data_uri(buffer.getvalue(), "image/png"),
        alt=alt,
        width_px=pixels.shape[1],
        height_px=pixels.shape[0],
    )


def plain(text: str, *, max_letters: int = _MAX_LETTERS) -> str:
    """Return a name that can be drawn: one line, available glyphs only, shortened in the middle.

    Examples
    --------
    >>> plain("CE"), plain("a" + chr(10) + "b"), plain("abcdefghij", max_letters=5)
    ('CE', 'a?b', 'ab…ij')
    """
    known = _letters()
    shown = "".join(c if c.isprintable() and ord(c) in known else "?" for c in text)
    if len(shown) > max_letters:
        half = (max_letters - 1) // 2
        shown = f"{shown[:half]}…{shown[len(shown) - half :]}"
    # The thin space is needed as matplotlib omits names that begin with an underscore from legends.
    return f"\N{THIN SPACE}{shown}" if shown.startswith("_") else shown


def count_ticks(axis: Axis) -> None:
    """Label an axis of counts or sizes as ``1,000``; fractions keep the digits they need."""
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.6g}")
    )


def share_ticks(axis: Axis) -> None:
    """Label an axis of shares, 0 to 1, as ``50 %``."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    """Return the code points available in the font of the figures."""
    path = findfont(FontProperties(family="DejaVu Sans"))
    return frozenset(FT2Font(path).get_charmap())


def _data_uri(data: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"
