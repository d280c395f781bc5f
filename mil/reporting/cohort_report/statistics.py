"""What is measured of each slide, and how it is spread over slides and patients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from mil.reporting.cohort_report.table import SlideTable

__all__ = ["ClassDifference", "Statistics", "Variable", "group_test", "statistics"]

Floats = npt.NDArray[np.float64]

_LEAST_OF_A_CLASS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One number a slide."""

    name: str
    """What it is, e.g. ``width``."""
    unit: str
    """Its unit; empty for a ratio."""
    values: Floats
    """In the order of the table's slides, shape (slides,); NaN where it is not known."""
    log: bool = False
    """Whether it spans so much that an axis needs a logarithmic scale."""

    @property
    def label(self) -> str:
        """``width (px)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def varies(self) -> bool:
        """Whether any two known values differ."""
        known = self.values[np.isfinite(self.values)]
        return len(known) > 1 and bool(np.ptp(known) > 0)


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Spread of one measure over some slides."""

    measure: str
    """What is measured."""
    unit: str
    """Its unit."""
    group: str
    """Over which slides: a label, or ``all``."""
    n: int
    """Slides of which it is known."""
    n_missing: int
    """Slides of which it is not."""
    mean: float
    """Mean."""
    sd: float
    """Standard deviation of the sample."""
    least: float
    """Least value."""
    q1: float
    """First quartile."""
    median: float
    """Median."""
    q3: float
    """Third quartile."""
    most: float
    """Largest value."""
    n_outliers: int
    """Values beyond 1.5 interquartile ranges from the quartiles (Tukey, 1977)."""


@dataclass(frozen=True, kw_only=True)
class ClassDifference:
    """Whether a measure differs between two classes, patient by patient."""

    measure: str
    """What is measured; of a patient, the median over its slides."""
    classes: tuple[str, str]
    """The two."""
    medians: tuple[float, float]
    """Median over the patients of each class, in that order."""
    auroc: float
    """Chance that a patient of the second class has more than one of the first; 0.5 is none."""
    p_value: float
    """Of Mann and Whitney (1947), two-sided."""
    n_patients: tuple[int, int]
    """Patients of each class of whom it is known."""


def statistics(measure: Variable, table: SlideTable) -> Iterator[Statistics]:
    """Spread over all slides, and over those of each label where there are several."""
    labels = table.slides["label"].to_numpy()
    yield _spread(measure, measure.values, "all")
    if len(table.classes) > 1:
        for name in table.classes:
            yield _spread(measure, measure.values[labels == name], name)


def group_test(measure: Variable, table: SlideTable) -> ClassDifference | None:
    """Compare two classes; None unless there are two, with five patients each that are known."""
    if len(table.known_classes) != 2:
        return None
    one, other = table.known_classes
    medians = (
        table.slides
        .assign(value=measure.values)
        .dropna(subset=["value"])
        .groupby("patient")["value"].median()
        .reindex(table.patients["patient"])
        .to_numpy(np.float64)
    )  # fmt: skip
    labels = table.patients["label"].to_numpy()
    first, second = (medians[(labels == c) & np.isfinite(medians)] for c in (one, other))
    if min(len(first), len(second)) < _LEAST_OF_A_CLASS or not measure.varies:
        return None
    found = mannwhitneyu(second, first)
    return ClassDifference(
        measure=measure.name,
        classes=(one, other),
        medians=(float(np.median(first)), float(np.median(second))),
        auroc=float(found.statistic) / (len(first) * len(second)),
        p_value=float(found.pvalue),
        n_patients=(len(first), len(second)),
    )


def _spread(measure: Variable, values: Floats, group: str) -> Statistics:
    known = values[np.isfinite(values)]
    if not len(known):
        known = np.array([np.nan])
    least, q1, median, q3, most = np.percentile(known, [0, 25, 50, 75, 100]).tolist()
    reach = 1.5 * (q3 - q1)
    return Statistics(
        measure=measure.name,
        unit=measure.unit,
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
        n_outliers=int(((known < q1 - reach) | (known > q3 + reach)).sum()),
    )
