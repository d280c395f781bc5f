"""Checks of the cells of a cohort table: each error names its rows in the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from features.utils.spreadsheet_dates import MONTH
from features.utils.text import is_missing_word, pluralize
from mil.errors import CohortError

__all__ = ["check_cells", "check_one_value", "check_unique_slides"]

_JOINED_ROWS = r"(?s)[\r\n].*[,;\t]|[,;\t].*[\r\n]"
_MANGLED_ID = re.compile(
    rf"[+-]?(\d+[.,]\d*(e[+-]?\d+)?|\d+e\+\d+|inf|nan)|\d\d?(-|\. )({MONTH})|({MONTH})[- ]\d\d"
    r"|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?(\.0+)?",
    re.IGNORECASE,
)
"""Id that a spreadsheet or another program turned into a number or, such as 3-1, into a date."""
_NO_LETTER = re.compile("[\x00\x80-\x9f\ufffd]")
"""What misread letters become; other control characters are taken as they are, and not printed."""
_TOTALS = frozenset({
    "average", "gesamt", "gesamtergebnis", "grand total", "insgesamt", "mean", "mittelwert", "sum",
    "summe", "total", "totals",
})  # fmt: skip
"""First words of a row below the others that counts them."""


def check_cells(path: Path, named: pd.DataFrame) -> None:
    """Raise for a cell that can be no id, label or centre.

    ``named`` has shape (rows, columns) as returned by :func:`mil.data.cohort.read_slide_rows`.

    Raises
    ------
    CohortError
        If a cell but a centre is empty or a word for a missing value, one holds a misread letter
        or several rows, an id was turned into a number or date, or the last row counts the others.
    """
    _check_totals(path, named)
    _check_nonempty(path, named.drop(columns="centre", errors="ignore"))
    _check_joined_rows(path, named)
    _check_letters(path, named)
    for column in ("slide", "patient"):
        _check_mangled_ids(path, named[column])


def _check_totals(path: Path, named: pd.DataFrame) -> None:
    """Raise for a last row such as ``Total,24``, which would count as a slide."""
    last = named.iloc[-1]
    first = next((last[column] for column in ("slide", "patient") if last[column]), "")
    if first.rstrip(":").casefold() in _TOTALS:
        raise CohortError(
            f"{path}, row {named.index[-1] + 2}",
            actual=f"{first!r} in the last row, which looks like a row of totals",
            expected="one slide per row",
            hint="Delete the row.",
        )


def _check_letters(path: Path, named: pd.DataFrame) -> None:
    for column in named:
        bad = named[column][named[column].str.contains(_NO_LETTER)]
        if len(bad):
            raise CohortError(
                f"{path}, row {bad.index[0] + 2}",
                actual=f"{column} {bad.iloc[0]!r}, with a character that is no letter, digit or "
                "sign",
                expected="names as they are read",
                hint="Export the table again as UTF-8, or correct the cell.",
            )


def _check_nonempty(path: Path, named: pd.DataFrame) -> None:
    for column in named:
        empty = named[column][named[column].map(is_missing_word)]
        # NA may be the initials of one patient; of several rows, or as a class, it is no value.
        is_initials = column != "label" and len(empty) == 1 and empty.iloc[0].isalpha()
        if len(empty) and not is_initials:
            word = empty.iloc[0]
            lacking = f"{pluralize(len(empty), 'rows')} lack one. " if len(empty) > 1 else ""
            raise CohortError(
                f"{path}, row {empty.index[0] + 2}",
                actual=f"{column} {word!r}, a word for a missing value" if word else f"no {column}",
                expected="a value in every row",
                hint=f"{lacking}Fill it in or delete the row"
                + (f"; if {word!r} is meant, spell it out." if word else "."),
            )


def _check_joined_rows(path: Path, named: pd.DataFrame) -> None:
    """Raise for an id, label or centre that holds whole rows of the table."""
    for column in named:
        joined = named[column][named[column].str.contains(_JOINED_ROWS)]
        if len(joined):
            raise CohortError(
                f"{path}, row {joined.index[0] + 2}",
                actual=f"{column} {joined.iloc[0][:40]!r}..., which holds several rows",
                expected="one name in a cell",
                hint="Close the quotation mark that opens in this row or before it.",
            )


def _check_mangled_ids(path: Path, ids: pd.Series[str]) -> None:
    """Raise for ids turned into numbers or dates, such as 5.88e+13 for 588e11, 03-Jan for 3-1."""
    mangled = ids[ids.str.fullmatch(_MANGLED_ID)]
    if len(mangled):
        raise CohortError(
            f"{path}, row {mangled.index[0] + 2}",
            actual=f"id {mangled.iloc[0]!r}, which looks like an id turned into a number or date",
            expected="ids as text, such as 049194, 588e11 or 3-1",
            hint="Save the table again with ids as text (in pandas: read_csv(..., dtype=str)).",
        )


def check_unique_slides(path: Path, named: pd.DataFrame) -> None:
    """Raise for a slide in several rows of a table of shape (rows, columns).

    Raises
    ------
    CohortError
        If it is of several patients, or of one in several rows.
    """
    check_one_value(path, named, "patient", per="slide")
    repeated = named["slide"][named["slide"].duplicated()]
    if len(repeated):
        rows = named[named["slide"] == repeated.iloc[0]]
        raise CohortError(
            f"{path}, rows {_rows(rows)}",
            actual=f"slide {repeated.iloc[0]!r} {len(rows)} times",
            expected="once",
            hint="Delete all rows of it but one.",
        )


def check_one_value(path: Path, rows: pd.DataFrame, column: str, *, per: str) -> None:
    """Raise unless a column, such as ``label``, has one value per ``patient`` or ``slide``.

    ``rows`` has shape (rows, columns) as for :func:`check_cells`.

    Raises
    ------
    CohortError
        If one has several values; the message names the rows in the file.
    """
    n_values = rows.groupby(per, sort=False)[column].nunique()
    several = n_values[n_values > 1]
    if len(several):
        own = rows[rows[per] == several.index[0]]
        values = ", ".join(sorted(set(own[column])))
        raise CohortError(
            f"{path}, rows {_rows(own)}",
            actual=f"{per} {several.index[0]!r} has {column}s {values}",
            expected=f"one {column} per {per}",
            hint=f"This concerns {len(several)} {per}s." if len(several) > 1 else "",
        )


def _rows(rows: pd.DataFrame) -> str:
    """Return line numbers in the file; the header is line 1."""
    numbers: Sequence[int] = rows.index.tolist()
    return ", ".join(str(number + 2) for number in numbers[:5])
