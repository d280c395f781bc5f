"""Figures and tables of the report on abstention, and on patients unlike the others."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from features.utils.text import percent
from mil.evaluation.abstention import AbstentionPoint, risk_coverage
from mil.reporting.figures import (
    CHANCE_COLOUR,
    MARK_COLOUR,
    EmbeddedImage,
    plain,
    render_figure,
    share_ticks,
)
from mil.reporting.html import Table
from mil.reporting.run_report.data import ReportData
from mil.reporting.score_figures import WIDTH_IN
from mil.typicality import TypicalityReference

__all__ = ["abstention_table", "centres_table", "draw_risk_coverage", "draw_typicality"]

_HEIGHT_IN = 3.1
_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)
_NONE = "–"


def draw_risk_coverage(data: ReportData, point: AbstentionPoint | None) -> EmbeddedImage:
    """Draw the share of errors over the share of patients kept, and the chosen point."""
    curve = risk_coverage(data.first["calibrated"], data.labels)
    risk_of_all = float(curve.risk[-1])
    top = max(float(curve.risk.max()), (point and point.risk_at_most) or 0.0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(risk_of_all, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                     label="all patients")  # fmt: skip
        axes.plot(curve.coverage, curve.risk, color="#0072b2", drawstyle="steps-pre",
                  label="most certain patients")  # fmt: skip
        if point is not None:
            axes.plot([point.coverage], [point.risk], "o", color=MARK_COLOUR, markersize=7,
                      label="chosen, cross-fitted")  # fmt: skip
            if point.risk_at_most is not None:
                axes.plot([point.coverage] * 2, [point.risk, point.risk_at_most],
                          color=MARK_COLOUR, linewidth=1.5, marker="_", markevery=[1],
                          label=f"at most: {percent(point.confidence)} limit")  # fmt: skip
        axes.set(xlabel="share of patients kept", ylabel="share of errors among them",
                 xlim=(0, 1.02), ylim=(0, max(0.05, 1.1 * top)))  # fmt: skip
        share_ticks(axes.xaxis)
        share_ticks(axes.yaxis)
        figure.legend(loc="outside upper left", ncols=2)

    half = float(curve.risk[np.searchsorted(curve.coverage, 0.5)])
    return render_figure(
        paint,
        alt=f"Share of errors over the share of patients kept: {percent(risk_of_all)} of all, "
        f"{percent(half)} of the more certain half.",
        width_in=WIDTH_IN,
        height_in=_HEIGHT_IN,
    )


def abstention_table(data: ReportData) -> Table:
    """Return the errors among the most certain patients, one row per share kept, (shares, 4)."""
    curve = risk_coverage(data.first["calibrated"], data.labels)
    rows = []
    for share in _SHARES:
        at = min(int(np.searchsorted(curve.coverage, share - 1e-9)), len(curve.risk) - 1)
        rows.append((
            percent(curve.coverage[at]), f"{curve.n_kept[at]:,}", percent(curve.risk[at]),
            f"{curve.threshold[at]:.3f}",
        ))  # fmt: skip
    return Table(
        "Errors among the most certain patients",
        ["share kept", "patients", "share of errors", "least confidence"],
        rows,
    )


def draw_typicality(reference: TypicalityReference) -> EmbeddedImage:
    """Draw the distances of the training patients, shape (patients,), and the default limit."""
    distances = reference.distances[np.isfinite(reference.distances)]
    limit = reference.limit(reference.default_level)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(distances, bins=min(30, max(5, len(distances) // 3)), color="#0072b2")
        if np.isfinite(limit):
            axes.axvline(limit, color=MARK_COLOUR, label=f"level {reference.default_level:.3g}")
            axes.legend()
        axes.set(xlabel="distance to the other patients", ylabel="patients")

    return render_figure(
        paint,
        alt=f"Distance of each training patient to the others: median {np.median(distances):.3f}, "
        f"largest {distances.max():.3f}; new patients are marked from {limit:.3f} on."
        if len(distances)
        else "No training patient has a finite distance to another.",
        width_in=WIDTH_IN,
        height_in=_HEIGHT_IN,
    )


def centres_table(reference: TypicalityReference) -> Table | None:
    """Return the patients of each centre as the others see them; None with fewer than two centres.

    The table has shape (centres, 4).
    """
    p_values, centres = reference.centre_p_values, np.array(reference.centres)
    if np.isnan(p_values).all():
        return None
    rows = []
    for centre in np.unique(centres):
        own = p_values[centres == centre]
        n_others = int((centres != centre).sum())
        level = max(reference.default_level, 1 / (n_others + 1))
        rows.append((
            plain(str(centre)) or _NONE, f"{len(own):,}", f"{np.median(own):.3f}",
            f"{(own <= level).sum():,} ({percent((own <= level).mean())})",
        ))  # fmt: skip
    return Table(
        "Each centre compared with the patients of the other centres only",
        ["centre", "patients", "median typicality", "unlike the other centres"],
        rows,
    )
