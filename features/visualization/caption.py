"""What stands below a picture: its title, facts, scale bar and legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_caption", "printable", "round_length_um", "scale_bar"]

_MARGIN_PX = 16
_TEXT_PX = 18
_TITLE_PX = 21
_LINE_PX = 30
_GAP_PX = 24
_BAR_HEIGHT_PX = 14

Entry = tuple[Image.Image | None, str]
"""A small picture, if any, and what it means."""


def draw_caption(
    title: str, *, facts: Sequence[str], legend: Sequence[Entry], width_px: int
) -> Image.Image:
    """A white strip with a title, a row of facts and a row of legend, broken where it is narrow.

    Parameters
    ----------
    title
        Name of what is seen; shortened in its middle where it is too long.
    facts
        Short texts.
    legend
        Small pictures and what they mean.
    width_px
        Width of the strip.
    """
    strip = Image.new("RGB", (width_px, 60 * _LINE_PX), "white")
    room = width_px - 2 * _MARGIN_PX
    text = _shortened(printable(title), room)
    # A line between slide and caption, which are often both white.
    strip.paste("#999999", (0, 0, width_px, 1))
    ImageDraw.Draw(strip).text((_MARGIN_PX, _MARGIN_PX), text, font=_font(_TITLE_PX), fill="black")
    bottom = _flow(strip, [(None, fact) for fact in facts], top=_MARGIN_PX + _LINE_PX + 4)
    bottom = _flow(strip, legend, top=bottom + 6)
    return strip.crop((0, 0, width_px, bottom + _MARGIN_PX // 2))


def scale_bar(um_a_px: float, *, most_px: int, assumed: bool) -> Entry:
    """A bar of a round length and that length in words.

    Parameters
    ----------
    um_a_px
        Resolution of the picture, µm per px.
    most_px
        Longest bar.
    assumed
        Whether the resolution is only assumed; the words then say so.
    """
    length_um = round_length_um(max(1, most_px) * um_a_px)
    width = max(3, round(length_um / um_a_px))
    bar = Image.new("RGB", (width, _BAR_HEIGHT_PX), "white")
    draw = ImageDraw.Draw(bar)
    middle = _BAR_HEIGHT_PX // 2
    draw.rectangle((0, middle - 1, width - 1, middle + 2), fill="black")
    for x in (0, width - 2):
        draw.rectangle((x, 0, x + 1, _BAR_HEIGHT_PX - 1), fill="black")
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    return bar, f"{text} (assumed)" if assumed else text


def round_length_um(most_um: float) -> float:
    """The longest of 1, 2 or 5 times a power of ten that is at most ``most_um``, µm.

    Examples
    --------
    >>> round_length_um(740), round_length_um(2000), round_length_um(0.3)
    (500.0, 2000.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(most_um) + 1e-9)
    factor = max(f for f in (1, 2, 5) if f * power <= most_um * (1 + 1e-9))
    return float(f"{factor * power:.6g}")


def printable(text: str) -> str:
    """Text with a question mark for what cannot be shown, such as line ends.

    Examples
    --------
    >>> printable("a" + chr(10) + "b")
    'a?b'
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def _flow(strip: Image.Image, entries: Sequence[Entry], *, top: int) -> int:
    """Set entries side by side in lines from ``top`` on; returns where the last line ends."""
    draw, font = ImageDraw.Draw(strip), _font(_TEXT_PX)
    x, y = _MARGIN_PX, top
    for image, text in entries:
        before = image.width + 8 if image else 0
        width = before + math.ceil(font.getlength(text))
        if x > _MARGIN_PX and x + width > strip.width - _MARGIN_PX:
            x, y = _MARGIN_PX, y + _LINE_PX
        middle = y + _LINE_PX // 2
        if image:
            strip.paste(image, (x, middle - image.height // 2))
        draw.text((x + before, middle), text, font=font, fill="black", anchor="lm")
        x += width + _GAP_PX
    return y + _LINE_PX


def _shortened(text: str, room_px: int) -> str:
    """A title that fits, with an ellipsis in its middle where something had to go."""
    font, half = _font(_TITLE_PX), len(text) // 2
    short = text
    while half and font.getlength(short) > room_px:
        half -= 1
        short = f"{text[:half]}…{text[-half:] if half else ''}"
    return short


@lru_cache(maxsize=4)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib: Pillow's own font has no µ and no ×."""
    return ImageFont.truetype(
        Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px
    )
