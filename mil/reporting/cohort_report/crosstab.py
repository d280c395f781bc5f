"""How often each label occurs, over all and by centre or image number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.utils.text import natural_key
from mil.reporting.cohort_report.slides import SlideBag
from mil.reporting.cohort_report.table import SlideTable

__all__ = ["Crosstab", "Level", "TileCount", "count_by", "count_tiles"]

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


@dataclass(frozen=True, kw_only=True)
class TileCount:
    """Tiles and tissue of one group."""

    group: str
    """Label or centre."""
    n_slides: int
    """Slides that have a bag."""
    n_patients: int
    """Patients of whom a slide has a bag."""
    n_tiles: int
    """Tiles of all these slides."""
    tiles_a_slide: float
    """Median over slides; NaN without any."""
    tiles_a_patient: float
    """Median over patients, each with all its slides; NaN without any."""
    tissue_share: float
    """Median over slides of the share that is tissue inside tiles, 0 to 1; NaN without any."""


def count_tiles(table: SlideTable, bags: Mapping[str, SlideBag], *, by: str) -> list[TileCount]:
    """Count tiles of slides and patients by the values of a column.

    Parameters
    ----------
    table
        Slides and patients.
    bags
        Bags by slide id.
    by
        ``label`` or ``centre``: of a slide its own, of a patient the one that all its slides share.
    """
    slides = table.slides[table.slides["slide"].isin(list(bags))]
    slides = slides.assign(
        n_tiles=[bags[name].n_tiles for name in slides["slide"]],
        tissue=[bags[name].tissue_share for name in slides["slide"]],
    )
    sums = slides.groupby("patient")["n_tiles"].sum()
    patients = table.patients[table.patients["patient"].isin(sums.index)]
    patients = patients.assign(n_tiles=patients["patient"].map(sums))
    names = sorted({*slides[by], *patients[by]}, key=natural_key)
    return [
        _count(name, slides[slides[by] == name], patients[patients[by] == name]) for name in names
    ]


def _count(group: str, slides: pd.DataFrame, patients: pd.DataFrame) -> TileCount:
    return TileCount(
        group=group,
        n_slides=len(slides),
        n_patients=len(patients),
        n_tiles=int(slides["n_tiles"].sum()),
        tiles_a_slide=float(slides["n_tiles"].median()),
        tiles_a_patient=float(patients["n_tiles"].median()),
        tissue_share=float(slides["tissue"].median()),
    )
