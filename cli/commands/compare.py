"""``mil compare``: several runs and prediction files on the same patients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import print_json, print_next, spinner, stdout
from cli.options import ClassName, ColumnNames, JsonOutput, LabelTable, Seed, flag
from cli.shared.arguments import check_output, parse_columns
from cli.shared.output import print_caveats, print_model_scores
from cli.shared.runs import free_run

if TYPE_CHECKING:
    from mil.comparison.differences import Comparison

__all__ = ["compare"]


def compare(
    *,
    models: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Folders of finished runs, or prediction files."),
    ],
    predictions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Prediction file of any model, as for `mil score`; can be repeated.",
            show_default=False,
        ),
    ] = None,
    cohort: LabelTable = None,
    columns: ColumnNames = None,
    class_name: ClassName = None,
    file_prior: Annotated[
        str,
        typer.Option(
            metavar="SHARES",
            help="Class shares that the files' probabilities are for: `balanced`, `cohort` or "
            "shares such as `CE=0.7,LAA=0.3`.",
        ),
    ] = "balanced",
    calibrate: Annotated[
        bool,
        flag("--calibrate", "Calibrate the files first (Platt, cross-fitted), as runs are."),
    ] = False,
    out: Annotated[Path, typer.Option(metavar="HTML", help="The page.")] = Path("compare.html"),
    seed: Seed = 0,
    as_json: JsonOutput = False,
) -> None:
    """Compare runs and prediction files on the patients that they share.

    For every two models: the paired differences of weighted log loss, AUROC and Brier score with
    95 % intervals over patients (and over repeats, where a run has several), and whether one is
    shown to be better, corrected for the number of comparisons (Holm). The page also shows where
    they agree patient by patient, and which patients all of them get wrong. Runs are compared by
    their out-of-fold predictions; whether their folds are the same is checked.

    Example: `mil compare runs/small runs/large`

    Example: `mil compare runs/first --predictions theirs.csv --class LAA --calibrate`

    Example: `mil compare oof/*.csv --class LAA --cohort train.csv --json`

    Exit codes: 0 done, 1 runs or files cannot be compared, 2 usage.
    """
    names = parse_columns(columns)
    files = [*(path for path in models if path.is_file()), *(predictions or ())]
    runs = [path for path in models if not path.is_file()]
    check_output(out, [*files, cohort], suffix=".html")
    with spinner("comparing"):
        from mil.comparison.differences import compare_models
        from mil.comparison.models import read_models, same_folds
        from mil.data.cohort import read_cohort
        from mil.reporting.comparison_report import write_comparison

        read = read_models(
            runs,
            files,
            cohort=None if cohort is None else read_cohort(cohort, labelled=True, columns=names),
            class_name=class_name,
            file_prior=file_prior,
            calibrator="platt" if calibrate else None,
            seed=seed,
        )
        compared = compare_models(read, seed=seed)
        write_comparison(out, compared)
    if as_json:
        print_json({"page": str(out), **compared.as_dict()})
        return
    _print(compared)
    stdout.print(f"Page: {out}")
    print_caveats(f"note: {note}" for note in read.notes)
    folds = [model.fold for model in read.models if model.fold is not None]
    is_combinable = (
        len(runs) > 1 and not files and all(same_folds(folds[0], own) for own in folds[1:])
    )
    combine = ["mil combine {runs} --run {new}"] if is_combinable else []
    print_next("open {page}", *combine, page=out, runs=runs, new=free_run("combined"))


def _print(compared: Comparison) -> None:
    from mil.reporting.comparison_report import METRIC_WORDS

    models = compared.models
    stdout.print(f"{len(models.patient_ids)} shared patients, 95 % intervals")
    print_model_scores(compared)
    for metric, words in METRIC_WORDS.items():
        stdout.print(
            f"Gain of the first over the second in {words} (95 % interval; p corrected by Holm):"
        )
        for one in compared.differences:
            if one.metric == metric:
                stdout.print(
                    f"  {one.first} against {one.second}: {one.difference}, "
                    f"p {one.adjusted_p_value:.3f}: {one.verdict}"
                )
