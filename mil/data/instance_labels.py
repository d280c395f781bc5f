"""Labels of single images of series: they score the attention, and may teach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from features.utils.tables import find_column, read_table
from mil.data.cohort import without_suffix
from mil.errors import CohortError

__all__ = ["InstanceLabels", "read_instance_labels"]

InstanceLabels = Mapping[tuple[str, str], int]
"""1 for images that show something, 0 for the others, by bag and source."""


def read_instance_labels(path: Path, names: Sequence[str]) -> dict[tuple[str, str], int]:
    """Labels of single images: ``slide_id`` (or ``bag_id``), ``source`` (or ``path``), 0 or 1.

    Parameters
    ----------
    path
        CSV table; sources are those that bags name, see ``docs/reference/bag.md``.
    names
        Columns that may hold the label, preferred first.

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
    label = find_column(table, names, where=path, what="0 or 1 for each image")
    odd = ~table[label].isin(["0", "1"])
    if odd.any():
        row = int(table.index[odd][0])
        raise CohortError(
            f"{path}, row {row + 2}", actual=f"{label} is {table[label][row]!r}", expected="0 or 1"
        )
    keys = list(zip(table[bag].map(without_suffix), table[source], strict=True))
    answers = table[label].astype(int).tolist()
    found = dict(zip(keys, answers, strict=True))
    for row, (key, answer) in enumerate(zip(keys, answers, strict=True)):
        if found[key] != answer:
            raise CohortError(
                f"{path}, row {row + 2}", actual=f"{label} of image {key[1]!r} is 0 and 1",
                expected="one answer an image",
            )  # fmt: skip
    return found
