"""Numbers as they stand in sentences."""

from __future__ import annotations

__all__ = ["percent", "pluralize"]


def pluralize(number: int, nouns: str) -> str:
    """How many there are, for a noun in the plural; of one it is taken off.

    Examples
    --------
    >>> counted(1, "slides"), counted(1200, "slides"), counted(1, "series")
    ('1 slide', '1,200 slides', '1 series')
    """
    noun = nouns if number != 1 or nouns == "series" else nouns.removesuffix("s")
    return f"{number:,} {noun}"


def percent(share: float, *, digits: int = 0) -> str:
    """A share of 1 in per cent, with the space that belongs before the sign.

    Examples
    --------
    >>> percent(0.25), percent(1 / 3, digits=1)
    ('25 %', '33.3 %')
    """
    return f"{100 * share:.{digits}f} %"
