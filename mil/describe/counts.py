"""How often each label occurs, over all and by centre or image number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mil.describe.table import natural_key

__all__ = ["Crosstab", "Level", "count_by"]

Level = Literal["slides", "patients"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Crosstab:
    """Counts of labels by something else."""

    by: str
    """What the rows are, e.g. ``centre``."""
    level: Level
    """What is counted."""
    names: tuple[str, ...]
    """Values of ``by``, in natural order."""
    classes: tuple[str, ...]
    """Labels, as everywhere on the page."""
    counts: npt.NDArray[np.int64]
    """Shape (names, classes)."""

    @property
    def totals(self) -> npt.NDArray[np.int64]:
        """Sum of each row, shape (names,); at least 1."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Shares of labels in each row, shape (names, classes); rows sum to 1."""
        return np.asarray(self.counts / self.totals[:, None])

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Counts by row and label."""
        return {
            name: dict(zip(self.classes, row, strict=True))
            for name, row in zip(self.names, self.counts.tolist(), strict=True)
        }


def count_by(column: str, frame: pd.DataFrame, *, classes: Sequence[str], level: Level) -> Crosstab:
    """Count labels by the values of a column; empty cells are not counted.

    Parameters
    ----------
    column
        A column of ``frame``.
    frame
        One row a slide or patient, with a column ``label``.
    classes
        Labels, which set the order.
    level
        What the rows of ``frame`` are.
    """
    filled = frame[frame[column].astype(str) != ""]
    table = pd.crosstab(filled[column].astype(str), filled["label"])
    names = sorted(table.index, key=natural_key)
    ordered = table.reindex(index=names, columns=list(classes), fill_value=0)
    return Crosstab(
        by={"n_slides": "slides of a patient", "image": "image number"}.get(column, column),
        level=level,
        names=tuple(names),
        classes=tuple(classes),
        counts=ordered.to_numpy(np.int64),
    )
