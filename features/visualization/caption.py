"""Caption below an image of a slide: title, facts, scale bar and legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from features.utils.text import printable

__all__ = ["add_caption", "round_length_um", "scale_bar"]

_MARGIN_PX = 16
_TEXT_PX = 18
_TITLE_PX = 21
_LINE_PX = 30
_GAP_PX = 24
_BAR_HEIGHT_PX = 14

Entry = tuple[Image.Image | None, str]
"""Optional symbol, and its meaning."""


def add_caption(
    image: Image.Image,
    title: str,
    *,
    facts: Sequence[str],
    legend: Sequence[Entry],
    min_width_px: int = 0,
) -> Image.Image:
    """Return an RGB image, shape (height, width, 3), with title, facts and legend below it.

    They are wrapped to its width, at least ``min_width_px``, px. A title that is too long is
    shortened in its middle. ``legend`` has symbols and their meanings.
    """
    width, top = max(image.width, min_width_px), image.height
    result = Image.new("RGB", (width, top + 60 * _LINE_PX), "white")
    result.paste(image, (0, 0))
    # A line separates slide and caption, which are often both white.
    result.paste("#999999", (0, top, width, top + 1))
    text = _shorten(printable(title), width - 2 * _MARGIN_PX)
    corner = (_MARGIN_PX, top + _MARGIN_PX)
    ImageDraw.Draw(result).text(corner, text, font=_font(_TITLE_PX), fill="black")
    entries = [(None, fact) for fact in facts]
    bottom = _draw_wrapped(result, entries, top=top + _MARGIN_PX + _LINE_PX + 4)
    bottom = _draw_wrapped(result, legend, top=bottom + 6)
    return result.crop((0, 0, width, bottom + _MARGIN_PX // 2))


def scale_bar(um_per_px: float, *, max_px: int, assumed: bool) -> Entry:
    """Return a bar, shape (14, width, 3), of a round length of up to ``max_px``, and that length.

    The image has ``um_per_px``, µm per px; ``assumed`` adds a remark that this is only assumed.
    """
    length_um = round_length_um(max(1, max_px) * um_per_px)
    width = max(3, round(length_um / um_per_px))
    bar = Image.new("RGB", (width, _BAR_HEIGHT_PX), "white")
    draw = ImageDraw.Draw(bar)
    middle = _BAR_HEIGHT_PX // 2
    draw.rectangle((0, middle - 1, width - 1, middle + 2), fill="black")
    for x in (0, width - 2):
        draw.rectangle((x, 0, x + 1, _BAR_HEIGHT_PX - 1), fill="black")
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    return bar, f"{text} (assumed)" if assumed else text


def round_length_um(max_um: float) -> float:
    """Return the largest of 1, 2 or 5 times a power of ten up to ``max_um``, µm.

    Examples
    --------
    >>> round_length_um(740), round_length_um(2000), round_length_um(0.3)
    (500.0, 2000.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(max_um) + 1e-9)
    factor = max(f for f in (1, 2, 5) if f * power <= max_um * (1 + 1e-9))
    return float(f"{factor * power:.6g}")


def _draw_wrapped(image: Image.Image, entries: Sequence[Entry], *, top: int) -> int:
    """Draw entries side by side in lines from ``top`` on; return the end of the last line, px."""
    draw, font = ImageDraw.Draw(image), _font(_TEXT_PX)
    x, y = _MARGIN_PX, top
    for symbol, text in entries:
        indent = symbol.width + 8 if symbol else 0
        width = indent + math.ceil(font.getlength(text))
        if x > _MARGIN_PX and x + width > image.width - _MARGIN_PX:
            x, y = _MARGIN_PX, y + _LINE_PX
        middle = y + _LINE_PX // 2
        if symbol:
            image.paste(symbol, (x, middle - symbol.height // 2))
        draw.text((x + indent, middle), text, font=font, fill="black", anchor="lm")
        x += width + _GAP_PX
    return y + _LINE_PX


def _shorten(text: str, max_px: int) -> str:
    """A title of at most ``max_px``, with an ellipsis in its middle where text was cut."""
    font, half = _font(_TITLE_PX), len(text) // 2
    short = text
    while half and font.getlength(short) > max_px:
        half -= 1
        short = f"{text[:half]}…{text[-half:] if half else ''}"
    return short


@lru_cache(maxsize=4)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib: Pillow's own font has no µ and no ×."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to load, and few commands draw captions

    return ImageFont.truetype(
        Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px
    )
