"""What spreadsheets make of ids: dates, such as 2025-01-02 of 1-2, and rounded numbers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = ["MONTH", "OTHER_MONTH", "are_dates", "date_hint", "mixed_date_note", "rounded_ids_note"]

_MONTHS = ("jan", "feb|févr", "mar|mär|mrz", "apr", "may|mai", "jun|juin", "jul|juil", "aug|août",
           "sep", "oct|okt", "nov", "dec|dez|déc")  # fmt: skip
_OTHER_MONTHS = ("ene|sty", "fev", "mrt", "avr|abr|kwi", "mag|mei|maj", "giu|cze", "lug", "ago|sie",
                 "wrz", "ott|paź", "lis", "dic|des|gru")  # fmt: skip


def _as_written(months: Iterable[str]) -> str:
    """Return the pattern of months in small letters or with a capital; ids have capitals."""
    names = "|".join(months)
    return f"(?-i:{names}|{names.title()})"


MONTH = _as_written(_MONTHS)
"""Pattern of a month's short name in English, German or French."""
OTHER_MONTH = _as_written(_OTHER_MONTHS)
"""Pattern of one in six further languages, which ids may begin with, but hardly end with."""

_DATE = re.compile(
    rf"""(?:(?P<y>\d{{4}})[-/.](?P<m>\d\d?)[-/.](?P<d>\d\d?)
    |(?P<one>\d\d?)(?P<mark>[-/.])(?P<two>\d\d?)(?P=mark)(?P<year>\d{{4}}|\d\d)
    |(?P<day>\d\d?)(?:-|\.?[ ])(?:(?P<month>{MONTH})[a-z]*|(?P<other>{OTHER_MONTH}))\.?
    |(?P<before>{MONTH})[a-z]*[- ](?P<after>\d\d?))
    (?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?)?""",
    re.IGNORECASE | re.VERBOSE,
)
_PARTS = re.compile(r"\d{1,4}(?:[-/. ]\d{1,4}){1,2}")
"""Id that a spreadsheet may take for a date."""
_ROUNDED = re.compile(r"\d{15}\d+")
_N_KEPT = 15
"""Digits of a number that spreadsheets keep."""
_MIN_ZEROS = 3
_ADVICE = "save the table again with ids as text"


def date_hint(names: Iterable[str], known: Collection[str]) -> str:
    """Return advice if one of the names, none of which is known, may be a date made of an id.

    Where ids that are known are dates as well, a name must be explained by one that is not.

    Examples
    --------
    >>> date_hint(["2025-01-02"], ["1-2", "1-3"])
    "'2025-01-02' may be the date that a spreadsheet made of '1-2': save the table again with ids \
as text."
    """
    dates = [name for name in names if _is_date(name)]
    if not dates:
        return ""
    ids: dict[tuple[int, ...], str] = {}
    for own in known:
        if _PARTS.fullmatch(own):
            ids.setdefault(tuple(map(int, re.findall(r"\d+", own))), own)
    for name in dates:
        if own := next((ids[key] for key in _readings(name) if ids.get(key, name) != name), ""):
            return f"{name!r} may be the date that a spreadsheet made of {own!r}: {_ADVICE}."
    if any(map(_is_date, known)):
        return ""
    return f"If {dates[0]!r} is a date that a spreadsheet made of an id such as 1-2, {_ADVICE}."


def mixed_date_note(names: Iterable[str]) -> str:
    """Return a note if some ids are dates and others what spreadsheets make dates of, or none."""
    names = list(names)
    dates = [name for name in names if _is_date(name)]
    others = [name for name in names if _PARTS.fullmatch(name) and not _is_date(name)]
    if not dates or not others:
        return ""
    return (
        f"{len(dates)} of {len(names)} look like dates, such as {dates[0]!r} beside "
        f"{others[0]!r}; if a spreadsheet made them of ids, {_ADVICE}"
    )


def are_dates(names: Collection[str]) -> bool:
    """Return whether names are dates, each of them, such as those of a column of dates.

    Examples
    --------
    >>> are_dates(["2025-01-02", "2025-02-02"]), are_dates(["1-2", "3-4"]), are_dates(["02-Jan"])
    (True, False, True)
    """
    return bool(names) and all(map(_is_date, names))


def rounded_ids_note(names: Iterable[str]) -> str:
    """Return a note if all ids of more than 15 digits end in zeros from the 16th on, or none.

    Two ids that end in one zero each may do so by chance.

    Examples
    --------
    >>> rounded_ids_note(["12345678901234500", "12345678901234600"])[:42]
    'all 2 of more than 15 digits end in zeros,'
    >>> rounded_ids_note(["1234567890123450", "1234567890123460"])
    ''
    """
    long = [name for name in names if _ROUNDED.fullmatch(name)]
    zeros = "".join(name[_N_KEPT:] for name in long)
    if len(long) < 2 or len(zeros) < _MIN_ZEROS or zeros.strip("0"):
        return ""
    return (
        f"all {len(long)} of more than {_N_KEPT} digits end in zeros, such as {long[0]!r}; if a "
        f"spreadsheet rounded them, {_ADVICE}: different ids may have become one"
    )


def _is_date(text: str) -> bool:
    """Whether a text has the form of a date, and a day and a month that there are."""
    found = _DATE.fullmatch(text)
    if found is None:
        return False
    names = ("m", "d", "one", "two", "year", "day")
    m, d, one, two, year, day = (int(found[name] or 1) for name in names)
    pairs = [(m, d), (d, m)] if found["y"] else [(one, two), (two, one), (two, year)]
    return 1 <= day <= 31 and any(1 <= m <= 12 and 1 <= d <= 31 for m, d in pairs)


def _readings(text: str) -> list[tuple[int, ...]]:
    """Return the numbers of the ids of which a spreadsheet may have made a date."""
    found = _DATE.fullmatch(text)
    parts = {} if found is None else {k: v for k, v in found.groupdict().items() if v}
    if name := parts.get("month") or parts.get("before") or parts.get("other"):
        months = enumerate(zip(_MONTHS, _OTHER_MONTHS, strict=True), start=1)
        month = next(n for n, own in months if name.lower() in "|".join(own).split("|"))
        other = int(parts.get("day") or parts["after"])
        return [(other, month), (month, other)]
    if "y" in parts:
        year, pairs = int(parts["y"]), [(int(parts["m"]), int(parts["d"]))]
    else:
        year, one, two = int(parts["year"]), int(parts["one"]), int(parts["two"])
        pairs = [(one, two), (two, one)]
    readings: list[tuple[int, ...]] = []
    for month, day in pairs:
        readings += [(month, day), (day, month)]
        for short in (year % 100, year):
            readings += [(month, day, short), (day, month, short), (short, month, day)]
            if day == 1:  # 5-98 became the first of May 1998
                readings += [(month, short), (short, month)]
    return readings
