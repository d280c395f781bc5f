"""One look for every figure on a page: colour-blind safe, readable in grey, with units.

How to draw::

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for style, name in zip(class_styles(names), names, strict=True):
            axes.plot(x, y[name], color=style.colour, linestyle=style.line, label=plain(name))
        axes.set(xlabel="false positive rate", ylabel="true positive rate")

    picture = draw(paint, alt="ROC curve of LAA: area 0.67", width_in=4.5, height_in=4.5)

A :class:`EmbeddedImage` goes onto a page as it is, through the macro ``figure`` of
``templates/macros.html``. Whatever comes from a table (names of classes, centres, slides) passes
through :func:`plain` first. Colours are those of Okabe and Ito (2008), which people with any common
colour vision tell apart; a hatch, a marker and a line of its own go with each, so that figures also
read in grey.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import matplotlib as mpl
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
    "plain",
    "render_figure",
    "share_ticks",
]

MARK_COLOUR = "#d55e00"
"""For the one thing on a figure that is to be seen first; a class never has it."""
CHANCE_COLOUR = "#6b6b6b"
"""For what a curve is compared with: chance, the prior, perfect calibration."""
BAND_ALPHA = 0.22
"""Opacity of an interval's band over white, under a line of full colour."""

_PX_AN_INCH = 96
_RASTER_DPI = 160
_MOST_LETTERS = 24
_STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,  # a name with two dollar signs is a name, not a formula
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
    "figure.facecolor": "white",
    "savefig.dpi": _RASTER_DPI,
    "svg.fonttype": "path",  # the same letters wherever the page is opened
    "svg.hashsalt": "mil",  # the same figure gives the same bytes
}


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """A figure or photograph inside a page."""

    uri: str
    """All of it, as a ``data:`` URI."""
    alt: str
    """What it shows, in words, for those who do not see it."""
    width_px: int
    """Width on the page at full size, CSS px."""
    height_px: int
    """Height on the page at full size, CSS px."""


@dataclass(frozen=True, kw_only=True)
class ClassStyle:
    """How one class looks on all figures of a page."""

    colour: str
    """Fill and line, as ``#rrggbb``."""
    hatch: str
    """Hatch of its areas; empty for none."""
    marker: str
    """Marker of its points."""
    line: str | tuple[int, tuple[int, ...]]
    """Line style, in matplotlib's words."""


_CLASS_STYLES = (
    ClassStyle(colour="#0072b2", hatch="", marker="o", line="solid"),
    ClassStyle(colour="#e69f00", hatch="////", marker="^", line=(0, (5, 2))),
    ClassStyle(colour="#009e73", hatch="....", marker="s", line=(0, (1, 1))),
    ClassStyle(colour="#cc79a7", hatch="\\\\\\\\", marker="D", line=(0, (5, 1, 1, 1))),
    ClassStyle(colour="#56b4e9", hatch="xxxx", marker="v", line=(0, (8, 2))),
    ClassStyle(colour="#4d4d4d", hatch="----", marker="P", line=(0, (3, 1, 1, 1, 1, 1))),
)


def class_styles(classes: Sequence[str]) -> tuple[ClassStyle, ...]:
    """Style of each class, in order; the same on every figure. The seventh is as the first."""
    return tuple(_CLASS_STYLES[index % len(_CLASS_STYLES)] for index in range(len(classes)))


def render_figure(
    paint: Callable[[Figure], None],
    *,
    alt: str,
    width_in: float = 6.4,
    height_in: float = 3.4,
    kind: Literal["svg", "png"] = "svg",
) -> EmbeddedImage:
    """Draw a figure in the one style.

    Parameters
    ----------
    paint
        Makes axes on an empty figure and draws on them; is called once. Fit is automatic.
    alt
        What the figure shows, in words; with the number that matters most.
    width_in, height_in
        Size, inches of 96 CSS px; text on it is 9.5 points.
    kind
        ``svg`` stays sharp; ``png`` is smaller from some thousand points on.
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
        width_px=round(width_in * _PX_AN_INCH),
        height_px=round(height_in * _PX_AN_INCH),
    )


def embed_image(image: Image.Image, *, alt: str, most_px: int, quality: int = 82) -> EmbeddedImage:
    """A photograph as JPEG, scaled down to fit a square of ``most_px``."""
    small = image.convert("RGB")
    small.thumbnail((most_px, most_px))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality)
    return EmbeddedImage(
        uri=_data_uri(buffer.getvalue(), "image/jpeg"),
        alt=alt,
        width_px=small.width,
        height_px=small.height,
    )


def plain(text: str, *, most: int = _MOST_LETTERS) -> str:
    """A name as it can be drawn: one line, known letters only, shortened in its middle.

    Examples
    --------
    >>> plain("CE"), plain("a" + chr(10) + "b"), plain("abcdefghij", most=5)
    ('CE', 'a?b', 'ab…ij')
    """
    known = _letters()
    shown = "".join(c if c.isprintable() and ord(c) in known else "?" for c in text)
    if len(shown) > most:
        half = (most - 1) // 2
        shown = f"{shown[:half]}…{shown[len(shown) - half :]}"
    # A thin space: matplotlib leaves names that begin with an underscore out of legends.
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
    """Code points that the figures' font has."""
    path = findfont(FontProperties(family="DejaVu Sans"))
    return frozenset(FT2Font(path).get_charmap())


def _data_uri(data: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"
