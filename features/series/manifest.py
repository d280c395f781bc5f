"""Which images make up which bag: from a table, or from a folder of folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from features.bags.h5 import bag_path
from features.errors import TableError
from features.utils.files import path_exists
from features.utils.tables import find_column, read_table
from features.utils.text import natural_key

__all__ = ["SeriesEntry", "SeriesSpec", "read_series"]

_BAG_COLUMNS = ("bag_id", "scan_id", "series_id", "slide_id")
_PATH_COLUMNS = ("path", "instance_path", "file")


@dataclass(frozen=True, kw_only=True)
class SeriesEntry:
    """A file or folder of images that belongs to a bag."""

    path: Path
    """Where it lies."""
    source: str
    """What the bag calls it: as in the table, or its name where that is an absolute path."""
    order: float | None = None
    """Its place among the images of the bag; None where the table has no order."""


@dataclass(frozen=True, kw_only=True)
class SeriesSpec:
    """What becomes one bag."""

    bag_id: str
    """Name of the bag."""
    listed: tuple[SeriesEntry, ...]
    """Its files and folders, in the order of the table."""


def read_series(path: Path) -> tuple[SeriesSpec, ...]:
    """Bags to be made, from a CSV table, or from a folder with one folder a bag.

    The table has one row an image, with the columns ``bag_id`` (or ``scan_id``, ``series_id``,
    ``slide_id``) and ``path``, and optionally ``order`` and ``patient_id``. A path may be a folder;
    then all images in it are meant. Relative paths count from the table's folder.

    Parameters
    ----------
    path
        The table or the folder.

    Raises
    ------
    TableError
        If a column or value is missing, an order is no number or stands there twice in a bag, a
        path twice, or a bag has several patients.
    BagError
        If a bag id cannot be the name of a file.
    """
    specs = _read_folder(path) if path.is_dir() else _read_rows(path)
    for spec in specs:
        bag_path(Path(), spec.bag_id)  # refused before hours of work
    return specs


def _read_folder(folder: Path) -> tuple[SeriesSpec, ...]:
    inside = [each for each in folder.iterdir() if not each.name.startswith(".")]
    folders = sorted((p for p in inside if p.is_dir()), key=lambda p: natural_key(p.name))
    if not folders:
        folders = [folder] if inside else []
    if not folders:
        raise TableError(folder, actual="an empty folder", expected="one folder of images a bag")
    return tuple(
        SeriesSpec(bag_id=each.resolve().name, listed=(SeriesEntry(path=each, source=each.name),))
        for each in folders
    )


def _read_rows(path: Path) -> tuple[SeriesSpec, ...]:
    table = read_table(path)
    bag_column = find_column(table, _BAG_COLUMNS, where=path, what="the bag of each image")
    path_column = find_column(table, _PATH_COLUMNS, where=path, what="a file of each image")
    for column in (bag_column, path_column):
        _refuse_empty(path, table, column)
    if "patient_id" in table:
        _refuse_two_patients(path, table, bag_column)
    table = table.assign(_row=range(2, len(table) + 2))
    specs = []
    for bag_id, rows in table.groupby(bag_column, sort=False):
        listed = [
            _listed(path, text, order, int(row))
            for text, order, row in zip(
                rows[path_column],
                rows["order"] if "order" in rows else [""] * len(rows),
                rows["_row"],
                strict=True,
            )
        ]
        _refuse_twice(path, str(bag_id), listed)
        specs.append(SeriesSpec(bag_id=str(bag_id), listed=tuple(listed)))
    return tuple(specs)


def _listed(table: Path, text: str, order: str, row: int) -> SeriesEntry:
    where = table.parent / text
    if not path_exists(where):
        raise TableError(f"{table}, row {row}", actual=f"no file {where}", expected="an image")
    source = where.name if Path(text).is_absolute() or ".." in Path(text).parts else text
    return SeriesEntry(path=where, source=source, order=_number(table, order, row))


def _number(table: Path, text: str, row: int) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise TableError(f"{table}, row {row}", actual=f"order {text!r}", expected="a number")
    return number


def _refuse_empty(path: Path, table: pd.DataFrame, column: str) -> None:
    empty = table.index[table[column] == ""]
    if len(empty):
        raise TableError(f"{path}, row {empty[0] + 2}", actual=f"no {column}", expected="a value")


def _refuse_two_patients(path: Path, table: pd.DataFrame, bag_column: str) -> None:
    counts = table.groupby(bag_column, sort=False)["patient_id"].nunique()
    if (counts > 1).any():
        bag = counts.index[counts > 1][0]
        raise TableError(
            path, actual=f"bag {bag!r} has {counts[bag]} patients", expected="one patient a bag"
        )


def _refuse_twice(path: Path, bag_id: str, listed: Sequence[SeriesEntry]) -> None:
    orders = [each.order for each in listed if each.order is not None]
    if orders and len(orders) < len(listed):
        raise TableError(
            path, actual=f"bag {bag_id!r} has an order for {len(orders)} of {len(listed)} images",
            expected="one for each, or none",
        )  # fmt: skip
    for what, values in (("order", orders), ("path", [each.path for each in listed])):
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)  # type: ignore[arg-type]
            raise TableError(
                path, actual=f"bag {bag_id!r} has {what} {twice} more than once", expected="once"
            )
