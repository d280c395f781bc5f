"""Numbers such as 999 that tables hold where nothing is known."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["find_missing_code"]

_CODE = re.compile(r"(-?(?:9+|77+|88+)|-[1-8])(?:\.0+)?")
_FAR = 2  # times the largest other number


def find_missing_code(cells: Iterable[str]) -> str:
    """Return the value of a column that plainly is a code for missing ones; empty if none is.

    It is the only number among words, or one such as 999 or -9 that is far outside of all others.

    Examples
    --------
    >>> find_missing_code(["CE", "LAA", "9"]), find_missing_code(["61", "999", "54.5"])
    ('9', '999')
    >>> find_missing_code(["1", "2", "3", "4"]), find_missing_code(["-9", "-8.5", "3"])
    ('', '')
    """
    numbers = dict[str, float]()
    words = set[str]()
    for cell in set(cells):
        try:
            numbers[cell] = float(cell)
        except ValueError:
            words.add(cell)
    codes = sorted(filter(_CODE.fullmatch, numbers))
    if words:
        return codes[0] if codes and len(numbers) == 1 < len(words) else ""
    others = [number for cell, number in numbers.items() if cell not in codes]
    if len(others) < 2 or min(others) < 0:
        return ""
    far = _FAR * max(others)
    return next(
        (c for c in codes if numbers[c] > far or (c.startswith("-9") and numbers[c] < 0)), ""
    )
