"""Figures of the report, each with a description of what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mil.arrays import Bools, Floats
from mil.evaluation.curves import (
    precision_recall_curve,
)
from mil.evaluation.metrics import Interval
from mil.reporting.figures import (
    CHANCE_COLOUR,
    MARK_COLOUR,
    EmbeddedImage,
    class_styles,
    plain,
    render_figure,
    share_ticks,
)
from mil.reporting.run_report.data import ReportData
from mil.reporting.run_report.scores import SubgroupScore
from mil.reporting.score_figures import (
    ROW_IN,
    SQUARE_IN,
    WIDTH_IN,
    draw_band,
    draw_interval,
    label_rows,
)

__all__ = [
    "draw_confusion",
    "draw_distribution",
    "draw_groups",
    "draw_learning",
    "draw_precision_recall",
    "draw_scores",
]


_MAX_GROUPS = 30
_METRIC_NAMES = {"weighted_log_loss": "weighted log loss, nats", "auroc": "AUROC"}


def draw_scores(scores: Mapping[str, Mapping[str, Interval]], metric: str) -> EmbeddedImage:
    """Draw the scores of the run and of its baselines, with their intervals."""
    names = list(scores)
    intervals = [scores[name][metric] for name in names]
    chance = scores["constant"][metric].value

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(chance, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1)
        for row, (name, score) in enumerate(zip(names, intervals, strict=True)):
            draw_interval(
                axes, row, score, colour=MARK_COLOUR if name == "calibrated" else "#1a1a1a"
            )
        label_rows(axes, names)
        axes.set(xlabel=_METRIC_NAMES[metric])

    summary = "; ".join(f"{name} {score}" for name, score in zip(names, intervals, strict=True))
    return render_figure(
        paint,
        alt=f"{_METRIC_NAMES[metric]} with 95 % intervals: {summary}.",
        width_in=WIDTH_IN,
        height_in=0.8 + ROW_IN * len(names),
    )


def draw_groups(
    repeats: Sequence[SubgroupScore],
    folds: Sequence[Sequence[SubgroupScore]],
    centres: Sequence[SubgroupScore],
    *,
    overall: Interval,
    n_classes: int,
) -> EmbeddedImage:
    """Draw the log loss of each repeat with its folds, and of the largest centres."""
    shown = [centre for centre in centres if centre.scores][:_MAX_GROUPS]
    names = [f"repeat {repeat.name}" for repeat in repeats] + [
        f"centre {plain(centre.name, max_letters=14)}" for centre in shown
    ]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(np.log(n_classes), color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                     label="constant")  # fmt: skip
        axes.axvline(overall.value, color=MARK_COLOUR, linewidth=1, label="all patients")
        for row, (repeat, of_repeat) in enumerate(zip(repeats, folds, strict=True)):
            x = [fold.scores["weighted_log_loss"].value for fold in of_repeat if fold.scores]
            axes.plot(x, [row] * len(x), "o", color="#1a1a1a", fillstyle="none", markersize=5,
                      label="" if row else "folds of a repeat")  # fmt: skip
            draw_interval(axes, row, repeat.scores["weighted_log_loss"], colour=MARK_COLOUR)
        for row, centre in enumerate(shown, start=len(repeats)):
            draw_interval(axes, row, centre.scores["weighted_log_loss"])
        label_rows(axes, names)
        axes.set(xlabel=_METRIC_NAMES["weighted_log_loss"])
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.2, columnspacing=1.2)

    values = [group.scores["weighted_log_loss"].value for group in (*repeats, *shown)]
    summary = "; ".join(f"{name} {value:.3f}" for name, value in zip(names, values, strict=True))
    return render_figure(
        paint,
        alt=f"Weighted log loss of repeats and centres: {summary}.",
        width_in=WIDTH_IN,
        height_in=1.2 + ROW_IN * len(names),
    )


def draw_learning(history: pd.DataFrame, column: str, *, title: str) -> EmbeddedImage:
    """Draw one learning curve per head, the deployed heads on top of those of cross-validation.

    ``history`` is a data frame of shape (epochs of all heads, columns).
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for deployed, colour, alpha in ((False, CHANCE_COLOUR, 0.35), (True, MARK_COLOUR, 0.9)):
            part = history[(history["fold"] == "deployed") == deployed].dropna(subset=[column])
            label = "deployed" if deployed else "validation"
            for _, curve in part.groupby(["repeat", "fold", "member"]):
                axes.plot(curve["epoch"], curve[column], color=colour, alpha=alpha, label=label,
                          linewidth=1.4 if deployed else 0.9)  # fmt: skip
                label = ""
        axes.set(xlabel="epoch", ylabel="loss, nats", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.legend()

    last = history.groupby(["repeat", "fold", "member"])[column].last()
    return render_figure(
        paint,
        alt=f"{title}, one line for each of {len(last)} heads: from a median of "
        f"{history[history['epoch'] == 0][column].median():.3f} to {last.median():.3f}.",
        width_in=WIDTH_IN,
        height_in=3.1,
        kind="svg" if len(history) < 10_000 else "png",
    )


def draw_precision_recall(data: ReportData, index: int, *, seed: int) -> EmbeddedImage:
    """Draw precision over recall, shape (thresholds,), with its band, at the cohort's shares."""
    curve = precision_recall_curve(*_one_class(data, "calibrated", index), seed=seed)
    other = precision_recall_curve(*_one_class(data, "mean + logistic", index), seed=seed)
    share = float(data.shares[index])
    name = plain(data.classes[index])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(share, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1, label="chance")
        draw_band(axes, curve, other, colour=class_styles(data.classes)[index].colour)
        axes.set(xlabel="recall", ylabel="precision", title=f"Precision: {name}",
                 xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")  # fmt: skip
        axes.legend(loc="lower left")

    half = float(np.interp(0.5, curve.x, curve.y))
    return render_figure(
        paint,
        alt=f"Precision of {data.classes[index]}: {100 * half:.0f} % at a recall of "
        f"50 %; chance gives {100 * share:.0f} %.",
        width_in=SQUARE_IN,
        height_in=SQUARE_IN,
    )


def draw_confusion(data: ReportData) -> EmbeddedImage:
    """Draw the confusion matrix, shape (classes, classes), with row shares."""
    n_classes = len(data.classes)
    predicted = data.first["calibrated"].argmax(axis=1)
    counts = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(counts, (data.labels, predicted), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    names = [plain(name, max_letters=12) for name in data.classes]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            axes.text(column, row, f"{counts[row, column]:,}\n{100 * share:.0f} %", ha="center",
                      va="center", color="white" if share > 0.55 else "#1a1a1a")  # fmt: skip
        axes.set(xlabel="most likely class", ylabel="true class")
        axes.set_xticks(range(n_classes), names, rotation=0 if n_classes < 4 else 45)
        axes.set_yticks(range(n_classes), names)
        axes.grid(visible=False)

    right = "; ".join(
        f"{name} {100 * shares[index, index]:.0f} %" for index, name in enumerate(data.classes)
    )
    side_in = min(7.0, 1.4 + 0.75 * n_classes)
    return render_figure(
        paint, alt=f"Confusion matrix. Recall of each class: {right}.",
        width_in=side_in + 0.3, height_in=side_in,
    )  # fmt: skip


def draw_distribution(data: ReportData, index: int) -> EmbeddedImage:
    """Draw histograms of the probability of one class, shape (patients,), by true class."""
    values = data.first["calibrated"][:, index]
    styles = class_styles(data.classes)
    n_classes = len(data.classes)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(n_classes, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for label, (axes, style) in enumerate(zip(panels, styles, strict=True)):
            own = values[data.labels == label]
            axes.hist(own, bins=np.linspace(0, 1, 21), weights=np.full(len(own), 1 / len(own)),
                      color=style.colour, hatch=style.hatch)  # fmt: skip
            axes.axvline(np.median(own), color="#1a1a1a", linewidth=1.2)
            axes.set_title(f"{plain(data.classes[label])}: {len(own):,} patients")
            share_ticks(axes.yaxis)
        panels[-1].set(xlabel=f"probability of {plain(data.classes[index])}", xlim=(0, 1))

    medians = "; ".join(
        f"{name} {np.median(values[data.labels == label]):.2f}"
        for label, name in enumerate(data.classes)
    )
    return render_figure(
        paint,
        alt=f"Probability of {data.classes[index]} by true class, medians: {medians}.",
        width_in=WIDTH_IN,
        height_in=0.6 + 1.25 * n_classes,
    )


def _one_class(data: ReportData, kind: str, index: int) -> tuple[Floats, Bools]:
    return data.first[kind][:, index], data.labels == index
