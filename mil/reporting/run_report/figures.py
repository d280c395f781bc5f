"""Figures of the report, each with a description of what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mil.arrays import Bools, Floats
from mil.evaluation.curves import (
    Curve,
    net_benefit_curve,
    precision_recall_curve,
    roc_curve,
    treat_all,
)
from mil.evaluation.metrics import Interval, auroc
from mil.reporting.figures import (
    BAND_ALPHA,
    CHANCE_COLOUR,
    MARK_COLOUR,
    EmbeddedImage,
    class_styles,
    plain,
    render_figure,
    share_ticks,
)
from mil.reporting.run_report.data import ReportData
from mil.reporting.run_report.scores import Reliability, SubgroupScore

__all__ = [
    "draw_confusion",
    "draw_decision",
    "draw_distribution",
    "draw_groups",
    "draw_learning",
    "draw_precision_recall",
    "draw_reliability",
    "draw_roc",
    "draw_scores",
]


_WIDTH_IN = 4.6
_SQUARE_IN = 3.7
_ROW_IN = 0.27
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
            _dot(axes, row, score, colour=MARK_COLOUR if name == "calibrated" else "#1a1a1a")
        _label_rows(axes, names)
        axes.set(xlabel=_METRIC_NAMES[metric])

    summary = "; ".join(f"{name} {score}" for name, score in zip(names, intervals, strict=True))
    return render_figure(
        paint,
        alt=f"{_METRIC_NAMES[metric]} with 95 % intervals: {summary}.",
        width_in=_WIDTH_IN,
        height_in=0.8 + _ROW_IN * len(names),
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
            _dot(axes, row, repeat.scores["weighted_log_loss"], colour=MARK_COLOUR)
        for row, centre in enumerate(shown, start=len(repeats)):
            _dot(axes, row, centre.scores["weighted_log_loss"], colour="#1a1a1a")
        _label_rows(axes, names)
        axes.set(xlabel=_METRIC_NAMES["weighted_log_loss"])
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.2, columnspacing=1.2)

    values = [group.scores["weighted_log_loss"].value for group in (*repeats, *shown)]
    summary = "; ".join(f"{name} {value:.3f}" for name, value in zip(names, values, strict=True))
    return render_figure(
        paint,
        alt=f"Weighted log loss of repeats and centres: {summary}.",
        width_in=_WIDTH_IN,
        height_in=1.2 + _ROW_IN * len(names),
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
        width_in=_WIDTH_IN,
        height_in=3.1,
        kind="svg" if len(history) < 10_000 else "png",
    )


def draw_roc(data: ReportData, index: int, *, seed: int) -> EmbeddedImage:
    """Draw the ROC curve of one class, shape (thresholds,), with band, and the mean embedding's."""
    curve = roc_curve(*_one_class(data, "calibrated", index), seed=seed)
    other = roc_curve(*_one_class(data, "mean + logistic", index), seed=seed)
    name = plain(data.classes[index])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                  label="chance")  # fmt: skip
        _curve(axes, curve, other, colour=class_styles(data.classes)[index].colour)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC: {name}",
                 xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")  # fmt: skip
        axes.legend(loc="lower right")

    own = data.first["calibrated"][:, index]
    area = auroc(np.stack([1 - own, own], axis=1), (data.labels == index).astype(np.int64))
    recall = float(np.interp(0.2, curve.x, curve.y))
    return render_figure(
        paint,
        alt=f"ROC curve of {data.classes[index]}: area {area:.3f}; at a false positive rate of "
        f"20 % the true positive rate is {100 * recall:.0f} %.",
        width_in=_SQUARE_IN,
        height_in=_SQUARE_IN,
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
        _curve(axes, curve, other, colour=class_styles(data.classes)[index].colour)
        axes.set(xlabel="recall", ylabel="precision", title=f"Precision: {name}",
                 xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")  # fmt: skip
        axes.legend(loc="lower left")

    half = float(np.interp(0.5, curve.x, curve.y))
    return render_figure(
        paint,
        alt=f"Precision of {data.classes[index]}: {100 * half:.0f} % at a recall of "
        f"50 %; chance gives {100 * share:.0f} %.",
        width_in=_SQUARE_IN,
        height_in=_SQUARE_IN,
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


def draw_reliability(
    data: ReportData, reliability: Mapping[str, Reliability], index: int
) -> EmbeddedImage:
    """Draw observed shares over predictions, shape (bins,), before and after calibration."""
    style = class_styles(data.classes)[index]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                  label="perfect calibration")  # fmt: skip
        before = reliability["raw"].bins[index]
        axes.plot([b.promised for b in before], [b.observed for b in before], color=CHANCE_COLOUR,
                  marker="x", linestyle=":", linewidth=1, label="before")  # fmt: skip
        after = reliability["calibrated"].bins[index]
        observed = np.array([b.observed for b in after])
        limits = np.array([[b.observed_low for b in after], [b.observed_high for b in after]])
        axes.errorbar(
            [b.promised for b in after], observed, yerr=np.abs(limits - observed),
            color=style.colour, marker=style.marker, capsize=2, elinewidth=1, label="after",
        )  # fmt: skip
        axes.set(xlabel="predicted probability", ylabel="observed share",
                 title=plain(data.classes[index]), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
                 aspect="equal")  # fmt: skip
        axes.legend(loc="lower right")

    summary = "; ".join(
        f"{b.promised:.2f} predicted, {b.observed:.2f} observed"
        for b in reliability["calibrated"].bins[index]
    )
    return render_figure(
        paint,
        alt=f"Reliability of {data.classes[index]} after calibration, by bin: {summary}.",
        width_in=_SQUARE_IN,
        height_in=_SQUARE_IN,
    )


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
        width_in=_WIDTH_IN,
        height_in=0.6 + 1.25 * n_classes,
    )


def draw_decision(
    data: ReportData, index: int, proba: Mapping[str, Floats], *, seed: int
) -> EmbeddedImage:
    """Draw the net benefit of acting above a threshold on the probability of one class.

    ``proba`` holds probabilities at the cohort's class shares, shape (patients, classes), by kind.
    """
    positive = data.labels == index
    curve = net_benefit_curve(proba["calibrated"][:, index], positive, seed=seed)
    other = net_benefit_curve(proba["mean + logistic"][:, index], positive, seed=seed)
    share = float(data.shares[index])
    everyone = treat_all(curve.x, share)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color="#1a1a1a", linewidth=1, label="act on nobody")
        axes.plot(curve.x, everyone, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1.2,
                  label="act on everyone")  # fmt: skip
        _curve(axes, curve, other, colour=class_styles(data.classes)[index].colour)
        axes.set(xlabel=f"threshold of the probability of {plain(data.classes[index])}",
                 ylabel="net benefit per patient",
                 xlim=(0, 1), ylim=(-0.25 * share, 1.1 * share))  # fmt: skip
        figure.legend(loc="outside upper left", ncols=2)

    best = curve.x[curve.low > np.maximum(everyone, 0)]
    summary = (
        f"its band is above both at {len(best)} thresholds, {best.min():.2f} to {best.max():.2f}"
        if len(best)
        else "its band is above both at no threshold"
    )
    return render_figure(
        paint,
        alt=f"Decision curve of {data.classes[index]} against acting on everyone or nobody: "
        f"{summary}.",
        width_in=_WIDTH_IN,
        height_in=3.7,
    )


def _one_class(data: ReportData, kind: str, index: int) -> tuple[Floats, Bools]:
    return data.first[kind][:, index], data.labels == index


def _curve(axes: Axes, curve: Curve, other: Curve, *, colour: str) -> None:
    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=BAND_ALPHA, linewidth=0)
    axes.plot(other.x, other.y, color="#1a1a1a", linestyle=":", linewidth=1.2,
              label="mean + logistic")  # fmt: skip
    axes.plot(curve.x, curve.y, color=colour, label="this run")


def _dot(axes: Axes, row: int, score: Interval, *, colour: str) -> None:
    if np.isfinite(score.low):
        axes.plot([score.low, score.high], [row, row], color=colour, linewidth=1.5)
    axes.plot([score.value], [row], "o", color=colour, markersize=6)


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows on the left, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
