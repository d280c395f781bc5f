"""CSV tables in which an id stays what was typed."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from features.errors import TableError

__all__ = ["find_column", "read_table"]

_LIKELY = 0.75


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV table with every cell as text.

    Ids such as ``049194``, ``588e11`` or ``NA`` are kept to the letter; an empty cell is the empty
    string. A byte-order mark, UTF-16 that has one, Windows line ends and semicolons or tabs as
    separators are understood. White space around names and cells is dropped.

    Parameters
    ----------
    path
        The table; its first row names the columns.

    Returns
    -------
    pandas.DataFrame
        One row a line, all columns of strings, index 0 to n - 1.

    Raises
    ------
    TableError
        If the file is missing, unreadable, not text, without rows, or names a column twice.
    """
    text = _read_text(path)
    header = text.split("\n", maxsplit=1)[0]
    separator = max(",;\t", key=header.count)
    try:
        table = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise TableError(path, found=f"not a table ({error})", expected="a CSV table") from error
    names = [name.strip() for name in header.rstrip("\r").split(separator)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TableError(path, found=f"column {twice[0]!r} stands there twice", expected="once")
    table.columns = table.columns.str.strip()
    if table.empty:
        raise TableError(path, found="no rows under the header", expected="at least one row")
    stripped: pd.DataFrame = table.apply(lambda column: column.str.strip())
    return stripped


def _read_text(path: Path) -> str:
    """Text of a file, with plain line ends.

    Encodings that do not tell themselves are not guessed: letters of an id would become others.
    """
    try:
        content = path.read_bytes()
        has_mark = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if has_mark else "utf-8-sig")
    except FileNotFoundError as error:
        raise TableError(path, found="there is no such file", expected="a CSV table") from error
    except UnicodeDecodeError as error:
        raise TableError(
            path,
            found=f"byte {error.start} is not UTF-8 text",
            expected="a CSV table",
            advice="Save it as CSV (UTF-8), which Excel offers beside plain CSV.",
        ) from error
    except OSError as error:
        raise TableError(path, found=f"cannot be read ({error.strerror or error})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def find_column(table: pd.DataFrame, names: Sequence[str], *, where: object, what: str) -> str:
    """Return the first of ``names`` that is a column of ``table``.

    Parameters
    ----------
    table
        Any table.
    names
        Accepted names, preferred first.
    where
        The file, for the message.
    what
        What the column holds, for the message.

    Raises
    ------
    TableError
        If there is none; the message lists the columns and the likeliest misspelling.
    """
    for name in names:
        if name in table.columns:
            return name
    columns = [str(column) for column in table.columns]
    # A near name that ends alike, such as image_id for bag_id, is a column of its own.
    close = difflib.get_close_matches(names[0], columns, n=1, cutoff=_LIKELY)
    raise TableError(
        where,
        found=f"no column {' or '.join(map(repr, names))} among {', '.join(columns)}",
        expected=what,
        advice=f"Did you mean {close[0]!r}? Rename it in the table." if close else "",
    )
