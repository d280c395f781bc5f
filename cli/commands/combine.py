"""``mil combine``: several runs on the same patients as one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import print_json, print_next, spinner, stdout
from cli.options import ClassName, ColumnNames, JsonOutput, LabelTable, Seed, flag
from cli.shared.arguments import check_output, parse_columns
from cli.shared.combination import write_summary
from cli.shared.output import print_caveats, print_model_scores
from cli.shared.runs import require_free

if TYPE_CHECKING:
    from mil.combination.fit import CombinationSummary

__all__ = ["combine"]


def combine(
    *,
    models: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of finished runs, or prediction files."),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The new run; without it, and for files, only the report is written.",
            show_default=False,
        ),
    ] = None,
    cohort: LabelTable = None,
    columns: ColumnNames = None,
    class_name: ClassName = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="The page; default: `report.html` in the new run, for files `combine.html`.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace a run of that name.")] = False,
    seed: Seed = 0,
    as_json: JsonOutput = False,
) -> None:
    """Combine runs on the same patients that differ in encoder, head, resolution or seed.

    The logs of their calibrated out-of-fold probabilities are added up with non-negative weights,
    shrunk towards equal ones, and a bias per class. The scores are cross-fitted: each patient is
    predicted with weights fitted on other patients. The new run holds copies of all runs;
    `mil infer` and `mil evaluate` take the bags of each encoder, and `mil infer --slides` embeds
    what is missing. Runs that do not agree on a patient (fold, label or slides) are refused:
    `mil train --folds-of RUN` trains on the folds of another run.

    For prediction files, which hold no model, only a report is written.

    Example: `mil combine runs/small runs/large --run runs/all`

    Example: `mil combine oof/*.csv --class LAA --cohort train.csv`

    Exit codes: 0 done, 1 runs or files cannot be combined, 2 usage.
    """
    names = parse_columns(columns)
    files = [path for path in models if path.is_file()]
    if files and len(files) < len(models):
        raise typer.BadParameter("either runs or files, not both", param_hint="RUN...")
    if files and run is not None:
        raise typer.BadParameter(
            "files hold no model: leave --run out for a report", param_hint="--run"
        )
    if not files and run is None:
        raise typer.BadParameter("name the new run", param_hint="--run")
    if out is not None:
        check_output(out, [*files, cohort], suffix=".html")
    if run is not None:
        require_free(run, overwrite=overwrite)
    with spinner("combining"):
        from mil.combination.fit import combine_predictions, combine_runs
        from mil.comparison.models import read_models
        from mil.data.cohort import read_cohort

        if run is not None:
            summary = combine_runs(models, run, seed=seed)
        else:
            table = None if cohort is None else read_cohort(cohort, labelled=True, columns=names)
            read = read_models([], files, cohort=table, class_name=class_name)
            summary = combine_predictions(read, seed=seed)
        page = out or (Path("combine.html") if run is None else run / "report.html")
        write_summary(page, summary)
    if as_json:
        print_json({"page": str(page), **summary.as_dict()})
        return
    _print(summary)
    stdout.print(f"Page: {page}" if run is None else f"Run: {run}; page: {page}")
    print_caveats(f"note: {note}" for note in summary.comparison.models.notes)
    infer = "mil infer --run {run} --patients test.csv --bags BAGS_OF_EACH"
    print_next("open {page}", *([infer] if run is not None else []), page=page, run=run or "")


def _print(summary: CombinationSummary) -> None:
    from mil.combination.fit import COMBINATION

    for name, weight in summary.weights.items():
        stdout.print(f"  weight of {name}: {weight:.3f}")
    print_model_scores(summary.comparison)
    for one in summary.comparison.differences:
        if one.metric == "weighted_log_loss" and one.first == COMBINATION:
            stdout.print(
                f"  by log loss, the combination against {one.second}: {one.difference}, "
                f"p {one.adjusted_p_value:.3f}: {one.verdict}"
            )
