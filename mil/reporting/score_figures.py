"""Figures of scores that several pages share, and their parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from features.utils.text import percent
from mil.arrays import Floats, Ints
from mil.evaluation.curves import Curve, net_benefit_curve, roc_curve, treat_all
from mil.evaluation.metrics import Interval, auroc
from mil.evaluation.reliability import ReliabilityBin
from mil.reporting.figures import (
    BAND_ALPHA,
    CHANCE_COLOUR,
    EmbeddedImage,
    class_styles,
    plain,
    render_figure,
)

__all__ = [
    "ROW_IN",
    "SQUARE_IN",
    "WIDTH_IN",
    "draw_band",
    "draw_decision",
    "draw_interval",
    "draw_reliability",
    "draw_roc",
    "label_rows",
]

WIDTH_IN, SQUARE_IN = 4.6, 3.7
ROW_IN = 0.27
"""Height of one row of a figure with named rows."""


def draw_roc(
    proba: Floats,
    labels: Ints,
    classes: Sequence[str],
    index: int,
    *,
    baseline: Floats | None = None,
    seed: int,
) -> EmbeddedImage:
    """Draw the ROC curve of one class with its band, and the one of the mean embedding, if given.

    ``proba`` and ``baseline`` have shape (patients, classes).
    """
    positive, own = labels == index, proba[:, index]
    curve = roc_curve(own, positive, seed=seed)
    other = None if baseline is None else roc_curve(baseline[:, index], positive, seed=seed)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                  label="chance")  # fmt: skip
        draw_band(axes, curve, other, colour=class_styles(classes)[index].colour)
        axes.set(xlabel="false positive rate", ylabel="true positive rate",
                 title=f"ROC: {plain(classes[index])}", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01),
                 aspect="equal")  # fmt: skip
        axes.legend(loc="lower right")

    area = auroc(np.stack([1 - own, own], axis=1), positive.astype(np.int64))
    beside = "" if baseline is None else f" area {area:.3f};"
    recall = float(np.interp(0.2, curve.x, curve.y))
    return render_figure(
        paint,
        alt=f"ROC curve of {classes[index]}:{beside} at a false positive rate of 20 % the true "
        f"positive rate is {percent(recall)}.",
        width_in=SQUARE_IN,
        height_in=SQUARE_IN,
    )


def draw_reliability(
    bins: Sequence[ReliabilityBin],
    classes: Sequence[str],
    index: int,
    *,
    before: Sequence[ReliabilityBin] | None = None,
) -> EmbeddedImage:
    """Draw observed shares over predictions, also ``before`` calibration where that is given."""
    style = class_styles(classes)[index]
    observed = np.array([b.observed for b in bins])
    limits = np.array([[b.observed_low for b in bins], [b.observed_high for b in bins]])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                  label="perfect calibration")  # fmt: skip
        if before is not None:
            axes.plot([b.promised for b in before], [b.observed for b in before],
                      color=CHANCE_COLOUR, marker="x", linestyle=":", linewidth=1,
                      label="before")  # fmt: skip
        axes.errorbar(
            [b.promised for b in bins], observed, yerr=np.abs(limits - observed),
            color=style.colour, marker=style.marker, capsize=2, elinewidth=1,
            label="the run" if before is None else "after",
        )  # fmt: skip
        axes.set(xlabel="predicted probability", ylabel="observed share",
                 title=plain(classes[index]), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
                 aspect="equal")  # fmt: skip
        axes.legend(loc="lower right")

    summary = "; ".join(f"{b.promised:.2f} predicted, {b.observed:.2f} observed" for b in bins)
    when = "" if before is None else " after calibration"
    return render_figure(
        paint,
        alt=f"Reliability of {classes[index]}{when}, by bin: {summary}.",
        width_in=SQUARE_IN,
        height_in=SQUARE_IN,
    )


def draw_decision(
    proba: Floats,
    labels: Ints,
    classes: Sequence[str],
    index: int,
    *,
    baseline: Floats | None = None,
    seed: int,
) -> EmbeddedImage:
    """Draw the net benefit of acting above a threshold on the probability of one class.

    ``proba`` and ``baseline`` are at the class shares of the patients, shape (patients, classes).
    """
    positive = labels == index
    curve = net_benefit_curve(proba[:, index], positive, seed=seed)
    other = None if baseline is None else net_benefit_curve(baseline[:, index], positive, seed=seed)
    share = float(positive.mean())
    everyone = treat_all(curve.x, share)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color="#1a1a1a", linewidth=1, label="act on nobody")
        axes.plot(curve.x, everyone, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1.2,
                  label="act on everyone")  # fmt: skip
        draw_band(axes, curve, other, colour=class_styles(classes)[index].colour)
        axes.set(xlabel=f"threshold of the probability of {plain(classes[index])}",
                 ylabel="net benefit per patient",
                 xlim=(0, 1), ylim=(-0.25 * share, 1.1 * share))  # fmt: skip
        figure.legend(loc="outside upper left", ncols=2)

    best = curve.x[curve.low > np.maximum(everyone, 0)]
    if baseline is None:
        summary = (
            f": its band is above acting on everyone and on nobody at {len(best)} of "
            f"{len(curve.x)} thresholds"
        )
    else:
        where = f"{len(best)} thresholds, {best.min():.2f} to {best.max():.2f}" if len(best) else ""
        summary = (
            " against acting on everyone or nobody: its band is above both at "
            f"{where or 'no threshold'}"
        )
    return render_figure(
        paint,
        alt=f"Decision curve of {classes[index]}{summary}.",
        width_in=WIDTH_IN,
        height_in=SQUARE_IN,
    )


def draw_band(axes: Axes, curve: Curve, baseline: Curve | None, *, colour: str) -> None:
    """Draw a curve with its band over that of the mean embedding, if given."""
    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=BAND_ALPHA, linewidth=0)
    if baseline is not None:
        axes.plot(baseline.x, baseline.y, color="#1a1a1a", linestyle=":", linewidth=1.2,
                  label="mean + logistic")  # fmt: skip
    axes.plot(curve.x, curve.y, color=colour, label="the run" if baseline is None else "this run")


def draw_interval(
    axes: Axes, row: int, score: Interval, *, colour: str = "#1a1a1a", marker: str = "o"
) -> None:
    """Draw a score as a point on its interval."""
    if np.isfinite(score.low):
        axes.plot([score.low, score.high], [row, row], color=colour, linewidth=1.5)
    axes.plot([score.value], [row], marker, color=colour, markersize=6)


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows on the left, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
