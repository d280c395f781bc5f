"""Cross tabulation: labels, tiles and tissue by centre, label or another column."""

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
    """Counts of slides or patients per label and group."""

    by: str
    """Grouping of the rows, e.g. ``centre``."""
    level: Level
    names: tuple[str, ...]
    """Groups in natural order."""
    classes: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    """Shape (names, classes)."""

    @property
    def totals(self) -> npt.NDArray[np.int64]:
        """Sum of each row, shape (names,); at least 1."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each label in each row, shape (names, classes); rows sum to 1."""
        return np.asarray(self.counts / self.totals[:, None])

    def as_dict(self) -> dict[str, dict[str, int]]:
        """Return counts by row and label."""
        return {
            name: dict(zip(self.classes, row, strict=True))
            for name, row in zip(self.names, self.counts.tolist(), strict=True)
        }


@dataclass(frozen=True, kw_only=True)
class TileCount:
    """Number of tiles and amount of tissue in one group of slides with a bag."""

    group: str
    """Label or centre."""
    n_slides: int
    n_patients: int
    n_tiles: int
    tiles_a_slide: float
    """Median over slides; NaN if there are none."""
    tiles_a_patient: float
    """Median over patients, each with all its slides; NaN if there are none."""
    tissue_share: float
    """Median over slides of the share of tissue inside tiles, 0 to 1; NaN if there are none."""


def count_by(column: str, frame: pd.DataFrame, *, classes: Sequence[str], level: Level) -> Crosstab:
    """Count labels by the values of a column, without empty cells.

    Parameters
    ----------
    column
        A column of ``frame``.
    frame
        One row per slide or patient, with a column ``label``.
    classes
        Labels in the order of the result's columns.
    level
        Unit of the rows of ``frame``.
    """
    values = frame[column].astype(str)
    counts = pd.crosstab(values[values != ""], frame["label"])
    counts = counts.reindex(
        index=sorted(counts.index, key=natural_key), columns=list(classes), fill_value=0
    )
    return Crosstab(
        by={"n_slides": "slides of a patient", "image": "image number"}.get(column, column),
        level=level,
        names=tuple(counts.index),
        classes=tuple(classes),
        counts=counts.to_numpy(np.int64),
    )


def count_tiles(table: SlideTable, bags: Mapping[str, SlideBag], *, by: str) -> list[TileCount]:
    """Count the tiles of slides and patients per group, in natural order.

    Parameters
    ----------
    table
        Slides and patients.
    bags
        Bags by slide id.
    by
        ``label`` or ``centre``, of each slide, and of each patient if all its slides agree.
    """
    slides = table.slides[table.slides["slide"].isin(list(bags))]
    slides = slides.assign(
        n_tiles=[bags[name].n_tiles for name in slides["slide"]],
        tissue=[bags[name].tissue_share for name in slides["slide"]],
    )
    sums = slides.groupby("patient")["n_tiles"].sum()
    patients = table.patients[table.patients["patient"].isin(sums.index)]
    patients = patients.assign(n_tiles=patients["patient"].map(sums))
    counts = []
    for group in sorted({*slides[by], *patients[by]}, key=natural_key):
        own, own_patients = slides[slides[by] == group], patients[patients[by] == group]
        counts.append(
            TileCount(
                group=group,
                n_slides=len(own),
                n_patients=len(own_patients),
                n_tiles=int(own["n_tiles"].sum()),
                tiles_a_slide=float(own["n_tiles"].median()),
                tiles_a_patient=float(own_patients["n_tiles"].median()),
                tissue_share=float(own["tissue"].median()),
            )
        )
    return counts
