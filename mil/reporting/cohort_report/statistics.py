"""Variables of slides, their distribution, and their comparison between two classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

from mil.reporting.cohort_report.table import SlideTable

__all__ = ["ClassDifference", "Statistics", "Variable", "group_test", "statistics"]

Floats = npt.NDArray[np.float64]

_MIN_CLASS_SIZE = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Variable:
    """One number per slide."""

    name: str
    unit: str
    """Unit; empty for a ratio."""
    values: Floats
    """Shape (slides,), in the order of the table's slides; NaN if not known."""
    log: bool = False
    """Whether plots use a logarithmic axis."""

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


def statistics(variable: Variable, table: SlideTable) -> Iterator[Statistics]:
    """Yield statistics over all slides, and over those of each label if there are several."""
    labels = table.slides["label"].to_numpy()
    yield _describe(variable, variable.values, "all")
    if len(table.classes) > 1:
        for name in table.classes:
            yield _describe(variable, variable.values[labels == name], name)


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


def _describe(variable: Variable, values: Floats, group: str) -> Statistics:
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
