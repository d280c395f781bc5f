"""``mil evaluate``: a finished run on labelled patients of another cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import EXIT_PARTLY_FAILED, print_json, print_next, spinner, stdout
from cli.options import BagsSources, CohortTable, ColumnNames, JsonOutput, Seed
from cli.shared.arguments import check_output, given_options, parse_columns, path_beside
from cli.shared.output import print_caveats
from cli.shared.runs import free_run, is_combination

if TYPE_CHECKING:
    from mil.validation.external import ExternalValidation

__all__ = ["evaluate"]


def evaluate(
    context: typer.Context,
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    cohort: CohortTable,
    columns: ColumnNames = None,
    bags: BagsSources = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of the table whose groups are scored as well, e.g. `sex,scanner`; "
            "centres always are.",
            show_default=False,
        ),
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHARES",
            help="Class shares at which scores are stated: `balanced`, `cohort` or shares such as "
            "`CE=0.7,LAA=0.3`; can be repeated; default: balanced and cohort.",
            show_default=False,
        ),
    ] = None,
    coverage: Annotated[
        float,
        typer.Option(min=0.5, max=0.999, metavar="SHARE", help="Target coverage of the sets."),
    ] = 0.9,
    out: Annotated[
        Path,
        typer.Option(
            metavar="HTML", help="The page; predictions and details are written beside it."
        ),
    ] = Path("evaluation.html"),
    seed: Seed = 0,
    as_json: JsonOutput = False,
) -> None:
    """Evaluate a run as it is on labelled patients that it was not trained on.

    Scores with 95 % intervals at the stated priors, calibration slope and intercept, coverage of
    the prediction sets, patients unlike those of the training, scores by centre and subgroup, and a
    decision curve, on one page. Nothing is fitted on these patients. Those that the run was trained
    on, by id or by the content of a slide, are left out and named.

    Example: `mil evaluate runs/first --cohort external.csv --bags bags`

    Example: `mil evaluate runs/first --cohort external.csv --by sex,scanner --prior LAA=0.3,CE=0.7`

    Exit codes: 0 done, 1 run, table or bags cannot be used, 2 usage, 3 written, but some patients
    could not be predicted, or only from part of their slides.
    """
    names = parse_columns(columns)
    tables = path_beside(out, ".csv"), path_beside(out, ".details.csv")
    check_output(out, [cohort], suffix=".html", beside=tables)
    groups_of = [name for text in (by or "").split(",") if (name := text.strip())]
    with spinner("evaluating"):
        from cli.shared.models import predict_model
        from mil.data.cohort import read_cohort
        from mil.evaluation.run_predictions import read_run_scores
        from mil.evaluation.subgroups import read_subgroups
        from mil.inference.output import write_details, write_predictions
        from mil.reporting.validation_report import write_validation
        from mil.validation.external import validate

        table = read_cohort(cohort, labelled=True, columns=names)
        groups = read_subgroups(cohort, table, groups_of, columns=names)
        centres = tuple(patient.center_id or "(none)" for patient in table.patients)
        if len(set(centres)) > 1:
            groups = {"centre": centres, **groups}
        model = predict_model(run, table, bags, coverage=coverage, columns=names)
        predictions = model.predictions
        validated = validate(
            predictions,
            table,
            classes=model.classes,
            priors=tuple(prior or ("balanced", "cohort")),
            coverage=coverage,
            guaranteed=model.guaranteed,
            groups=groups,
            seed=seed,
        )
        write_predictions(tables[0], predictions, classes=model.classes)
        write_details(tables[1], predictions, classes=model.classes, typicality=True)
        write_validation(
            out, validated, run=run.resolve().name, cohort=cohort.name,
            trained=read_run_scores(run), seed=seed,
        )  # fmt: skip
    if as_json:
        print_json({"run": str(run), "page": str(out), **validated.as_dict()})
    else:
        _print(validated)
        stdout.print(f"Page: {out}; predictions: {tables[0]}")
    print_caveats(f"note: {note}" for note in validated.notes)
    if not as_json:
        is_final = is_combination(run) or (run / "recalibration.json").is_file()
        print_next(
            "open {page}",
            "mil infer --run {run} --patients test.csv {again}"
            if is_final
            else "mil recalibrate {run} --cohort {cohort} --run {new} {again}",
            page=out, run=run, cohort=cohort, new=free_run("recalibrated"),
            again=given_options(context, "bags", "columns"),
        )  # fmt: skip
    unusable = {"no_bag", "no_tissue", "bag_refused", "out_of_range", "slides_missing"}
    if any(p.status in unusable for p in predictions):
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _print(validated: ExternalValidation) -> None:
    from mil.reporting.validation_report import SCORE_WORDS, score_text

    stdout.print(f"{len(validated.patient_ids)} patients, 95 % intervals")
    for number, (prior, scores) in enumerate(validated.scores.items()):
        at_prior = ("brier_score", "calibration_error", "accuracy")
        for metric, words in SCORE_WORDS.items():
            if metric in at_prior:
                stdout.print(f"  {words}, prior {prior}: {score_text(metric, scores[metric])}")
            elif number == 0:
                stdout.print(f"  {words}: {score_text(metric, scores[metric])}")
    for one in validated.sets:
        stdout.print(
            f"  sets of {one.name} hold it: {one.coverage:.2f} [{one.low:.2f}, {one.high:.2f}], "
            f"aim {validated.coverage:g}"
        )
    for group in validated.groups:
        if group.scores:
            of = group.scores
            stdout.print(
                f"  {group.column} {group.name}, {sum(group.counts)} patients: weighted log loss "
                f"{of['weighted_log_loss']}, AUROC {of['auroc']}"
            )
