"""``mil score``: any predictions file against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import print_json, print_next, spinner, stdout, warn
from cli.options import (
    FOLDS,
    Calibrator,
    ClassName,
    CohortTable,
    ColumnNames,
    JsonOutput,
    Labels,
    Seed,
    flag,
)
from cli.shared.arguments import given_options, parse_columns
from cli.shared.multilabel import read_labels, score_label_files
from cli.shared.output import (
    calibration_as_dict,
    print_calibration_note,
    print_classification,
    print_reliability,
    print_scores,
    warn_of_reversed,
)
from cli.shared.runs import report_of
from features.utils.text import pluralize

if TYPE_CHECKING:
    from mil.data.cohort import Cohort
    from mil.evaluation.predictions import Predictions
    from mil.evaluation.scoring import ScoreSettings

__all__ = ["Average", "score"]


class Average(StrEnum):
    """Mean of several files."""

    probability = "probability"
    logit = "logit"


def score(
    context: typer.Context,
    *,
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PREDICTIONS", help="CSV tables with one row per patient or slide."),
    ],
    cohort: CohortTable,
    columns: ColumnNames = None,
    labels: Labels = None,
    patients: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Score only the patients in this table, with `patient_id` or `image_id` (or "
            "`slide_id`); default: all of --cohort.",
            show_default=False,
        ),
    ] = None,
    class_name: ClassName = None,
    average: Annotated[
        Average, typer.Option(help="How several files are averaged.")
    ] = Average.probability,
    prior: Annotated[
        str,
        typer.Option(
            metavar="SHARES",
            help="Class shares at which Brier, calibration error and accuracy are measured: "
            "`cohort`, `balanced` or shares such as `CE=0.7,LAA=0.3`.",
        ),
    ] = "cohort",
    file_prior: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Class shares that the files' probabilities are for; default: `balanced`, with "
            "--labels `cohort`.",
            show_default=False,
        ),
    ] = None,
    reliability: Annotated[
        bool,
        flag(
            "--reliability",
            "Also print reliability, bias of the calibration error, parts of the Brier.",
        ),
    ] = False,
    resamples: Annotated[
        int, typer.Option(min=100, metavar="N", help="Bootstrap resamples.")
    ] = 1000,
    seed: Seed = 0,
    as_json: JsonOutput = False,
    calibrate: Annotated[
        bool,
        flag("--calibrate", "Cross-fit a calibrator and score that as well.", panel=FOLDS),
    ] = False,
    calibrator: Calibrator = "platt",
    folds: Annotated[
        int,
        typer.Option(
            min=2, max=100, metavar="N", rich_help_panel=FOLDS, help="Folds of a cross-fit."
        ),
    ] = 5,
    repeats: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            metavar="N",
            rich_help_panel=FOLDS,
            help="Cross-fits with other folds, averaged.",
        ),
    ] = 20,
) -> None:
    """Score predictions: weighted log loss, AUROC, Brier, calibration, accuracies, F1.

    The weighted log loss is STRIP AI's metric: per-class mean log loss, classes weighted equally,
    rows rescaled to sum to 1 and then clipped at 1e-15. A constant gives ln(classes), 0.6931 for
    two. Every score comes with a 95 % interval over patients. Tables of slides are averaged to
    patients; several files are scored each and averaged.

    Precision, recall and F1 are those of the most likely class at `--prior`, per class and on
    average: macro, all classes alike, and weighted by their shares. A predicted class
    that no patient has stays in each row's sum, and patients assigned to it count as wrong.

    `--calibrate` is for out-of-fold predictions of any model: each patient is calibrated by a
    calibrator that was fitted on other patients. The scores are cross-fitted in this sense only;
    whether the model was trained on a patient cannot be checked.

    With `--labels`, files have one column per label, and rows need not sum to 1: the weighted log
    loss of RSNA's haemorrhage challenge (`any` twice), and the scores of each label, all at the
    shares of the scored patients. `--calibrate` cross-fits a calibrator per label.

    Example: `mil score submission.csv --cohort labels.csv`

    Example: `mil score oof/*.csv --class LAA --cohort train.csv --calibrate --json`

    Example: `mil score submission.csv --cohort labels.csv --patients centre_7.csv`

    Example: `mil score submission.csv --cohort labels.csv --labels any,epidural,subdural`

    Exit codes: 0 done, 1 tables cannot be used, 2 usage.
    """
    if calibrator != "platt" and not calibrate:
        raise typer.BadParameter("needs --calibrate", param_hint="--calibrator")
    names = parse_columns(columns)
    options: dict[str, Any] = {
        "calibrator": calibrator if calibrate else None, "n_folds": folds, "n_repeats": repeats,
        "reliability": reliability, "n_resamples": resamples, "seed": seed,
    }  # fmt: skip
    if labels is not None:
        if class_name:
            raise typer.BadParameter("goes without --class", param_hint="--labels")
        score_label_files(
            predictions, read_labels(cohort, labels, names), patients=patients,
            average=average.value, prior=prior,
            file_prior=file_prior or "cohort", as_json=as_json, **options,
        )  # fmt: skip
        return
    _score_files(
        predictions, cohort, columns=names, patients=patients, class_name=class_name,
        average=average, prior=prior, file_prior=file_prior or "balanced", as_json=as_json,
        again=given_options(context, "columns"), **options,
    )  # fmt: skip


def _score_files(
    files: list[Path],
    cohort: Path,
    *,
    columns: Mapping[str, str],
    patients: Path | None,
    class_name: str | None,
    average: Average,
    prior: str,
    file_prior: str,
    as_json: bool,
    again: Sequence[str],
    **options: Any,
) -> None:
    """Score files of one class per patient; ``options`` are those of ``ScoreSettings``."""
    with spinner("scoring"):
        from mil.calibration.priors import parse_prior
        from mil.data.cohort import read_cohort
        from mil.evaluation.bootstrap import MIN_RESAMPLED_PATIENTS
        from mil.evaluation.cohort_part import part_of_cohort, read_part
        from mil.evaluation.predictions import (
            align_classes,
            average_predictions,
            read_predictions,
        )
        from mil.evaluation.scoring import (
            INTERVAL_NOTE,
            ScoreSettings,
            baseline_losses,
            score_model,
        )

        whole = labelled = read_cohort(cohort, labelled=True, columns=columns)
        if patients is not None:
            labelled = part_of_cohort(whole, read_part(patients, whole), source=patients)
        counts = labelled.class_counts()
        settings = ScoreSettings(
            file_prior=parse_prior(file_prior, labelled.classes, counts),
            prior=parse_prior(prior, labelled.classes, counts),
            **options,
        )
        read = [
            read_predictions(
                path, labelled, class_name=class_name, known_classes=whole.classes,
                is_part=patients is not None,
            )
            for path in files
        ]  # fmt: skip
        tables = {str(path): table.proba for path, table in zip(files, read, strict=True)}
        if len(tables) > 1:
            name = f"mean {average.value} of {len(tables)}"
            aligned = [table.proba for table in align_classes(read)]
            tables[name] = average_predictions(aligned, how=average.value)
        scored = {name: score_model(proba, labelled, settings) for name, proba in tables.items()}
    _print_warnings(files, read)
    warn_of_reversed({path: scored[path] for path in map(str, files)})
    if as_json:
        print_json({
            "n_patients": len(labelled.patients),
            "n_patients_left_out": len(whole.patients) - len(labelled.patients),
            "class_counts": counts,
            "prior": _stated(labelled, settings),
            "interval": INTERVAL_NOTE,
            "baselines": baseline_losses(labelled),
            **calibration_as_dict(settings),
            "files": [{"name": name, **report.as_dict()} for name, report in scored.items()],
        })  # fmt: skip
        return
    for name, report in scored.items():
        print_scores(name, report.scores, n_patients=len(labelled.patients))
        for kind, of_classes in report.classification.items():
            print_classification(name if len(report.scores) == 1 else f"{name}, {kind}", of_classes)
        for kind, described in report.reliability.items():
            print_reliability(name, kind, described)
    _print_notes(labelled, settings, prior=prior)
    page = report_of(files[0])
    if page and len(files) == 1:  # The labels are those that the run was trained on.
        command = "open {page}"
    elif min(counts.values()) < MIN_RESAMPLED_PATIENTS:
        command = "mil describe {cohort} {again}"
    elif len(files) > 1:
        command = "mil compare {files} --cohort {cohort} {again}"
    else:
        command = "mil evaluate RUN --cohort {cohort} --bags BAGS {again}"
    print_next(command, page=page or "", files=files, cohort=cohort, again=again)


def _print_warnings(files: Sequence[Path], tables: Sequence[Predictions]) -> None:
    """Print which files predict classes that no patient has, or hold no probabilities."""
    for path, table in zip(files, tables, strict=True):
        if ((table.proba == 0) | (table.proba == 1)).all():
            warn(
                f"warning: {path}: every probability is 0 or 1, as of predicted classes: only "
                "accuracy, precision, recall and F1 say something"
            )
        if table.other_classes:
            warn(
                f"warning: {path} predicts {', '.join(table.other_classes)}, which no scored "
                "patient has: it stays in the sum of each row, and what it got counts as wrong"
            )
        if table.n_rescaled:
            low, high = table.sum_range
            warn(
                f"warning: {path}: {pluralize(table.n_rescaled, 'rows')} whose probabilities do "
                f"not sum to 1 (all rows: {low:.3g} to {high:.3g}); each is divided by its sum. "
                "If a class has no column, add it."
            )


def _stated(cohort: Cohort, settings: ScoreSettings) -> dict[str, float]:
    return dict(zip(cohort.classes, map(float, settings.prior), strict=True))


def _print_notes(cohort: Cohort, settings: ScoreSettings, *, prior: str) -> None:
    """Print the baselines, priors and intervals behind the tables."""
    from mil.evaluation.scoring import INTERVAL_NOTE, baseline_losses

    baselines = baseline_losses(cohort)
    stdout.print(
        f"Weighted log loss of a constant: {baselines['constant']:.4f} for equal probabilities, "
        f"{baselines['cohort_prior']:.4f} for the cohort's shares."
    )
    shares = ", ".join(f"{name} {share:.3f}" for name, share in _stated(cohort, settings).items())
    stdout.print(
        "Brier, calibration error, reliability, accuracy, precision, recall and F1 are measured "
        f"at a prior of {shares} ({prior}); all else at the balanced one."
    )
    stdout.print(f"{INTERVAL_NOTE}.")
    stdout.print(
        "The calibration error has no interval, as chance raises it; --reliability says how far."
    )
    print_calibration_note(settings)
