"""Series of images to embed, listed by a table or a folder of folders."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from features.bags.h5 import bag_path
from features.errors import TableError
from features.utils.tables import (
    find_column,
    find_listed_file,
    find_optional_column,
    read_table,
)
from features.utils.text import natural_key, normalize_name

__all__ = ["SeriesEntry", "SeriesSpec", "read_series"]

_BAG_COLUMNS = ("bag_id", "scan_id", "series_id", "slide_id")
_PATH_COLUMNS = ("path", "instance_path", "file")


@dataclass(frozen=True, kw_only=True)
class SeriesEntry:
    """A file or folder of images that belongs to a bag.

    ``source`` is its name in the bag: as in the table, or the file name if that is an absolute
    path. ``order`` is None if the table has no order.
    """

    path: Path
    source: str
    order: float | None = None


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """Files and folders that become one bag, in the order of the table."""

    bag_id: str
    entries: tuple[SeriesEntry, ...]

    def absolute(self) -> SeriesSpec:
        """Return a copy with paths that are valid in other working directories."""
        entries = (replace(entry, path=entry.path.absolute()) for entry in self.entries)
        return replace(self, entries=tuple(entries))


def read_series(path: Path) -> tuple[SeriesSpec, ...]:
    """Read the series to embed from a CSV table, or from a folder with one folder per bag.

    The table has one row per image, with the columns ``bag_id`` (or ``scan_id``, ``series_id``,
    ``slide_id``) and ``path``, and optionally ``order`` and ``patient_id``. A path may be a folder,
    which stands for all images in it. Relative paths start at the table's folder.

    Raises
    ------
    TableError
        If a column or value is missing, an order is not a number or occurs twice in a bag, a path
        occurs twice, or a bag has several patients.
    BagError
        If a bag id cannot be the name of a file.
    """
    specs = _read_folder(path) if path.is_dir() else _read_rows(path)
    for spec in specs:
        bag_path(Path(), spec.bag_id)  # An invalid name must fail before hours of work.
    return specs


def _read_folder(folder: Path) -> tuple[SeriesSpec, ...]:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if not visible:
        raise TableError(folder, actual="an empty folder", expected="one folder of images per bag")
    folders = [path for path in visible if path.is_dir()]
    return tuple(
        SeriesSpec(bag_id=path.resolve().name, entries=(SeriesEntry(path=path, source=path.name),))
        for path in sorted(folders, key=lambda path: natural_key(path.name)) or [folder]
    )


def _read_rows(path: Path) -> tuple[SeriesSpec, ...]:
    table = read_table(path)
    bag_column = find_column(table, _BAG_COLUMNS, where=path, what="the bag of each image")
    path_column = find_column(table, _PATH_COLUMNS, where=path, what="a file of each image")
    for column in (bag_column, path_column):
        _check_filled(path, table, column)
    bags = table[bag_column].map(normalize_name)
    if patient_column := find_optional_column(table, "patient_id", where=path):
        _check_one_patient(path, bags, table[patient_column].map(normalize_name))
    order_column = find_optional_column(table, "order", where=path)
    orders = table[order_column] if order_column else [""] * len(table)
    entries: dict[str, list[SeriesEntry]] = {}
    columns = zip(table.index + 2, bags, table[path_column], orders, strict=True)
    for row, bag_id, text, order in columns:
        entries.setdefault(bag_id, []).append(_entry(path, text, order, row))
    for bag_id, listed in entries.items():
        _check_distinct(path, bag_id, listed)
    return tuple(
        SeriesSpec(bag_id=bag_id, entries=tuple(listed)) for bag_id, listed in entries.items()
    )


def _entry(table: Path, text: str, order: str, row: int) -> SeriesEntry:
    path = find_listed_file(table, row, text, expected="an image")
    source = path.name if Path(text).is_absolute() or ".." in Path(text).parts else text
    return SeriesEntry(path=path, source=source, order=_parse_order(table, order, row))


def _parse_order(table: Path, text: str, row: int) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TableError(f"{table}, row {row}", actual=f"order {text!r}", expected="a number")
    return number


def _check_filled(path: Path, table: pd.DataFrame, column: str) -> None:
    empty = table.index[table[column] == ""]
    if len(empty):
        raise TableError(f"{path}, row {empty[0] + 2}", actual=f"no {column}", expected="a value")


def _check_one_patient(path: Path, bags: pd.Series[str], patients: pd.Series[str]) -> None:
    counts = patients.groupby(bags, sort=False).nunique()
    if (counts > 1).any():
        bag = counts.index[counts > 1][0]
        raise TableError(
            path, actual=f"bag {bag!r} has {counts[bag]} patients", expected="one patient per bag"
        )


def _check_distinct(path: Path, bag_id: str, entries: Sequence[SeriesEntry]) -> None:
    orders = [entry.order for entry in entries if entry.order is not None]
    if orders and len(orders) < len(entries):
        raise TableError(
            path, actual=f"bag {bag_id!r} has an order for {len(orders)} of {len(entries)} images",
            expected="one for each, or none",
        )  # fmt: skip
    columns: dict[str, list[Any]] = {"order": orders, "path": [entry.path for entry in entries]}
    for name, values in columns.items():
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise TableError(
                path, actual=f"bag {bag_id!r} has {name} {repeated[0]} more than once",
                expected="once",
            )  # fmt: skip
