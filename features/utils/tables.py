"""CSV tables with ids as text and escaped formulas."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import math
import re
import shlex
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import TableError
from features.utils.file_kinds import START_BYTES, find_foreign_kind
from features.utils.files import atomic_write, path_exists
from features.utils.text import (
    LINE_BREAKS,
    is_missing_word,
    nearest_names,
    normalize_name,
    shown_form,
    strip_blanks,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "column_key",
    "find_column",
    "find_listed_file",
    "find_optional_column",
    "list_columns",
    "read_table",
    "stated_path",
    "suggest_column",
    "write_records",
    "write_table",
]

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Start of a text that a spreadsheet would take for a formula, or that is escaped already."""
_ESCAPE = "'"
_TEXT_FORMULA = re.compile(r'="([^"]*)"')
"""Text as a formula, by which programs keep a spreadsheet from turning ids into numbers."""
_QUOTED = re.compile(r'(?<![^,;\t\n])"[^"]*+(?:""[^"]*+)*+"')
"""A quoted cell, in which separators and line ends are text."""
_ROW = re.compile(rf"(?:{_QUOTED.pattern}|[^\n])*+")

_NO_TABLES: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"), "a workbook of a spreadsheet, or an archive",
        "Save the sheet as CSV (UTF-8).",
    ),
    (
        (b"PAR1", b"ARROW1", b"FEA1"), "a file of Parquet or Arrow",
        "Write it as CSV, such as with pandas' read_parquet and to_csv.",
    ),
    ((b"{\\rtf",), "a text document", "Save the table as CSV (UTF-8)."),
    (
        (b"\x93NUMPY", b"SQLite format 3", b"$FL2", b"<stata_dta>", b"RDX", b"RDA",
         *(bytes([0x80, version]) for version in range(2, 6))),
        "data of another program (NumPy, SQLite, SPSS, Stata, R or a pickle)",
        "Export the table as CSV (UTF-8).",
    ),
    ((b"<",), "HTML or XML", "Open it in a spreadsheet, and save the sheet as CSV (UTF-8)."),
    ((b"{", b"["), "JSON", "Write it as CSV, such as with pandas' read_json and to_csv."),
)  # fmt: skip
"""Beginnings of files that go by the name of a table."""
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|]|\\t)"?[,;\t ]*(?:\n|$)', re.IGNORECASE)
"""First line by which Excel is told the separator."""

_RARE_LINE_END = re.compile(rf"[{LINE_BREAKS}]")
_END_OF_FILE = "\x1a"
"""Ctrl-Z, by which programs of DOS mark the end of a text."""
_AFTER_END = re.compile(rf"(?:{_END_OF_FILE}+|(?:\n[ \t{_END_OF_FILE}]*)+)\Z")
"""The mark at the very end, or in lines of its own; one in a cell is the cell's."""
_MAX_AFTER_END = 512
_MARKED_LINE = re.compile(r"\n[ \t]*#")
_MARKS = "'`\u00ab\u00b4\u00bb\u2018-\u201f\u2039\u203a"
_QUOTED_OTHERWISE = re.compile(f"[{_MARKS}].+[{_MARKS}]")
"""Cell in quotation marks that are none of CSV."""
_OPEN_QUOTE = re.compile(r"EOF inside string starting at row (\d+)")
"""Error of pandas, which counts rows from 0."""

_TYPES = frozenset({
    "boolean", "categorical", "character", "chr", "continuous", "date", "discrete", "double",
    "factor", "float", "float64", "int", "int64", "integer", "number", "numeric", "object", "str",
    "string", "text", "varchar",
})  # fmt: skip
"""Types of columns, which some programs write below the header."""
_MIN_SIMILARITY = 0.75
_MOST_LISTED = 12
_MOST_ABOVE = 20
"""Rows of titles and remarks above the header, among which it is looked for."""
_WORDS = (
    (re.compile(r"(?<=[a-z])(?=[A-Z])"), "_"),
    (re.compile(r"[\s\-.]+"), "_"),
    (re.compile(r"centre", re.IGNORECASE), "center"),
)
"""Spellings of a column's name that count as one."""
_SYNONYMS = (
    frozenset({"bag", "bag_id", "scan", "scan_id", "slide", "slide_id", "slide_name", "wsi",
               "wsi_id"}),
    frozenset({"file", "file_name", "filename", "image", "image_id", "image_name"}),
    frozenset({
        "case", "case_id", "case_submitter_id", "patient", "patient_id", "patientid", "person_id",
        "pid", "subject", "subject_id",
    }),
    frozenset({"class", "diagnosis", "label", "labels", "outcome", "target", "y"}),
    frozenset({
        "center", "center_id", "hospital", "institution", "site", "site_id",
        "tissue_source_site", "tss",
    }),
)  # fmt: skip
"""Names that people give to the columns of slides, their images, patients, labels and centres."""
_PATHS = frozenset({
    "file", "file_name", "file_path", "filename", "filepath", "image_path", "location", "path",
    "paths", "slide_path", "url", "wsi_path",
})  # fmt: skip
"""Names that people give to columns of files; a column of ids, renamed, would name no file."""


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV table with every cell as text, shape (rows, columns).

    Ids such as ``049194``, ``588e11`` or ``NA`` are kept literally; an empty cell is the empty
    string. A byte-order mark, UTF-16, line ends of all systems, Ctrl-Z behind the last one,
    semicolons, tabs or bars as separators, the line ``sep=;`` of Excel and text as a formula
    (``="0123"``) are supported. Rows and unnamed columns without any content are left out, so the
    index of a row is its line in the file less two. White space around names and cells is stripped,
    and so is the apostrophe with which :func:`write_table` escapes formulas. Raises TableError if
    the file is missing, unreadable, not text, without rows, names a column twice, repeats its
    header, holds a comment (a line that begins with ``#``, as others do not), or a row has more
    cells than the header.
    """
    import numpy as np  # noqa: PLC0415 - as below
    import pandas as pd  # noqa: PLC0415 - takes 0.3 s, and many commands read no table

    text = _read_text(path)
    if not text.strip("\ufeff\n "):
        raise TableError(path, actual="an empty file", expected="a CSV table")
    text, n_lines_before, stated = _split_preamble(text)
    header = next(_ROW.finditer(text))[0]
    plain_header = _QUOTED.sub("", header)
    separator = stated or max(",;\t", key=plain_header.count)
    if separator not in plain_header and "|" in plain_header:
        separator = "|"
    _check_comments(path, text, separator, n_lines_before)
    try:
        cells = csv.reader([header], delimiter=separator, skipinitialspace=True)
        names = [strip_blanks(name) for name in next(cells)]
        with warnings.catch_warnings(record=True, action="always") as caught:
            table = pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False,
                skip_blank_lines=False, skipinitialspace=True,
            )  # fmt: skip
        if caught:  # rows are longer than the header, and were cut
            _check_row_lengths(path, text, separator)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        with suppress(csv.Error):
            _check_row_lengths(path, text, separator)
        if opened := _OPEN_QUOTE.search(str(error)):
            raise TableError(
                f"{path}, row {int(opened[1]) + 1 + n_lines_before}",
                actual="a quotation mark that is not closed",
                expected="pairs of them",
                hint="Close it, or delete it.",
            ) from error
        raise TableError(path, actual=f"not a table ({error})", expected="a CSV table") from error
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise TableError(
            path, actual=f"column {repeated[0]!r} occurs twice", expected="once",
            hint="Delete one of them, or give it another name.",
        )  # fmt: skip
    table.columns = [normalize_name(strip_blanks(str(name))) for name in table.columns]
    table.index += n_lines_before
    stripped = table.apply(lambda column: column.fillna("").str.strip())
    plain = stripped if text.isascii() else stripped.map(strip_blanks)
    filled = plain != "" if len(table) else table.notna()
    unnamed = [not name for name in names] + [False] * (len(table.columns) - len(names))
    stripped = stripped.loc[filled.any(axis=1), filled.any(axis=0) | ~np.array(unnamed)]
    if stripped.empty:
        raise TableError(path, actual="no rows under the header", expected="at least one row")
    first_row = [cell.casefold() for cell in plain.loc[stripped.index[0]] if cell]
    if len(stripped) > 1 and len(first_row) > 1 and _TYPES.issuperset(first_row):
        raise TableError(
            f"{path}, row {stripped.index[0] + 2}",
            actual="types of the columns",
            expected="rows of values",
            hint="Delete the row.",
        )
    named = table.columns[~np.array(unnamed)].tolist()
    alone = _rows_of_one_cell(text, plain.loc[stripped.index], separator, n_lines_before)
    _check_separators(path, plain.loc[alone], len(stripped), separator)
    if row := _find_repeated_header(plain.loc[stripped.index, stripped.columns], named):
        raise TableError(
            f"{path}, row {row}",
            actual="the header again",
            expected="one header, in the first row",
            hint="If tables were joined, delete the header of each but the first.",
        )
    is_escaped = _ESCAPE in text or '="' in text  # else the slow look at every cell is spared
    return _map_cells(stripped, _unescape_formula) if is_escaped else stripped


def _rows_of_one_cell(
    text: str, table: pd.DataFrame, separator: str, n_lines_before: int
) -> list[int]:
    """Return the index of rows, shape (rows, columns), that have no separator at all.

    Empty cells with the separator of the header are a row's own, whatever its first cell holds.
    """
    if not (table.iloc[:, 1:] == "").all(axis=1).any() or table.shape[1] < 2:
        return []
    rows = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    numbers = [
        row - 1 + n_lines_before for row, cells in enumerate(rows) if row and len(cells) == 1
    ]
    return [number for number in numbers if number in table.index]


def _check_separators(path: Path, alone: pd.DataFrame, n_rows: int, separator: str) -> None:
    """Raise for rows of one cell, of ``n_rows``, that another separator would part.

    A single row of several may be a text with commas, and so may some of a table of two columns.
    """
    n_columns = alone.shape[1]
    for mark in ",;\t|":
        first = alone.iloc[:, 0]
        parted = first[first.str.count(re.escape(mark)) == n_columns - 1]
        is_all = len(parted) == n_rows
        if (n_columns > 2 and (is_all or len(parted) > 1)) or (is_all and len(parted) > 1):
            raise TableError(
                f"{path}, row {parted.index[0] + 2}",
                actual=f"one cell, {parted.iloc[0][:40]!r}",
                expected=f"{n_columns}, as in the header",
                hint="Delete the quotation marks around the row."
                if mark == separator
                else f"Put {separator!r} between its cells, as in the header, or {mark!r} into "
                "the header.",
            )


def _find_repeated_header(table: pd.DataFrame, names: Sequence[str]) -> int:
    """Return the line in the file of a row that names the named columns again; 0 if there is none.

    They may be in capitals, or in another order if one is a column of ids, as in a table that was
    joined to another. A single name must be the same, as an id may be like it.
    """
    header = [name.casefold() for name in names]
    in_any_order = any(column_key(name).endswith("_id") for name in names)
    is_first = table.columns.isin(names[:1])  # an index without a name may be before it
    likely = table[table.loc[:, is_first].map(str.casefold).isin(header).any(axis=1)]
    for index, *cells in likely.itertuples():
        filled = [normalize_name(cell) for cell in cells if cell]
        folded = [cell.casefold() for cell in filled]
        is_same = folded == header or (in_any_order and sorted(folded) == sorted(header))
        if is_same and (len(names) > 1 or filled == names):
            return int(index) + 2
    return 0


def write_table(path: Path, table: pd.DataFrame, *, float_format: str | None = None) -> None:
    """Write a table of shape (rows, columns) as CSV, whole or not at all, without its index.

    The same table gives the same bytes. A text that a spreadsheet would take for a formula, because
    it begins with ``=``, ``+``, ``-`` or ``@`` and is not a number, gets an apostrophe before it,
    which :func:`read_table` strips. Where a row would begin with ``#``, as comments do, texts are
    in quotation marks. ``float_format``, e.g. ``%.6g``, shortens numbers. Raises OutputError if the
    file cannot be written.
    """
    escaped = _map_cells(table, _escape_formula)
    marked = escaped.iloc[:, :1].map(lambda cell: str(cell).startswith("#")).any(axis=None)
    with atomic_write(path) as temporary:
        escaped.to_csv(
            temporary, index=False, float_format=float_format, lineterminator="\n",
            quoting=csv.QUOTE_NONNUMERIC if marked else csv.QUOTE_MINIMAL,
        )  # fmt: skip


def write_records(
    path: Path,
    records: Iterable[Mapping[str, object]],
    *,
    columns: Sequence[str],
    float_format: str,
) -> None:
    """Write rows, by name of the column, as :func:`write_table` does, but without loading pandas.

    Missing cells and NaN are empty; ``float_format``, e.g. ``%.6g``, shortens numbers.
    """
    rows = [[_cell_text(record.get(name), float_format) for name in columns] for record in records]
    marked = any(row[0].startswith("#") for row in rows)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(
            file, lineterminator="\n", quoting=csv.QUOTE_ALL if marked else csv.QUOTE_MINIMAL
        )
        writer.writerow(columns)
        writer.writerows(rows)


def _cell_text(value: object, float_format: str) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else float_format % value
    return "" if value is None else str(_escape_formula(value))


def _read_text(path: Path) -> str:
    """Text of a file, with plain line ends.

    Undeclared encodings are not guessed, because a wrong guess would change letters of an id.
    """
    try:
        content = path.read_bytes()
        _check_kind(path, content)
        text = content.decode(_encoding_of(content))
    except FileNotFoundError as error:
        raise TableError(path, actual="there is no such file", expected="a CSV table") from error
    except UnicodeDecodeError as error:
        line = len(content[: error.start + 1].splitlines())
        raise TableError(
            path,
            actual=f"line {line} is not UTF-8 text (byte {error.start})",
            expected="a CSV table",
            hint="Save it as CSV (UTF-8), which Excel offers besides plain CSV.",
        ) from error
    except IsADirectoryError as error:
        raise TableError(
            path, actual="a folder", expected="a CSV table", hint="Name the file in it."
        ) from error
    except OSError as error:
        raise TableError(path, actual=f"cannot be read ({error.strerror or error})") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _END_OF_FILE in text[-_MAX_AFTER_END:]:
        text = text[:-_MAX_AFTER_END] + _AFTER_END.sub("", text[-_MAX_AFTER_END:])
    if "\n" not in text.strip("\n"):  # all in one line, unless others of the breaks end lines
        text = _RARE_LINE_END.sub("\n", text)
    if (at := text.find("\0")) >= 0:
        raise TableError(
            f"{path}, row {text.count(chr(10), 0, at) + 1}",
            actual="a zero byte, which no text has",
            expected="a CSV table",
            hint="The file is damaged or of another kind: export it again.",
        )
    return text


def _check_kind(path: Path, content: bytes) -> None:
    """Raise for a file of another kind, whose text would be taken for a table or for damaged."""
    kind, hint = find_foreign_kind(content[:START_BYTES])
    if not kind:
        found = (of for beginnings, *of in _NO_TABLES if content.startswith(beginnings))
        kind, hint = next(found, ("", ""))
    if kind:
        raise TableError(path, actual=f"{kind}, no table", expected="a CSV table", hint=hint)


def _encoding_of(content: bytes) -> str:
    """Return UTF-32, UTF-16 or UTF-8; without a mark, UTF-16 shows itself by the zeros it has.

    Other encodings are not recognised.
    """
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = content[:64]
    for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if zeros and not any(zeros) and start.count(0) == len(zeros):
            return encoding
    return "utf-8-sig"


def _split_preamble(text: str) -> tuple[str, int, str]:
    """Return the text from its header on, the number of lines before, and a stated separator."""
    plain = text.lstrip("\ufeff").lstrip("\n")
    stated = _SEPARATOR_LINE.match(plain)
    content = plain[stated.end() :].lstrip("\n") if stated else plain
    n_before = text.count("\n") - content.count("\n")
    return content, n_before, stated[1].replace("\\t", "\t") if stated else ""


def _check_comments(path: Path, text: str, separator: str, n_lines_before: int) -> None:
    """Raise for a row that begins with ``#``, as others do not: a comment would count as a row."""
    if not _MARKED_LINE.search(text):
        return
    rows = [row for row in _ROW.finditer(text) if row[0].strip()][1:]
    marked = [row for row in rows if row[0].lstrip().startswith("#")]
    comments = [row for row in marked if not is_missing_word(row[0].split(separator)[0])]
    if comments and len(marked) < len(rows):
        number = text.count("\n", 0, comments[0].start()) + n_lines_before + 1
        raise TableError(
            f"{path}, row {number}",
            actual=f"{comments[0][0].strip()[:40]!r}, which begins with # as a comment does",
            expected="rows of cells, as tables have no comments",
            hint="Delete the line; if it begins with an id, put quotation marks around the id.",
        )


def _check_row_lengths(path: Path, text: str, separator: str) -> None:
    """Raise an error for a row with more cells than the header, except empty ones at its end."""
    n_columns = 0
    rows = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    for number, cells in enumerate(rows, start=1):
        n_columns = n_columns or len(cells)
        if any(cell.strip() for cell in cells[n_columns:]):
            if rare := _RARE_LINE_END.search(separator.join(cells).strip()):
                hint = f"Replace U+{ord(rare[0]):04X}, which is in it, by the end of a line."
            elif n_columns == 1:
                hint = f"If row {number} is the header, delete what is above it."
            elif (number, len(cells)) == (2, n_columns + 1) and cells[0].strip() in {"0", "1"}:
                hint = "If rows begin with their numbers, put a name for these before the header."
            else:
                hint = f"Put quotation marks around cells that contain {separator!r}."
            raise TableError(
                f"{path}, row {number}",
                actual=f"{len(cells)} cells",
                expected=f"{n_columns}, as in the header",
                hint=hint,
            )


def find_column(
    table: pd.DataFrame,
    names: Sequence[str],
    *,
    where: object,
    what: str,
    option: str = "",
    otherwise: str = "",
) -> str:
    """Return the first of ``names`` that is a column of ``table``, shape (rows, columns).

    ``Image_ID``, ``image id`` and ``imageId`` are spellings of ``image_id``. Raises TableError if
    there is none, or two with different cells are spellings of it: the message names the file
    ``where``, ``what`` the column contains, all columns, the one that may be meant, and the row
    that looks like the header. ``option`` is that of every command that reads such a table by
    which a column can be named, such as ``--column label={}``, with braces for its name;
    ``otherwise`` is the advice where no column is like it.
    """
    columns = [str(column) for column in table.columns]
    for name in (*(name for name in names if name in columns), *names):
        same = [column for column in columns if column_key(column) == column_key(name)]
        if name in same and all(table[column].equals(table[name]) for column in same):
            return name
        if len(same) > 1:
            raise TableError(
                where,
                actual=f"columns {' and '.join(map(repr, same))}",
                expected=f"one column of {what}",
                hint="Rename or delete one in the table"
                + (f", or name one with {option.format(shlex.quote(same[0]))}." if option else "."),
            )
        if same:
            return same[0]
    raise TableError(
        where,
        actual=f"no column {' or '.join(map(repr, names))} among {list_columns(table)}",
        expected=what,
        hint=_missing_column_hint(table, names, option) or otherwise,
    )


def _missing_column_hint(table: pd.DataFrame, names: Sequence[str], option: str) -> str:
    """Return which column may be meant by ``names``, or why the header has none; or nothing."""
    columns = [str(column) for column in table.columns]
    if all(map(_QUOTED_OTHERWISE.fullmatch, columns)):
        return 'Put the quotation marks " around cells, or none.'
    if near := suggest_column(columns, names):
        with_option = f", or name it with {option.format(shlex.quote(near))}" if option else ""
        return f"Did you mean {near!r}? Rename it in the table{with_option}."
    if row := _find_header(table, names):
        return f"Row {row} looks like the header: make it the first row."
    if all(map(str.isdecimal, columns)) or any((table[name] == name).any() for name in columns):
        return "The first row looks like values: write the names of the columns above it."
    if len(columns) == 1 and re.search(r"[,;\t|]", columns[0]):
        return "Delete quotation marks around whole rows, and a line sep= of another separator."
    marks = set(re.findall(r"[^\w.-]", columns[0])) if len(columns) == 1 else ()
    is_one_row = any(table[columns[0]].str.contains(mark, regex=False).all() for mark in marks)
    return "Put commas, semicolons or tabs between the cells." if is_one_row else ""


def find_optional_column(table: pd.DataFrame, name: str, *, where: object) -> str:
    """Return the column of a table, shape (rows, columns), of this name; empty without one.

    Spellings count as for :func:`find_column`, and TableError is raised for two of them.
    """
    if name not in map(column_key, table.columns):
        return ""
    return find_column(table, [name], where=where, what=f"{name!r}")


def find_listed_file(table: Path, row: int, text: str, *, expected: str) -> Path:
    """Return the file or folder that a cell names, from the folder of its table on.

    Names are compared in one form of Unicode, and a path may have the separators of Windows. Raises
    TableError if there is none; the message names the row and the nearest name in the folder.
    """
    found = table.parent
    for part in stated_path(table, text).parts:
        found = _find_name(found, part)
    if path_exists(found):
        return found
    path = table.parent / text
    near: Sequence[str] = ()
    with suppress(OSError):
        near = nearest_names(path.name, [one.name for one in path.parent.iterdir()], n=1)
    raise TableError(
        f"{table}, row {row}",
        actual=f"no file {path}",
        expected=expected,
        hint=f"Did you mean {near[0]!r}?"
        if near
        else "Paths are relative to the folder of the table.",
    )


def stated_path(table: Path, text: str) -> Path:
    """Return the path that a cell states; one with separators of Windows, unless it exists as is.

    It is relative to the folder of its table.
    """
    return Path(text if path_exists(table.parent / text) else text.replace("\\", "/"))


def _find_name(folder: Path, name: str) -> Path:
    """Return the path of a name in a folder, in the form of Unicode in which it is there."""
    for form in dict.fromkeys((name, *(unicodedata.normalize(to, name) for to in ("NFC", "NFD")))):
        if path_exists(folder / form):
            return folder / form
    with suppress(OSError):  # one name may mix both forms; folders of many files are slow to list
        for one in folder.iterdir():
            if normalize_name(one.name) == normalize_name(name):
                return one
    return folder / name


def list_columns(table: pd.DataFrame) -> str:
    """Return the names of the columns of a table, shape (rows, columns), the first of very many."""
    names = [str(column) for column in table.columns]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _find_header(table: pd.DataFrame, names: Sequence[str]) -> int:
    """Return the line in the file of a row that holds the name of a column; 0 if there is none."""
    wanted = set(map(column_key, names))
    ends = table if len(table) <= 2 * _MOST_ABOVE else table.iloc[[*range(_MOST_ABOVE), -1]]
    for index, *cells in ends.itertuples():
        if wanted.intersection(map(column_key, map(str, cells))):
            return int(index) + 2
    return 0


def suggest_column(columns: Sequence[str], names: Sequence[str]) -> str:
    """Return the column that may be meant by ``names``: of the same meaning, or alike; or none."""
    plain = {column: column_key(column) for column in columns}
    wanted = [column_key(name) for name in names]
    groups = (_PATHS,) if "path" in wanted else _SYNONYMS
    meaning = frozenset().union(*(group for group in groups if group & set(wanted)))
    of_meaning = [column for column in columns if plain[column] in meaning]
    if of_meaning:
        return of_meaning[0]
    for name in wanted:
        alike = {c: difflib.SequenceMatcher(None, plain[c], name).ratio() for c in columns}
        best = max(columns, key=alike.__getitem__, default="")  # of slide_1 and slide_2, the first
        if best and alike[best] >= _MIN_SIMILARITY:
            return best
    return ""


def column_key(column: str) -> str:
    """Return a key that is equal for spellings of one column's name, such as ``imageId``."""
    column = shown_form(column)
    for pattern, replacement in _WORDS:
        column = pattern.sub(replacement, column)
    return column.casefold().strip("_#")


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
    if not isinstance(value, str):
        return value
    if value.startswith(_ESCAPE) and _FORMULA.match(value):
        return value.removeprefix(_ESCAPE)
    if value.startswith("=") and (text := _TEXT_FORMULA.fullmatch(value)):
        return text[1].strip()
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
