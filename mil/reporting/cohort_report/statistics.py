"""Statistics of a cohort: variables per slide, counts per group, comparison of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from features.bags.digest import BagDigest
from features.utils.text import natural_key
from mil.arrays import Bools, Floats, Ints
from mil.reporting.cohort_report.table import SlideHeader, SlideTable

__all__ = [
    "ClassDifference",
    "Crosstab",
    "Level",
    "Statistics",
    "TileCount",
    "Variable",
    "bag_variables",
    "count_by",
    "count_tiles",
    "group_test",
    "header_variables",
    "statistics",
]

Level = Literal["slides", "patients"]
_MIN_CLASS_SIZE = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One number per slide, shape (slides,), float64, in the order of the table's slides.

    Unknown values are NaN; the unit (px, µm/px, ...) is empty for a ratio or count. ``log`` asks
    for a logarithmic axis.
    """

    name: str
    unit: str
    values: Floats
    log: bool = False

    @property
    def label(self) -> str:
        """``width (px)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def varies(self) -> bool:
        """Whether any two known values, shape (slides,), differ."""
        known = self.values[np.isfinite(self.values)]
        return len(known) > 1 and bool(np.ptp(known) > 0)


def header_variables(
    headers: Mapping[str, SlideHeader], slide_ids: Sequence[str]
) -> tuple[Variable, ...]:
    """Return size, aspect ratio and resolution (µm/px), with values of shape (slides,)."""
    known = [headers.get(slide_id) for slide_id in slide_ids]
    rows = [(h.width_px0, h.height_px0, h.file_bytes, h.mpp) if h else (None,) * 4 for h in known]
    width, height, n_bytes, mpp = np.array(rows, np.float64).reshape(-1, 4).T  # None becomes NaN
    return _known(
        Variable(name="width", unit="px", values=width),
        Variable(name="height", unit="px", values=height),
        Variable(name="area", unit="megapixels", values=width * height / 1e6, log=True),
        Variable(name="file size", unit="MB", values=n_bytes / 1e6, log=True),
        Variable(name="aspect (width / height)", unit="", values=width / height, log=True),
        Variable(name="resolution", unit="µm/px", values=mpp),
    )


def bag_variables(bags: Mapping[str, BagDigest], slide_ids: Sequence[str]) -> tuple[Variable, ...]:
    """Return tiles and tissue (percent of slide), or images of series, each of shape (slides,)."""
    known = [bags.get(slide_id) for slide_id in slide_ids]
    tiles = np.array([bag.n_tiles if bag else np.nan for bag in known], np.float64)
    if all(bag.is_series for bag in known if bag):
        return _known(Variable(name="images", unit="", values=tiles))
    tissue = np.array([bag.tissue_share if bag else np.nan for bag in known], np.float64)
    return _known(
        Variable(name="tiles", unit="", values=tiles),
        Variable(name="tissue in tiles", unit="% of the slide", values=100 * tissue),
    )


def _known(*variables: Variable) -> tuple[Variable, ...]:
    """Return the variables that are known for at least one slide."""
    return tuple(variable for variable in variables if np.isfinite(variable.values).any())


@dataclass(frozen=True, kw_only=True, eq=False)
class Crosstab:
    """Counts of slides or patients per group and label, shape (names, classes), int64.

    ``by`` is the grouping, e.g. ``centre``; its groups, the ``names``, are in natural order.
    """

    by: str
    level: Level
    names: tuple[str, ...]
    classes: tuple[str, ...]
    counts: Ints

    @property
    def totals(self) -> Ints:
        """Sum of each row, shape (names,); at least 1."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def shares(self) -> Floats:
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
    """Number of tiles and amount of tissue in the slides of one label or centre that have a bag.

    ``tiles_a_slide`` and ``tiles_a_patient`` are medians, ``tissue_share`` is the median over
    slides of the share of tissue inside tiles, 0 to 1; all are NaN if there are none.
    """

    group: str
    n_slides: int
    n_patients: int
    n_tiles: int
    tiles_a_slide: float
    tiles_a_patient: float
    tissue_share: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Distribution of one variable over the ``n`` slides of one group for which it is known.

    The group is a label, or ``all``. Values are in ``unit`` (px, µm/px, ...); ``least`` and
    ``most`` are the extremes, ``q1`` and ``q3`` the quartiles. Outliers are beyond 1.5
    interquartile ranges from the quartiles (Tukey, 1977).
    """

    measure: str
    unit: str
    group: str
    n: int
    n_missing: int
    mean: float
    sd: float
    least: float
    q1: float
    median: float
    q3: float
    most: float
    n_outliers: int


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """Comparison of one variable between two classes, by patient.

    The value of a patient is the median over its slides. ``auroc`` is the probability that a
    patient of the second class has a higher value than one of the first, and ``p_value`` that of
    the two-sided Mann-Whitney U test (1947).
    """

    measure: str
    classes: tuple[str, str]
    medians: tuple[float, float]
    auroc: float
    p_value: float
    n_patients: tuple[int, int]


def count_by(column: str, frame: pd.DataFrame, *, classes: Sequence[str], level: Level) -> Crosstab:
    """Count labels by the values of a column, without empty cells.

    ``frame`` has one row per slide or patient (``level``) and a column ``label``; the result's
    counts have shape (distinct values, classes).
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
    """Count the tiles of slides and patients per ``label`` or ``centre``, in natural order.

    Patients whose slides disagree have a group of their own.
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
    """Yield statistics over all values, shape (slides,), and over those of each label."""
    labels = table.slides["label"].to_numpy()
    yield _describe(variable, np.ones(len(labels), np.bool_), "all")
    if len(table.classes) > 1:
        for name in table.classes:
            yield _describe(variable, labels == name, name)


def group_test(variable: Variable, table: SlideTable) -> ClassDifference | None:
    """Compare medians of shape (patients,) between two classes of five known patients or more.

    The result is None without two such classes, or if the variable is constant.
    """
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


def _describe(variable: Variable, rows: Bools, group: str) -> Statistics:
    values = np.compress(rows, variable.values)
    known = values[np.isfinite(values)]
    n = len(known)
    if not n:
        known = np.array([np.nan])
    least, q1, median, q3, most = np.percentile(known, [0, 25, 50, 75, 100]).tolist()
    whisker = 1.5 * (q3 - q1)
    return Statistics(
        measure=variable.name,
        unit=variable.unit,
        group=group,
        n=n,
        n_missing=len(values) - n,
        mean=float(known.mean()),
        sd=float(known.std(ddof=1)) if n > 1 else float("nan"),
        least=least,
        q1=q1,
        median=median,
        q3=q3,
        most=most,
        n_outliers=int(((known < q1 - whisker) | (known > q3 + whisker)).sum()),
    )
