"""CSV tables with ids as text and escaped formulas."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import TableError
from features.utils.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["find_column", "read_table", "write_table"]

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Start of a text that a spreadsheet would take for a formula, or that is escaped already."""
_ESCAPE = "'"
_QUOTED = re.compile(r'(?<![^,;\t\n])"[^"]*+(?:""[^"]*+)*+"')
"""A quoted cell, in which separators and line ends are text."""
_ROW = re.compile(rf"(?:{_QUOTED.pattern}|[^\n])*+")

_MIN_SIMILARITY = 0.75


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV table with every cell as text, shape (rows, columns), index 0 to rows - 1.

    Ids such as ``049194``, ``588e11`` or ``NA`` are kept literally; an empty cell is the empty
    string. A byte-order mark, UTF-16 that has one, Windows line ends and semicolons or tabs as
    separators are supported. White space around names and cells is stripped, and so is the
    apostrophe with which :func:`write_table` escapes formulas. Raises TableError if the file is
    missing, unreadable, not text, without rows, names a column twice, or a row has more cells than
    the header.
    """
    import pandas as pd  # noqa: PLC0415 - takes 0.3 s, and many commands read no table

    text = _read_text(path)
    header = next(_ROW.finditer(text.lstrip("\n")))[0]
    separator = max(",;\t", key=_QUOTED.sub("", header).count)
    try:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator))]
        with warnings.catch_warnings(record=True, action="always") as caught:
            table = pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False
            )
        if caught:  # rows are longer than the header, and were cut
            _check_row_lengths(path, text, separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        with suppress(csv.Error):
            _check_row_lengths(path, text, separator)
        reason = " ".join(str(error).split())
        raise TableError(path, actual=f"not a table ({reason})", expected="a CSV table") from error
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise TableError(path, actual=f"column {repeated[0]!r} occurs twice", expected="once")
    table.columns = table.columns.str.strip()
    if table.empty:
        raise TableError(path, actual="no rows under the header", expected="at least one row")
    stripped: pd.DataFrame = table.apply(lambda column: column.str.strip())
    return _map_cells(stripped, _unescape_formula)


def write_table(path: Path, table: pd.DataFrame, *, float_format: str | None = None) -> None:
    """Write a table of shape (rows, columns) as CSV, whole or not at all, without its index.

    The same table gives the same bytes. A text that a spreadsheet would take for a formula, because
    it begins with ``=``, ``+``, ``-`` or ``@`` and is not a number, gets an apostrophe before it,
    which :func:`read_table` strips. ``float_format``, e.g. ``%.6g``, shortens numbers. Raises
    OutputError if the file cannot be written.
    """
    escaped = _map_cells(table, _escape_formula)
    with atomic_write(path) as temporary:
        escaped.to_csv(temporary, index=False, float_format=float_format, lineterminator="\n")


def _read_text(path: Path) -> str:
    """Text of a file, with plain line ends.

    Undeclared encodings are not guessed, because a wrong guess would change letters of an id.
    """
    try:
        content = path.read_bytes()
        has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if has_mark else "utf-8-sig")
    except FileNotFoundError as error:
        raise TableError(path, actual="there is no such file", expected="a CSV table") from error
    except UnicodeDecodeError as error:
        raise TableError(
            path,
            actual=f"byte {error.start} is not UTF-8 text",
            expected="a CSV table",
            hint="Save it as CSV (UTF-8), which Excel offers besides plain CSV.",
        ) from error
    except OSError as error:
        raise TableError(path, actual=f"cannot be read ({error.strerror or error})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_row_lengths(path: Path, text: str, separator: str) -> None:
    """Raise an error for a row with more cells than the header, except empty ones at its end."""
    n_columns = 0
    for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=separator), start=1):
        n_columns = n_columns or len(cells)
        if any(cell.strip() for cell in cells[n_columns:]):
            raise TableError(
                f"{path}, row {number}",
                actual=f"{len(cells)} cells",
                expected=f"{n_columns}, as in the header",
                hint=f"Put quotation marks around cells that contain {separator!r}.",
            )


def find_column(table: pd.DataFrame, names: Sequence[str], *, where: object, what: str) -> str:
    """Return the first of ``names`` that is a column of ``table``, shape (rows, columns).

    Raises TableError if there is none: the message names the file ``where``, ``what`` the column
    contains, all columns, and the one whose name is most similar.
    """
    for name in names:
        if name in table.columns:
            return name
    columns = [str(column) for column in table.columns]
    close = difflib.get_close_matches(names[0], columns, n=1, cutoff=_MIN_SIMILARITY)
    raise TableError(
        where,
        actual=f"no column {' or '.join(map(repr, names))} among {', '.join(columns)}",
        expected=what,
        hint=f"Did you mean {close[0]!r}? Rename it in the table." if close else "",
    )


def _map_cells(table: pd.DataFrame, change: Callable[[object], object]) -> pd.DataFrame:
    """The table with a function applied to column names and text cells."""
    import pandas as pd  # noqa: PLC0415 - as above

    changed = table.rename(columns=change)
    for index, dtype in enumerate(table.dtypes):
        values = [] if dtype.kind in "biuf" else table.iloc[:, index].tolist()
        results = [change(value) for value in values]
        if results != values:
            changed.isetitem(index, pd.array(results, dtype=object))
    return changed


def _escape_formula(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip()  # spreadsheets ignore white space before a formula
    return f"{_ESCAPE}{text}" if _FORMULA.match(text) and not _is_number(text) else value


def _unescape_formula(value: object) -> object:
    if isinstance(value, str) and value.startswith(_ESCAPE) and _FORMULA.match(value):
        return value.removeprefix(_ESCAPE)
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
