"""The page of ``mil compare``: scores, differences and agreement of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mil.arrays import Floats, Ints
from mil.comparison.agreement import (
    PairAgreement,
    compare_patients,
    shared_errors,
    true_class_probabilities,
)
from mil.comparison.differences import LEVEL, METRICS, Comparison
from mil.comparison.models import AlignedModels
from mil.evaluation.metrics import Interval
from mil.inference.conformal import COVERAGE
from mil.reporting.figures import (
    CHANCE_COLOUR,
    EmbeddedImage,
    class_styles,
    plain,
    render_figure,
)
from mil.reporting.html import Table, render, write_html
from mil.reporting.score_figures import ROW_IN, draw_interval, label_rows

__all__ = ["METRIC_WORDS", "write_comparison"]

METRIC_WORDS = {
    "weighted_log_loss": "weighted log loss",
    "auroc": "AUROC",
    "brier_score": "Brier score",
}
_NONE = "–"
_MAX_SCATTERS = 6
_MAX_ERRORS = 20
_VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00", "no difference shown": "#1a1a1a"}


def write_comparison(
    path: Path,
    comparison: Comparison,
    *,
    weights: Mapping[str, float] | None = None,
    recalibration: Table | None = None,
    guaranteed: Mapping[str, float] | None = None,
) -> None:
    """Write the page of a comparison; probabilities have shape (repeats, patients, classes).

    ``weights`` are those of a combination that is compared with its members, by name, and
    ``guaranteed`` the coverage of its prediction sets by class, if any; ``recalibration`` shows
    what a recalibrated run, which is compared with the run before, has fitted.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    models = comparison.models
    agreement = compare_patients(models)
    errors = shared_errors(models)
    proba = true_class_probabilities(models)
    pairs = list(combinations(range(len(models.models)), 2))
    # The page of a run of its own is on that run: the first of a combination, the last after a
    # recalibration.
    evaluated = (
        models.models[0].name if weights else models.models[-1].name if recalibration else ""
    )
    html = render(
        "compare.html",
        title="A combination and its parts"
        if weights
        else "A run before and after its recalibration"
        if recalibration
        else f"{len(models.models)} models compared",
        recalibration=recalibration,
        guaranteed=guaranteed
        and ", ".join(f"{name} {share:.2f}" for name, share in guaranteed.items()),
        coverage=COVERAGE,
        models=models,
        weights=weights
        and Table(
            "Weights of the combination",
            ["run", "weight"],
            [(name, f"{weight:.3f}") for name, weight in weights.items()],
        ),
        n_repeats=[len(model.proba) for model in models.models],
        n_comparisons=len(comparison.differences),
        n_resamples=comparison.n_resamples,
        level=LEVEL,
        findings=_findings(comparison, evaluated=evaluated),
        scores=_scores_table(comparison),
        matrices=[_matrix(comparison, metric) for metric in METRICS],
        differences=_differences_table(comparison),
        difference_figures=[_draw_differences(comparison, metric) for metric in METRICS],
        agreement=_agreement_table(agreement),
        scatters=[_draw_scatter(models, proba, *pair) for pair in pairs[:_MAX_SCATTERS]],
        n_pairs=len(pairs),
        n_errors=len(errors),
        errors=_errors_table(models, errors[:_MAX_ERRORS], proba),
    )
    write_html(path, html)


def _findings(comparison: Comparison, *, evaluated: str) -> list[tuple[str, str]]:
    """Return one sentence per metric, each with its level, and the notes.

    ``evaluated`` is the run that the page is on, if any: sentences are on it alone, and where it is
    worse than another, the level is a warning.
    """
    found = []
    for metric, words in METRIC_WORDS.items():
        shown: dict[tuple[str, str], list[str]] = {}
        for one in comparison.differences:
            is_asked = evaluated in ("", one.first, one.second)
            if one.metric == metric and one.verdict != "no difference shown" and is_asked:
                shown.setdefault((one.first, one.verdict), []).append(one.second)
        clauses = "; ".join(
            f"{first} is {verdict} than {', '.join(others[:-1])}{' and ' * (len(others) > 1)}"
            f"{others[-1]}"
            for (first, verdict), others in shown.items()
        )
        none = "no difference is shown " + (
            f"between {evaluated} and the others" if evaluated else "between any two"
        )
        sentence = f"By {words}: {clauses or none}."
        is_worse = any(
            evaluated in (one.first, one.second)
            and one.verdict == ("worse" if evaluated == one.first else "better")
            for one in comparison.differences
            if one.metric == metric
        )
        found.append(("warning" if is_worse else "good" if shown else "note", sentence))
    return found + [("note", f"{note}.") for note in comparison.models.notes]


def _scores_table(comparison: Comparison) -> Table:
    rows = [
        (
            model.name,
            *(_text(comparison.scores[model.name][metric]) for metric in METRICS),
            f"{len(model.proba):,}",
            f"{left_out:,}",
        )
        for model, left_out in zip(
            comparison.models.models, comparison.models.n_left_out, strict=True
        )
    ]
    return Table(
        "Scores with 95 % intervals, at equal class shares",
        [
            "model", "weighted log loss (lower is better)", "AUROC",
            "Brier score (0 to 2, lower is better)", "repeats", "patients not shared",
        ],
        rows,
    )  # fmt: skip


def _matrix(comparison: Comparison, metric: str) -> Table:
    """Return the verdict on the model of each row against that of each column."""
    names = [model.name for model in comparison.models.models]
    rows = []
    for first in names:
        cells = []
        for second in names:
            if first == second:
                cells.append(_NONE)
                continue
            difference, verdict = comparison.find(first, second, metric)
            cells.append(f"{verdict} ({_signed(difference.value)})")
        rows.append((first, *cells))
    return Table(
        f"By {METRIC_WORDS[metric]}: the model of the row is … than that of the column",
        ["", *names],
        rows,
        text_columns=tuple(range(len(names) + 1)),
    )


def _differences_table(comparison: Comparison) -> Table:
    rows = [
        (
            one.first,
            one.second,
            METRIC_WORDS[one.metric],
            _text(one.difference),
            f"{one.p_value:.4f}",
            f"{one.adjusted_p_value:.4f}",
            one.verdict,
        )
        for one in comparison.differences
    ]
    return Table(
        "Differences (positive: the first is better)",
        ["first", "second", "metric", "difference, 95 % interval", "p", "p corrected", "verdict"],
        rows,
        text_columns=(0, 1, 2, 6),
    )


def _agreement_table(agreement: Sequence[PairAgreement]) -> Table:
    rows = [
        (
            one.first,
            one.second,
            f"{one.both_right:,}",
            f"{one.only_first_wrong:,}",
            f"{one.only_second_wrong:,}",
            f"{one.both_wrong:,}",
            _two_digits(one.kappa),
            _two_digits(one.rank_correlation),
        )
        for one in agreement
    ]
    return Table(
        "Patients by who gets them right (most likely class at equal class shares)",
        [
            "first", "second", "both right", "only the first wrong", "only the second wrong",
            "both wrong", "kappa", "rank correlation",
        ],
        rows,
        text_columns=(0, 1),
    )  # fmt: skip


def _errors_table(models: AlignedModels, rows_of: Ints, proba: Floats) -> Table:
    rows = [
        (
            models.patient_ids[row],
            models.classes[models.labels[row]],
            *(f"{value:.3f}" for value in proba[:, row]),
            models.centres[row] or _NONE,
        )
        for row in rows_of.tolist()
    ]
    return Table(
        "Patients that every model gets wrong: probability of the true class",
        ["patient", "true class", *(model.name for model in models.models), "centre"],
        rows,
        text_columns=(0, 1, len(models.models) + 2),
    )


def _draw_differences(comparison: Comparison, metric: str) -> EmbeddedImage:
    """Draw the difference of each pair by one metric, with its interval."""
    shown = [one for one in comparison.differences if one.metric == metric]
    names = [
        f"{plain(one.first, max_letters=18)} − {plain(one.second, max_letters=18)}" for one in shown
    ]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1)
        for row, one in enumerate(shown):
            draw_interval(
                axes, row, one.difference, colour=_VERDICT_COLOURS[one.verdict],
                marker="o" if one.verdict == "no difference shown" else "D",
            )  # fmt: skip
        label_rows(axes, names)
        axes.set(xlabel=f"better by, {METRIC_WORDS[metric]}")

    summary = "; ".join(
        f"{one.first} against {one.second} {one.difference}, {one.verdict}" for one in shown
    )
    return render_figure(
        paint,
        alt=f"Differences by {METRIC_WORDS[metric]} with 95 % intervals: {summary}.",
        width_in=5.6,
        height_in=0.8 + ROW_IN * len(names),
    )


def _draw_scatter(models: AlignedModels, proba: Floats, first: int, second: int) -> EmbeddedImage:
    """Draw the probability of the true class by two models, one point per patient."""
    names = [plain(models.models[index].name) for index in (first, second)]
    labels = models.labels

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1)
        for limit in (axes.axvline, axes.axhline):
            limit(1 / len(models.classes), color=CHANCE_COLOUR, linewidth=0.8)
        for index, style in enumerate(class_styles(models.classes)):
            of = labels == index
            axes.plot(proba[first, of], proba[second, of], style.marker, color=style.colour,
                      markersize=4, alpha=0.6, label=plain(models.classes[index]))  # fmt: skip
        axes.set(xlabel=names[0], ylabel=names[1], xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
                 aspect="equal")  # fmt: skip
        figure.legend(loc="outside upper left", ncols=3)

    n_below = int((proba[[first, second]] < 1 / len(models.classes)).all(axis=0).sum())
    return render_figure(
        paint,
        alt=f"Probability of the true class by {names[0]} and by {names[1]}: of {len(labels)} "
        f"patients, both give {n_below} less than equal probabilities would.",
        width_in=3.9,
        height_in=4.2,
        kind="svg" if len(labels) < 3000 else "png",
    )


def _text(score: Interval) -> str:
    return str(score).replace("-", "−")


def _signed(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")  # 0.0 has no minus


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else _NONE
