"""Tiles and tissue by label and by centre, of slides and of patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mil.describe.slides import SlideBag
from mil.describe.table import SlideTable, natural_key

__all__ = ["TileCount", "count_tiles"]


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
