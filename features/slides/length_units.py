"""Numbers and units of length as scanners and converters write them."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["NUMBER", "parse_number", "um_per_unit"]

NUMBER = r"[-+]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][-+]?\d+)?|\b(?:nan|inf(?:inity)?)\b"
"""Pattern of a number; the decimal sign may be a comma."""

_UM = {
    "m": 1e6, "meter": 1e6, "metre": 1e6,
    "dm": 1e5, "decimeter": 1e5, "decimetre": 1e5,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "µm": 1.0, "um": 1.0, "micron": 1.0, "mu": 1.0, "micrometer": 1.0, "micrometre": 1.0,
    "мкм": 1.0, "нм": 1e-3, "мм": 1e3, "微米": 1.0, "纳米": 1e-3, "毫米": 1e3, "ミクロン": 1.0,
    "mikrometer": 1.0, "micra": 1.0, "mcm": 1.0, "µ": 1.0,
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "å": 1e-4, "angstrom": 1e-4,
    "pm": 1e-6, "picometer": 1e-6, "picometre": 1e-6,
    "in": 25_400.0, "inch": 25_400.0, "inche": 25_400.0, '"': 25_400.0,
    "pt": 25_400.0 / 72, "point": 25_400.0 / 72,
    "li": 25_400.0 / 12, "line": 25_400.0 / 12,
    "thou": 25.4, "mil": 25.4,
    "ft": 304_800.0, "foot": 304_800.0, "feet": 304_800.0,
}  # fmt: skip
"""µm by unit, in lower case and singular: those of OME-XML, NGFF and ImageJ that can be meant."""
_ROMANCE = (
    (re.compile(r"metr[oi]\Z"), "meter"), (re.compile(r"\Amili"), "milli"),
)  # fmt: skip
"""Italian, Portuguese and Spanish endings."""
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_DAMAGED_MICRO = re.compile(r"[^\x00-\x7fåÅ]{1,4}m\Z|\?m\Z")
"""A micro sign that was decoded with the wrong character set, and ``m``."""


def um_per_unit(name: object) -> float | None:
    """Return the µm of a unit of length; None for pixels, reference frames and unknown names.

    Examples
    --------
    >>> [um_per_unit(name) for name in ("nm", "micron", "µm", "pixel")]
    [0.001, 1.0, 1.0, None]
    """
    text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), str(name or "")).strip()
    text = text.replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    text = text.replace("\N{ANGSTROM SIGN}", "Å").strip(" .[]()").lower()
    plain = "".join(filter(str.isascii, unicodedata.normalize("NFD", text))).removesuffix("s")
    english = plain
    for pattern, ending in _ROMANCE:
        english = pattern.sub(ending, english)
    for spelling in (text, text.removesuffix("s"), *((plain, english) if len(plain) > 2 else ())):
        if spelling in _UM:
            return _UM[spelling]
    return 1.0 if _DAMAGED_MICRO.search(text) else None


def parse_number(text: object) -> float:
    """Return the first number of a text, with a comma or a point; NaN without one.

    Examples
    --------
    >>> parse_number("0,499000")
    0.499
    """
    match = re.search(NUMBER, str(text), re.IGNORECASE)
    return float(match[0].replace(",", ".")) if match else float("nan")
