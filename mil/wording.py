"""Numbers as they stand in sentences."""

from __future__ import annotations

__all__ = ["percent"]


def percent(share: float, *, digits: int = 0) -> str:
    """A share of 1 in per cent, with the space that belongs before the sign.

    Examples
    --------
    >>> percent(0.25), percent(1 / 3, digits=1)
    ('25 %', '33.3 %')
    """
    return f"{100 * share:.{digits}f} %"
