"""Labels of single images of series, to train and to evaluate attention."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from features.utils.tables import find_column, read_table
from features.utils.text import list_names, normalize_name, pluralize
from mil.data.cohort import without_suffix
from mil.errors import CohortError

__all__ = ["ZERO_OR_ONE", "InstanceLabels", "describe_unmatched", "read_instance_labels"]

ZERO_OR_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""Meaning of cells of a label, in small letters; pandas writes 1.0 where a column had gaps."""

InstanceLabels = Mapping[tuple[str, str], int]
"""1 for positive images, 0 for negative ones, by bag and source, both composed (NFC)."""


def read_instance_labels(path: Path, names: Sequence[str]) -> dict[tuple[str, str], int]:
    """Read labels of images: ``slide_id`` (or ``bag_id``), ``source`` (or ``path``), 0 or 1.

    Sources are named as in bags, see ``docs/reference/bag.md``. ``names`` are columns that may hold
    the label, preferred first.

    Raises
    ------
    TableError
        If a column is missing.
    CohortError
        If a label is neither 0 nor 1, or one image has both.
    """
    table = read_table(path)
    bag = find_column(table, ["slide_id", "bag_id", "scan_id"], where=path, what="bag ids")
    source = find_column(table, ["source", "path", "file"], where=path, what="files of images")
    column = find_column(table, names, where=path, what="0 or 1 for each image")
    values = table[column].str.lower().map(ZERO_OR_ONE)
    invalid = values.isna()
    if invalid.any():
        row = int(table.index[invalid][0])
        raise CohortError(
            f"{path}, row {row + 2}", actual=f"{column} is {table[column][row]!r}",
            expected="0 or 1",
        )  # fmt: skip
    labels: dict[tuple[str, str], int] = {}
    keys = zip(table[bag].map(without_suffix), table[source].map(normalize_name), strict=True)
    for row, key, label in zip(table.index, keys, values.astype(int).tolist(), strict=True):
        if labels.setdefault(key, label) != label:
            raise CohortError(
                f"{path}, row {row + 2}", actual=f"{column} of image {key[1]!r} is 0 and 1",
                expected="one label per image",
            )  # fmt: skip
    return labels


def describe_unmatched(
    labels: Iterable[tuple[str, str]], images: Collection[tuple[str, str]]
) -> tuple[str, ...]:
    """Return notes on labels of other bags, and of images that their bags do not hold.

    Both are keys of :data:`InstanceLabels`.
    """
    unmatched = [key for key in labels if key not in images]
    bags = {bag for bag, _ in images}
    others = list(dict.fromkeys(bag for bag, _ in unmatched if bag not in bags))
    unknown = [f"{bag}/{source}" for bag, source in unmatched if bag in bags]
    notes = []
    if others:
        count = pluralize(len(others), "bags")
        notes.append(f"labels of images of {count} that are not read: {list_names(others)}")
    if unknown:
        count = pluralize(len(unknown), "images")
        notes.append(f"labels of {count} that their bags do not hold: {list_names(unknown)}")
    return tuple(notes)
