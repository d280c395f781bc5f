"""Figures of a cohort, each with a description of what it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from features.utils.text import natural_key
from mil.arrays import Floats
from mil.reporting.cohort_report.statistics import Crosstab, Variable
from mil.reporting.cohort_report.table import SlideTable
from mil.reporting.figures import (
    MARK_COLOUR,
    EmbeddedImage,
    class_styles,
    count_ticks,
    plain,
    render_figure,
    share_ticks,
)

__all__ = ["boxes", "histograms", "scatter", "stacked_bars"]

Groups = list[tuple[str, Floats]]

_MAX_BARS = 40
_MAX_BINS = 20
_N_COLUMNS = 3
_MAX_BOXES = 20
_ROW_IN = 0.27
_MAX_SVG_POINTS = 3000


def stacked_bars(crosstab: Crosstab) -> EmbeddedImage:
    """Draw counts and shares of labels side by side, with lines at the shares over all rows.

    The table, of shape (names, classes), is cut to its 40 largest rows. Only counts are drawn if
    there is one label.
    """
    largest = np.sort(np.argsort(-crosstab.totals, kind="stable")[:_MAX_BARS])
    names = [plain(crosstab.names[row]) for row in largest]
    several = len(crosstab.classes) > 1

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if several else 1, sharey=True, squeeze=False)[0]
        _stack(panels[0], crosstab.counts[largest], crosstab.classes)
        panels[0].set(xlabel=crosstab.level, title="counts")
        panels[0].xaxis.set_major_locator(MaxNLocator(5, integer=True))
        count_ticks(panels[0].xaxis)
        if several:
            _stack(panels[1], crosstab.shares[largest], crosstab.classes)
            for border in np.cumsum(crosstab.counts.sum(axis=0) / crosstab.counts.sum())[:-1]:
                panels[1].axvline(border, color="black", linestyle=(0, (4, 3)), linewidth=1.2)
            label = f"share of {crosstab.level}; dashed: over all"
            panels[1].set(xlabel=label, xlim=(0, 1), title="shares")
            share_ticks(panels[1].xaxis)
            handles = panels[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper left", ncols=4)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        panels[0].set_ylabel(crosstab.by)
        for axes in panels:
            axes.grid(visible=False, axis="y")

    cut = "" if len(largest) == len(crosstab.names) else f", the {len(largest)} largest only"
    shares = " and label, counts and shares; the dashed line is the share over all" * several
    return render_figure(
        paint,
        alt=f"Bars of {crosstab.level} by {crosstab.by}{shares}{cut}. The table has the numbers.",
        width_in=6.6 if several else 4.4,
        height_in=1.5 + _ROW_IN * len(names),
    )


def histograms(variables: Sequence[Variable], table: SlideTable) -> EmbeddedImage:
    """Draw a histogram of each variable, shape (slides,), as shares of the slides of each label.

    All variables must vary.
    """
    labels = table.slides["label"].to_numpy()

    def paint(figure: Figure) -> None:
        panels = _panels(figure, len(variables))
        for axes, variable in zip(panels, variables, strict=True):
            groups = [(name, variable.values[labels == name]) for name in table.classes]
            _histogram(axes, variable, groups)
        for axes in panels[::_N_COLUMNS]:
            axes.set_ylabel("share of slides")
        if table.labelled:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)

    names = ", ".join(variable.name for variable in variables)
    return render_figure(
        paint,
        alt=f"Histograms of {names} by label; their quartiles are in the table of statistics.",
        width_in=7.6,
        height_in=0.4 + 2.3 * -(-len(variables) // _N_COLUMNS),
    )


def boxes(variables: Sequence[Variable], table: SlideTable, *, by: str) -> EmbeddedImage:
    """Draw box plots of each variable, shape (slides,): median, quartiles, outliers as points.

    All variables must vary. ``by`` is ``label`` or ``centre``; of more than 20 groups the largest
    20 are shown.
    """
    counts = table.slides[by].value_counts()
    names = sorted(map(str, counts.index[:_MAX_BOXES]), key=natural_key)
    height = 0.6 + -(-len(variables) // _N_COLUMNS) * (0.9 + _ROW_IN * len(names))

    def paint(figure: Figure) -> None:
        panels = _panels(figure, len(variables))
        for axes, variable in zip(panels, variables, strict=True):
            groups = [(n, variable.values[table.slides[by].to_numpy() == n]) for n in names]
            _boxes(axes, variable, groups)
        for axes in panels[::_N_COLUMNS]:
            axes.set_ylabel(by)

    shown = ", ".join(variable.name for variable in variables)
    return render_figure(
        paint,
        alt=f"Box plots of {shown} by {by}: median, quartiles, whiskers to 1.5 interquartile "
        "ranges, and every slide beyond them as a point.",
        width_in=7.6,
        height_in=height,
    )


def scatter(x: Variable, y: Variable, table: SlideTable) -> EmbeddedImage:
    """Draw two variables, shape (slides,), as points with marker and colour by label."""
    labels = table.slides["label"].to_numpy()

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, style in zip(table.classes, class_styles(table.classes), strict=True):
            of_class = labels == name
            axes.scatter(
                x.values[of_class], y.values[of_class], s=16, marker=style.marker, alpha=0.65,
                color=style.colour, linewidths=0, label=plain(name),
            )  # fmt: skip
        axes.set(xlabel=x.label, ylabel=y.label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6))
            count_ticks(axis)
        if table.labelled:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)

    return render_figure(
        paint,
        alt=f"Scatter of {y.name} over {x.name}, one point per slide, by label.",
        width_in=5.4,
        height_in=4.4,
        kind="svg" if len(labels) <= _MAX_SVG_POINTS else "png",
    )


def _stack(axes: Axes, values: npt.NDArray[Any], classes: Sequence[str]) -> None:
    ends = np.cumsum(values, axis=1)
    for index, style in enumerate(class_styles(classes)):
        axes.barh(
            range(len(values)), values[:, index], left=ends[:, index] - values[:, index],
            height=0.74, color=style.colour, hatch=style.hatch, label=plain(classes[index]),
            edgecolor="white",
        )  # fmt: skip


def _panels(figure: Figure, n_panels: int) -> list[Axes]:
    """Return the axes of a grid of panels, three per row."""
    n_columns = min(_N_COLUMNS, n_panels)
    grid = figure.subplots(-(-n_panels // n_columns), n_columns, squeeze=False)
    for axes in grid.flat[n_panels:]:
        axes.set_visible(False)
    return list(grid.flat[:n_panels])


def _histogram(axes: Axes, variable: Variable, groups: Groups) -> None:
    known = variable.values[np.isfinite(variable.values)]
    log = _is_log(variable)
    n_bins = min(_MAX_BINS, max(5, math.isqrt(len(known))))
    edges = (np.geomspace if log else np.linspace)(known.min(), known.max(), n_bins + 1)
    for (name, values), style in zip(groups, class_styles([n for n, _ in groups]), strict=True):
        finite = values[np.isfinite(values)]
        if len(finite):
            axes.hist(
                finite.clip(edges[0], edges[-1]), edges.tolist(), histtype="step",
                weights=np.full(len(finite), 1 / len(finite)), color=style.colour,
                linestyle=style.line, linewidth=1.6, label=plain(name),
            )  # fmt: skip
    axes.set_xlabel(variable.label)
    share_ticks(axes.yaxis)
    _scale(axes, known, log=log)


def _boxes(axes: Axes, variable: Variable, groups: Groups) -> None:
    values = [group[np.isfinite(group)] for _, group in groups]
    axes.boxplot(
        values, orientation="horizontal", widths=0.6, patch_artist=True, manage_ticks=False,
        medianprops={"color": "black", "linewidth": 1.6},
        boxprops={"facecolor": "#cfdbe6", "edgecolor": "#333333"},
        whiskerprops={"color": "#333333"}, capprops={"color": "#333333"},
        flierprops={"marker": ".", "markersize": 4, "markerfacecolor": MARK_COLOUR,
                    "markeredgecolor": MARK_COLOUR, "alpha": 0.7},
    )  # fmt: skip
    axes.set_yticks(range(1, len(groups) + 1), [plain(name, max_letters=12) for name, _ in groups])
    axes.set_ylim(len(groups) + 0.6, 0.4)
    axes.set_xlabel(variable.label)
    axes.grid(visible=False, axis="y")
    _scale(axes, variable.values[np.isfinite(variable.values)], log=_is_log(variable))


def _is_log(variable: Variable) -> bool:
    low, high = np.nanmin(variable.values), np.nanmax(variable.values)
    return variable.log and bool(0 < low < high / 2)


def _scale(axes: Axes, known: Floats, *, log: bool) -> None:
    """Set few ticks along x, for a narrow panel, on a linear or logarithmic scale."""
    if log:
        decades = math.log10(known.max() / known.min())
        subs = (1.0,) if decades > 2 else (1.0, 3.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 5.0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=4))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
    count_ticks(axes.xaxis)
