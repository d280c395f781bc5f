"""The page of ``mil evaluate``: a model on labelled patients of another cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from features.utils.text import percent
from mil.calibration.priors import balanced, shift_prior
from mil.evaluation.curves import net_benefit_curve, roc_curve, treat_all
from mil.evaluation.metrics import Interval
from mil.evaluation.reliability import reliability_table
from mil.reporting.figures import (
    BAND_ALPHA,
    CHANCE_COLOUR,
    MARK_COLOUR,
    EmbeddedImage,
    class_styles,
    plain,
    render_figure,
)
from mil.reporting.html import Table, render, write_html
from mil.validation.external import ExternalValidation, GroupScores

__all__ = ["SCORE_WORDS", "write_validation"]

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
_SQUARE_IN, _WIDTH_IN, _ROW_IN = 3.7, 4.6, 0.27
_PATIENTS_PER_BIN, _MAX_BINS = 12, 10


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
    shown = [1] if len(validation.classes) == 2 else list(range(len(validation.classes)))
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
        reliability_figures=[_draw_reliability(validation, index) for index in shown],
        roc_figures=[_draw_roc(validation, index, seed=seed) for index in shown],
        decision_figures=[_draw_decision(validation, index, seed=seed) for index in shown],
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
            for name, share in zip(validation.classes, validation.shares, strict=True)
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
            _interval(validation.scores[prior][metric])
            if number == 0 or metric in _AT_PRIOR
            else _NONE
            for number, prior in enumerate(priors)
        ]
        own = _interval(trained[metric]) if metric in trained else _NONE
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
            *(_interval(group.scores[m]) if group.scores else _NONE
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


def _one_class(validation: ExternalValidation, index: int) -> tuple[Any, Any]:
    return validation.proba[:, index], validation.labels == index


def _draw_roc(validation: ExternalValidation, index: int, *, seed: int) -> EmbeddedImage:
    """Draw the ROC curve of one class with its band."""
    curve = roc_curve(*_one_class(validation, index), seed=seed)
    name = validation.classes[index]
    colour = class_styles(validation.classes)[index].colour

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                  label="chance")  # fmt: skip
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=BAND_ALPHA,
                          linewidth=0)  # fmt: skip
        axes.plot(curve.x, curve.y, color=colour, label="the run")
        axes.set(xlabel="false positive rate", ylabel="true positive rate",
                 title=f"ROC: {plain(name)}", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01),
                 aspect="equal")  # fmt: skip
        axes.legend(loc="lower right")

    recall = float(np.interp(0.2, curve.x, curve.y))
    return render_figure(
        paint,
        alt=f"ROC curve of {name}: at a false positive rate of 20 % the true positive rate is "
        f"{percent(recall)}.",
        width_in=_SQUARE_IN,
        height_in=_SQUARE_IN,
    )


def _draw_reliability(validation: ExternalValidation, index: int) -> EmbeddedImage:
    """Draw observed shares over predicted probabilities at equal class shares."""
    n_bins = int(np.clip(len(validation.labels) // _PATIENTS_PER_BIN, 3, _MAX_BINS))
    bins = reliability_table(
        validation.proba, validation.labels, index, prior=balanced(validation.classes),
        n_bins=n_bins,
    )  # fmt: skip
    style = class_styles(validation.classes)[index]
    observed = np.array([b.observed for b in bins])
    limits = np.array([[b.observed_low for b in bins], [b.observed_high for b in bins]])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=CHANCE_COLOUR, linestyle="dashed", linewidth=1,
                  label="perfect calibration")  # fmt: skip
        axes.errorbar(
            [b.promised for b in bins], observed, yerr=np.abs(limits - observed),
            color=style.colour, marker=style.marker, capsize=2, elinewidth=1, label="the run",
        )  # fmt: skip
        axes.set(xlabel="predicted probability", ylabel="observed share",
                 title=plain(validation.classes[index]), xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
                 aspect="equal")  # fmt: skip
        axes.legend(loc="lower right")

    summary = "; ".join(f"{b.promised:.2f} predicted, {b.observed:.2f} observed" for b in bins)
    return render_figure(
        paint,
        alt=f"Reliability of {validation.classes[index]}, by bin: {summary}.",
        width_in=_SQUARE_IN,
        height_in=_SQUARE_IN,
    )


def _draw_decision(validation: ExternalValidation, index: int, *, seed: int) -> EmbeddedImage:
    """Draw the net benefit of acting above a threshold, at the class shares of the cohort."""
    at_cohort = shift_prior(
        validation.proba, old=balanced(validation.classes), new=validation.shares
    )
    curve = net_benefit_curve(at_cohort[:, index], validation.labels == index, seed=seed)
    share, name = float(validation.shares[index]), validation.classes[index]
    colour = class_styles(validation.classes)[index].colour
    everyone = treat_all(curve.x, share)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color="#1a1a1a", linewidth=1, label="act on nobody")
        axes.plot(curve.x, everyone, color=CHANCE_COLOUR, linestyle="dashed", linewidth=1.2,
                  label="act on everyone")  # fmt: skip
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=BAND_ALPHA,
                          linewidth=0)  # fmt: skip
        axes.plot(curve.x, curve.y, color=colour, label="the run")
        axes.set(xlabel=f"threshold of the probability of {plain(name)}",
                 ylabel="net benefit per patient", xlim=(0, 1),
                 ylim=(-0.25 * share, 1.1 * share))  # fmt: skip
        figure.legend(loc="outside upper left", ncols=2)

    n_above = int((curve.low > np.maximum(everyone, 0)).sum())
    return render_figure(
        paint,
        alt=f"Decision curve of {name}: its band is above acting on everyone and on nobody at "
        f"{n_above} of {len(curve.x)} thresholds.",
        width_in=_WIDTH_IN,
        height_in=_SQUARE_IN,
    )


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
            score = group.scores["weighted_log_loss"]
            axes.plot([score.low, score.high], [row, row], color="#1a1a1a", linewidth=1.5)
            axes.plot([score.value], [row], "o", color="#1a1a1a", markersize=6)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set(xlabel="weighted log loss, nats")
        figure.legend(loc="outside upper left", ncols=2)

    summary = "; ".join(
        f"{name} {group.scores['weighted_log_loss'].value:.3f}"
        for name, group in zip(names, groups, strict=True)
    )
    return render_figure(
        paint,
        alt=f"Weighted log loss of groups: {summary}.",
        width_in=_WIDTH_IN,
        height_in=1.2 + _ROW_IN * len(names),
    )


def _interval(score: Interval) -> str:
    return str(score).replace("-", "−") if np.isfinite(score.value) else _NONE
