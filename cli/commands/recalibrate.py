"""``mil recalibrate``: the calibrator of a run fitted anew on local patients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import print_json, print_next, spinner, stdout
from cli.options import BagsSource, CohortTable, ColumnNames, JsonOutput, Seed, flag
from cli.shared.arguments import given_options, parse_columns
from cli.shared.output import print_caveats
from cli.shared.runs import add_run_covariates, require_free
from features.utils.text import pluralize

__all__ = ["recalibrate"]


def recalibrate(
    context: typer.Context,
    *,
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    cohort: CohortTable,
    run: Annotated[Path, typer.Option(metavar="FOLDER", help="The new run.")],
    columns: ColumnNames = None,
    bags: BagsSource = Path("bags"),
    overwrite: Annotated[bool, flag("--overwrite", "Replace a run of that name.")] = False,
    seed: Seed = 0,
    as_json: JsonOutput = False,
) -> None:
    """Refit the calibrator of a run on labelled local patients, and write a new run.

    Only a slope and biases of the calibrated logits are fitted (Platt scaling, shrunk towards no
    change); heads and weights stay as they are. The prediction sets, too, are then based on the
    local patients. Scores before and after are those of the local patients; those after are
    cross-fitted: each patient is calibrated by a calibrator fitted on others. The new run names the
    old one and the table, and recognises the local patients. At least ten patients of each class
    are needed.

    Example: `mil recalibrate runs/first --cohort local.csv --bags bags --run runs/local`

    Exit codes: 0 done, 1 run, table or bags cannot be used, 2 usage.
    """
    names = parse_columns(columns)
    require_free(run, overwrite=overwrite)
    with spinner("recalibrating"):
        from mil.data.cohort import read_cohort
        from mil.inference.bundle import load_bundle
        from mil.reporting.recalibration_report import write_recalibration
        from mil.validation.recalibration import recalibrate as fit

        table = read_cohort(cohort, labelled=True, columns=names)
        table = add_run_covariates(load_bundle(source), table, columns=names)
        summary = fit(source, table, bags, run, seed=seed)
        page = write_recalibration(run)
    if as_json:
        print_json(summary.as_dict())
    else:
        stdout.print(f"{pluralize(summary.n_patients, 'patients')}, slope {summary.slope:.3f}")
        for metric, words in (("weighted_log_loss", "weighted log loss"), ("auroc", "AUROC")):
            stdout.print(
                f"  {words}: before {summary.before[metric]}, after, cross-fitted, "
                f"{summary.after[metric]}; gain {summary.gain[metric]}"
            )
        stdout.print(f"Run: {run}")
    if summary.left_out:
        name, why = next(iter(summary.left_out.items()))
        some = pluralize(len(summary.left_out), "patients")
        print_caveats([f"warning: {some} left out, first {name}: {why}"])
    if not as_json:
        print_next(
            "open {page}",
            "mil infer --run {run} --patients test.csv {again}",
            "mil evaluate {run} --cohort others.csv {again}",
            run=run, page=page, again=given_options(context, "bags", "columns"),
        )  # fmt: skip
