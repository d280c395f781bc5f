"""Checks of the cells of a cohort table: each error names its rows in the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from features.utils.spreadsheet_dates import MONTH, OTHER_MONTH
from features.utils.text import LINE_BREAKS, is_missing_word, lookalikes, pluralize
from mil.errors import CohortError

__all__ = ["check_cells", "check_no_totals", "check_one_value", "check_unique_slides"]

_TOTALS = frozenset({
    "average", "celkem", "count", "durchschnitt", "gesamt", "gesamtergebnis", "gesamtsumme",
    "grand total", "insgesamt", "max", "maximum", "mean", "median", "min", "minimum",
    "mittelwert", "moyenne", "overall", "promedio", "razem", "std", "subtotal", "sum",
    "suma", "summa", "summe", "totaal", "total", "total general", "totale", "totalt", "totals",
    "итого", "合计", "合計", "总计", "總計",
})  # fmt: skip
"""First words of a row below the others that counts or averages them."""
_COUNTED_TOTAL = re.compile(r"(?:grand )?total[\s:=(]+(?:n\s*=\s*)?\d+\)?")


class _Fault(NamedTuple):
    """What no id, label or centre holds, as a pattern, and the error on it."""

    pattern: str
    actual: str
    expected: str
    hint: str
    only_ids: bool = False


_FAULTS = (
    _Fault(
        pattern=rf"(?s)[{LINE_BREAKS}].*[,;\t]|[,;\t].*[{LINE_BREAKS}]",
        actual="which holds several rows",
        expected="one name in a cell",
        hint="Close the quotation mark that opens in this row or before it.",
    ),
    # What misread letters become. Other control characters are taken as they are, and not printed.
    _Fault(
        pattern="[\x00\x1a\x80-\x9f\ufffd]",
        actual="with a character that is no letter, digit or sign",
        expected="names as they are read",
        hint="Export the table again as UTF-8, or correct the cell.",
    ),
    # A formula names its own row: each row of a patient would be a patient of its own.
    _Fault(
        pattern=r"(?i)^=[^|]*(?:\(|\b\$?[a-z]{1,3}\$?\d|!)",
        actual="which is a formula",
        expected="its value",
        hint="Save the sheet as CSV with values in place of formulas.",
    ),
    _Fault(
        pattern=r"(?i)^(?:[+-]?(?:\d+[.,]\d*(?:e[+-]?\d+)?|\d+e\+\d+|inf|nan)"
        r"|\d{1,3}(?:,\d{3}){2,}|\d{1,3}(?:[\u00a0\u202f'\u2019]\d{3})+"  # grouped digits
        rf"|\d\d?(?:-|\. )(?:{MONTH}|janv|{OTHER_MONTH})\.?|\d\d?\.(?:{MONTH})\.\d+"
        rf"|(?:{MONTH}|janv)\.?[- ]\d\d|\d\d?\u6708\d\d?\u65e5"
        r"|\d{1,4}[-/.]\d\d?[-/.]\d{1,4}[ T]\d\d?:\d\d(?::\d\d)?(?:\.\d+)?"
        r"(?: ?[ap]m)?(?:z|[+-]\d\d:?\d\d)?)\Z",
        actual="which looks like an id turned into a number or date",
        expected="ids as text, such as 049194, 588e11 or 3-1",
        hint="Save the table again with ids as text (in pandas: read_csv(..., dtype=str)).",
        only_ids=True,
    ),
)


def check_cells(path: Path, named: pd.DataFrame) -> None:
    """Raise for a cell that can be no id, label or centre.

    ``named`` has shape (rows, columns) as returned by :func:`mil.data.cohort.read_slide_rows`.

    Raises
    ------
    CohortError
        If a cell but a centre is empty or a word for a missing value, one holds a misread letter,
        a formula or several rows, an id was turned into a number or date, or the last row counts
        the others.
    """
    if _ends_in_counts(named):
        check_no_totals(path, named["slide"].where(named["slide"] != "", named["patient"]))
        if "label" in named and not any(map(str.isalpha, "".join(named.iloc[-1][:2]))):
            check_no_totals(path, named["label"])
    _check_nonempty(path, named.drop(columns="centre", errors="ignore"))
    for fault in _FAULTS:
        for column in ("slide", "patient") if fault.only_ids else named.columns:
            bad = named[column][named[column].str.contains(fault.pattern)]
            if len(bad):
                raise CohortError(
                    f"{path}, row {bad.index[0] + 2}",
                    actual=f"{column} {bad.iloc[0][:40]!r}, {fault.actual}",
                    expected=fault.expected,
                    hint=fault.hint,
                )


def check_no_totals(where: object, ids: pd.Series[str]) -> None:
    """Raise for a last row such as ``Total,24``, which would count as a slide or patient.

    ``ids`` are those of the rows, shape (rows,).

    Raises
    ------
    CohortError
        If the last one is a word for a sum or a mean.
    """
    last = ids.iloc[-1]
    if len(ids) > 1 and _is_total(last):
        raise CohortError(
            f"{where}, row {ids.index[-1] + 2}",
            actual=f"{last!r} in the last row, which looks like a row of totals",
            expected="one slide or patient per row",
            hint="Delete the row. If it is a slide or patient, move it up.",
        )


def _ends_in_counts(named: pd.DataFrame) -> bool:
    """Whether the last row has a label that no other has, or only numbers and empty cells.

    A last row with values like those of the others is a slide: STD may be a patient's initials, and
    a class may be called total.
    """
    last = named.iloc[-1]
    if "label" in named:
        if not named["label"].iloc[:-1].eq(last["label"]).any():
            return True
        if _is_total(last["label"]):
            return False
    values = (cell for cell in last if not (_is_total(cell) or is_missing_word(cell)))
    return not any(map(str.isalpha, "".join(values)))


def _is_total(cell: str) -> bool:
    word = cell.rstrip(":").casefold()
    return word in _TOTALS or bool(_COUNTED_TOTAL.fullmatch(word))


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
        values = sorted(set(own[column]))
        concerned = f"This concerns {len(several)} {per}s." if len(several) > 1 else ""
        alike = lookalikes(values)
        raise CohortError(
            f"{path}, rows {_rows(own)}",
            actual=f"{per} {several.index[0]!r} has {column}s {', '.join(values)}",
            expected=f"one {column} per {per}",
            hint=f"{concerned} They look alike: write it the same way in every row.".lstrip()
            if alike
            else f"{concerned} Correct the wrong rows.".lstrip(),
        )


def _rows(rows: pd.DataFrame) -> str:
    """Return line numbers in the file; the header is line 1."""
    numbers: Sequence[int] = rows.index.tolist()
    return ", ".join(str(number + 2) for number in numbers[:5])
