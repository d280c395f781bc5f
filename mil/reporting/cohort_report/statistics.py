"""Statistics of a cohort: counts per group, distribution of variables, comparison of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import mannwhitneyu

from features.bags.digest import BagDigest
from features.utils.text import natural_key
from mil.reporting.cohort_report.slides import Variable
from mil.reporting.cohort_report.table import SlideTable

__all__ = [
    "ClassDifference",
    "Crosstab",
    "Level",
    "Statistics",
    "TileCount",
    "count_by",
    "count_tiles",
    "group_test",
    "statistics",
]

Level = Literal["slides", "patients"]
Floats = npt.NDArray[np.float64]
_MIN_CLASS_SIZE = 5


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


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Distribution of one variable over the slides of one group."""

    measure: str
    unit: str
    group: str
    """A label, or ``all``."""
    n: int
    """Number of slides for which it is known."""
    n_missing: int
    mean: float
    sd: float
    """Standard deviation of the sample."""
    least: float
    q1: float
    median: float
    q3: float
    most: float
    n_outliers: int
    """Values beyond 1.5 interquartile ranges from the quartiles (Tukey, 1977)."""


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """Comparison of one variable between two classes, by patient."""

    measure: str
    """Variable; the value of a patient is the median over its slides."""
    classes: tuple[str, str]
    medians: tuple[float, float]
    """Median over the patients of each class."""
    auroc: float
    """Probability that a patient of the second class has a higher value than one of the first."""
    p_value: float
    """Two-sided p-value of the Mann-Whitney U test (1947)."""
    n_patients: tuple[int, int]
    """Number of patients per class for which it is known."""


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


def count_tiles(table: SlideTable, bags: Mapping[str, BagDigest], *, by: str) -> list[TileCount]:
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


def statistics(variable: Variable, table: SlideTable) -> Iterator[Statistics]:
    """Yield statistics over all slides, and over those of each label if there are several."""
    labels = table.slides["label"].to_numpy()
    yield _describe(variable, np.ones(len(labels), np.bool_), "all")
    if len(table.classes) > 1:
        for name in table.classes:
            yield _describe(variable, labels == name, name)


def group_test(variable: Variable, table: SlideTable) -> ClassDifference | None:
    """Compare two classes; None unless there are two, with five known patients each."""
    if len(table.known_classes) != 2:
        return None
    one, other = table.known_classes
    medians = (
        table.slides
        .assign(value=variable.values)
        .dropna(subset=["value"])
        .groupby("patient")["value"].median()
        .reindex(table.patients["patient"])
        .to_numpy(np.float64)
    )  # fmt: skip
    labels = table.patients["label"].to_numpy()
    first, second = (medians[(labels == c) & np.isfinite(medians)] for c in (one, other))
    if min(len(first), len(second)) < _MIN_CLASS_SIZE or not variable.varies:
        return None
    test = mannwhitneyu(second, first)
    return ClassDifference(
        measure=variable.name,
        classes=(one, other),
        medians=(float(np.median(first)), float(np.median(second))),
        auroc=float(test.statistic) / (len(first) * len(second)),
        p_value=float(test.pvalue),
        n_patients=(len(first), len(second)),
    )


def _describe(variable: Variable, rows: npt.NDArray[np.bool_], group: str) -> Statistics:
    values = np.compress(rows, variable.values)
    known = values[np.isfinite(values)]
    if not len(known):
        known = np.array([np.nan])
    least, q1, median, q3, most = np.percentile(known, [0, 25, 50, 75, 100]).tolist()
    whisker = 1.5 * (q3 - q1)
    return Statistics(
        measure=variable.name,
        unit=variable.unit,
        group=group,
        n=int(np.isfinite(values).sum()),
        n_missing=int((~np.isfinite(values)).sum()),
        mean=float(known.mean()),
        sd=float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
        least=least,
        q1=q1,
        median=median,
        q3=q3,
        most=most,
        n_outliers=int(((known < q1 - whisker) | (known > q3 + whisker)).sum()),
    )
