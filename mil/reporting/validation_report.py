"""The page of ``mil evaluate``: a model on labelled patients of another cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from features.utils.text import percent
from mil.calibration.priors import balanced, shift_prior
from mil.evaluation.metrics import Interval
from mil.evaluation.reliability import bin_count, reliability_table
from mil.reporting.figures import (
    CHANCE_COLOUR,
    MARK_COLOUR,
    EmbeddedImage,
    plain,
    render_figure,
)
from mil.reporting.html import Table, render, write_html
from mil.reporting.score_figures import (
    ROW_IN,
    WIDTH_IN,
    draw_decision,
    draw_interval,
    draw_reliability,
    draw_roc,
    label_rows,
)
from mil.validation.external import ExternalValidation, GroupScores

__all__ = ["SCORE_WORDS", "score_text", "write_validation"]

SCORE_WORDS = {
    "weighted_log_loss": "weighted log loss",
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "calibration_slope": "calibration slope (ideal: 1)",
    "calibration_intercept": "calibration intercept (ideal: 0)",
    "brier_score": "Brier score (0 to 2)",
    "calibration_error": "calibration error",
    "accuracy": "accuracy",
}
_AT_PRIOR = ("brier_score", "calibration_error", "accuracy")
_NONE = "–"


def score_text(metric: str, score: Interval) -> str:
    """Return a score with its interval; the calibration error has none, as chance raises it."""
    return f"{score.value:.4f}" if metric == "calibration_error" else str(score)


def write_validation(
    path: Path,
    validation: ExternalValidation,
    *,
    run: str,
    cohort: str,
    trained: Mapping[str, Interval],
    seed: int = 0,
) -> None:
    """Write the page; probabilities have shape (patients, classes).

    ``run`` and ``cohort`` are the names of model and table, ``trained`` the model's scores on its
    own patients, out-of-fold, by metric.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    classes, labels, proba = validation.classes, validation.labels, validation.proba
    shown = [1] if len(classes) == 2 else list(range(len(classes)))
    even = balanced(classes)
    at_cohort = shift_prior(proba, old=even, new=validation.shares)
    n_bins = bin_count(len(labels))
    scored = [group for group in validation.groups if group.scores]
    html = render(
        "evaluate.html",
        run=run,
        cohort=cohort,
        validation=validation,
        headline=next(iter(validation.scores.values())),
        trained=trained,
        findings=_findings(validation, trained),
        scores=_scores_table(validation, trained),
        reliability_figures=[
            draw_reliability(
                reliability_table(proba, labels, index, prior=even, n_bins=n_bins), classes, index
            )
            for index in shown
        ],
        roc_figures=[draw_roc(proba, labels, classes, index, seed=seed) for index in shown],
        decision_figures=[
            draw_decision(at_cohort, labels, classes, index, seed=seed) for index in shown
        ],
        sets=_sets_table(validation),
        group_figure=_draw_groups(validation, scored) if scored else None,
        group_tables=[
            _group_table(column, [g for g in validation.groups if g.column == column], validation)
            for column in dict.fromkeys(group.column for group in validation.groups)
        ],
        unlike=_unlike_table(validation),
        left_out=Table(
            "Patients left out", ["patient", "reason"], list(validation.left_out.items()),
            text_columns=(0, 1),
        ),
        shares=", ".join(
            f"{name} {percent(share, digits=1)}"
            for name, share in zip(classes, validation.shares, strict=True)
        ),
    )  # fmt: skip
    write_html(path, html)


def _findings(
    validation: ExternalValidation, trained: Mapping[str, Interval]
) -> list[tuple[str, str]]:
    """Return sentences on the result, each with its level."""
    scores = next(iter(validation.scores.values()))
    found = [_against_constant(validation, scores)]
    for metric, words in (("weighted_log_loss", "log loss"), ("auroc", "AUROC")):
        own = trained.get(metric)
        if own is not None and not scores[metric].low <= own.value <= scores[metric].high:
            is_better = (own.value < scores[metric].low) == (metric == "auroc")
            sentence = (
                f"The {words} is {'better' if is_better else 'worse'} than that of the training "
                f"patients ({own.value:.2f}, out-of-fold), beyond its interval."
            )
            found.append(("note" if is_better else "warning", sentence))
    slope = scores["calibration_slope"]
    if slope.high < 1:
        found.append(("warning", "Overconfident: the calibration slope is below 1."))
    elif slope.low > 1:
        found.append(("warning", "Underconfident: the calibration slope is above 1."))
    for one in validation.sets:
        if one.high < validation.coverage:
            sentence = (
                f"Sets of {one.name} hold it less often than they aim at: {percent(one.coverage)} "
                f"[{percent(one.low)}, {percent(one.high)}]."
            )
            found.append(("warning", sentence))
    return found + [("note", f"{n[0].upper()}{n[1:]}.") for n in validation.notes]


def _against_constant(
    validation: ExternalValidation, scores: Mapping[str, Interval]
) -> tuple[str, str]:
    loss, constant = scores["weighted_log_loss"], float(np.log(len(validation.classes)))
    against = f"log loss {loss.value:.2f} [{loss.low:.2f}, {loss.high:.2f}] against {constant:.2f}"
    if loss.high < constant:
        return "good", f"Better than a constant prediction: {against}."
    if loss.low <= constant:
        return "note", f"Not shown to differ from a constant prediction: {against}."
    ranks = scores["auroc"].low > 0.5
    advice = ", but it ranks patients better than chance: see 'mil recalibrate'" if ranks else ""
    return "warning", f"Worse than a constant prediction: {against}{advice}."


def _scores_table(validation: ExternalValidation, trained: Mapping[str, Interval]) -> Table:
    """Return the scores at each prior beside those of the training."""
    priors = list(validation.scores)
    rows = []
    for metric, words in SCORE_WORDS.items():
        cells = [
            _cell(metric, validation.scores[prior][metric])
            if number == 0 or metric in _AT_PRIOR
            else _NONE
            for number, prior in enumerate(priors)
        ]
        own = _cell(metric, trained[metric]) if metric in trained else _NONE
        rows.append((words, *cells, own))
    heads = [f"prior: {name}" for name in priors]
    return Table("Scores with 95 % intervals", ["", *heads, "training patients, out-of-fold"], rows)


def _sets_table(validation: ExternalValidation) -> Table:
    rows = [
        (
            one.name,
            f"{one.n_patients:,}",
            f"{one.n_held:,} ({percent(one.coverage)})",
            f"{percent(one.low)} to {percent(one.high)}",
            f"{one.n_single:,} ({percent(one.n_single / one.n_patients)})",
            _NONE if one.guaranteed is None else percent(one.guaranteed),
        )
        for one in validation.sets
    ]
    return Table(
        f"Prediction sets that aim at {percent(validation.coverage)}",
        [
            "true class", "patients", "true class in the set", "95 % interval",
            "true class alone", "guaranteed for patients like the training's",
        ],
        rows,
    )  # fmt: skip


def _group_table(
    column: str, groups: Sequence[GroupScores], validation: ExternalValidation
) -> Table:
    rows = [
        (
            group.name,
            *(f"{count:,}" for count in group.counts),
            *(_cell(m, group.scores[m]) if group.scores else _NONE
              for m in ("weighted_log_loss", "auroc")),
            percent(group.covered),
            f"{group.n_unlike:,}",
        )
        for group in groups
    ]  # fmt: skip
    return Table(
        f"By {column}",
        [
            column, *validation.classes, "weighted log loss", "AUROC", "true class in the set",
            "unlike the training",
        ],
        rows,
    )  # fmt: skip


def _unlike_table(validation: ExternalValidation) -> Table:
    unlike = sorted(
        ((p.typicality.p_value, p) for p in validation.predictions
         if p.typicality is not None and p.typicality.is_unlike),
        key=lambda pair: pair[0],
    )  # fmt: skip
    rows = [
        (
            p.patient_id,
            f"{p_value:.4f}",
            "; ".join(note.text for notes in p.provenance.values() for note in notes) or _NONE,
        )
        for p_value, p in unlike[:20]
    ]
    return Table(
        "Patients least like the training patients", ["patient", "typicality", "provenance"], rows,
        text_columns=(0, 2),
    )  # fmt: skip


def _draw_groups(validation: ExternalValidation, groups: Sequence[GroupScores]) -> EmbeddedImage:
    """Draw the log loss of each group with its interval."""
    overall = next(iter(validation.scores.values()))["weighted_log_loss"].value
    names = [f"{plain(g.column, max_letters=12)} {plain(g.name, max_letters=14)}" for g in groups]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(np.log(len(validation.classes)), color=CHANCE_COLOUR, linestyle="dashed",
                     linewidth=1, label="constant")  # fmt: skip
        axes.axvline(overall, color=MARK_COLOUR, linewidth=1, label="all patients")
        for row, group in enumerate(groups):
            draw_interval(axes, row, group.scores["weighted_log_loss"])
        label_rows(axes, names)
        axes.set(xlabel="weighted log loss, nats")
        figure.legend(loc="outside upper left", ncols=2)

    summary = "; ".join(
        f"{name} {group.scores['weighted_log_loss'].value:.3f}"
        for name, group in zip(names, groups, strict=True)
    )
    return render_figure(
        paint,
        alt=f"Weighted log loss of groups: {summary}.",
        width_in=WIDTH_IN,
        height_in=1.2 + ROW_IN * len(names),
    )


def _cell(metric: str, score: Interval) -> str:
    return score_text(metric, score).replace("-", "−") if np.isfinite(score.value) else _NONE
