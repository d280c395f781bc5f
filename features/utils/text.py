"""Text helpers: plurals, percentages, printable names, natural sort order."""

from __future__ import annotations

import re

__all__ = ["natural_key", "percent", "pluralize", "printable"]


def pluralize(number: int, nouns: str) -> str:
    """Return a number with its noun, given in the plural.

    Examples
    --------
    >>> pluralize(1, "slides"), pluralize(1200, "slides"), pluralize(1, "series")
    ('1 slide', '1,200 slides', '1 series')
    """
    noun = nouns if number != 1 or nouns == "series" else nouns.removesuffix("s")
    return f"{number:,} {noun}"


def percent(share: float, *, digits: int = 0) -> str:
    """Return a share of 1 in per cent, with the space that belongs before the sign.

    Examples
    --------
    >>> percent(0.25), percent(1 / 3, digits=1)
    ('25 %', '33.3 %')
    """
    return f"{100 * share:.{digits}f} %"


def printable(text: str, *, kept: str = "") -> str:
    r"""Return a text with a question mark in place of control and other unprintable characters.

    Examples
    --------
    >>> printable("two\nlines\x1b[31m")
    'two?lines?[31m'
    """
    return "".join(c if c.isprintable() or c in kept else "?" for c in text)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders numbers inside names by value.

    Examples
    --------
    >>> sorted(["centre 11", "centre 2", "other"], key=natural_key)
    ['centre 2', 'centre 11', 'other']
    """
    parts = re.findall(r"\d+|\D+", text)
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts)
