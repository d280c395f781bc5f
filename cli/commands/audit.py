"""``mil audit``: leaks and shortcuts, before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    EXIT_PARTLY_FAILED,
    print_json,
    print_next,
    print_table,
    progress_bar,
    spinner,
    stdout,
)
from cli.options import ColumnNames, Covariates, JsonOutput
from cli.shared.arguments import given_options, parse_columns
from cli.shared.output import print_findings
from features.utils.text import pluralize

if TYPE_CHECKING:
    from mil.audit import AuditReport, ShortcutScore

__all__ = ["audit"]

_EXIT_LEAK = 1


def audit(
    context: typer.Context,
    *,
    train: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN", help="CSV with `image_id` (or `slide_id`), `patient_id`, `label`."
        ),
    ],
    test: Annotated[
        Path | None,
        typer.Argument(metavar="TEST", help="CSV of held-out patients; labels are not read."),
    ] = None,
    columns: ColumnNames = None,
    covariates: Covariates = None,
    bags: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of bags, or a packed store; without it only the tables are audited.",
        ),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(min=2, max=50, metavar="N", help="Number of folds of the planned training."),
    ] = 5,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the planned training.")
    ] = 0,
    as_json: JsonOutput = False,
) -> None:
    """Look for leaks and shortcuts before anything is trained.

    Leaks are patients or slides in both tables, slides of two patients, and (with `--bags`)
    identical files and near-duplicate slides that tables or folds would divide between training and
    test. Also reported are classes too small for the folds, and shortcuts: how well centre, number
    of slides and, with `--bags`, tiles, area, aspect ratio and background colour alone predict the
    label, and how well mean embeddings predict the centre. With `--covariates`, columns that state
    the label or stand for the centre are named.

    Example: `mil audit train.csv`

    Example: `mil audit train.csv test.csv --bags bags --json`

    Exit codes: 0 no leak was found, 1 a leak, or a table or all bags cannot be used, 2
    usage, 3 some bags cannot be used.
    """
    names = parse_columns(columns)
    with spinner("loading"):
        from mil.audit import audit as run_audit
        from mil.data.covariates import parse_covariates

    with progress_bar("") as bars:
        task = bars.add_task("reading tables", total=None)
        report = run_audit(
            train,
            test=test,
            columns=names,
            covariates=parse_covariates(covariates),
            bags_dir=bags,
            n_folds=folds,
            seed=seed,
            on_step=lambda what, done, total: bars.update(
                task, description=what, completed=done, total=total
            ),
        )
    if as_json:
        print_json(report.as_dict())
    else:
        again = given_options(context, "columns", "covariates", "folds", "seed")
        columns_again = given_options(context, "columns")
        _print_report(report, train=train, bags=bags, again=again, columns=columns_again)
    if report.leaks:
        raise typer.Exit(_EXIT_LEAK)
    if report.incomplete:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _print_report(
    report: AuditReport,
    *,
    train: Path,
    bags: Path | None,
    again: Sequence[str],
    columns: Sequence[str],
) -> None:
    print_findings(report.findings)
    if report.shortcut_scores:
        _print_shortcuts(report.shortcut_scores)
    splits = ", ".join(
        f"{pluralize(report.n_patients[split], 'patients')} and "
        f"{pluralize(report.n_slides[split], 'slides')} in {split}"
        for split in report.n_patients
    )
    scope = (
        "tables only: add --bags to find copies"
        if bags is None
        else pluralize(report.n_bags, "bags")
    )
    stdout.print(f"Audited {splits}, {scope}.")
    from mil.audit.findings import Severity

    counts = Counter(finding.severity for finding in report.findings)
    if n_leaks := counts[Severity.error]:
        stdout.print(f"Leaks: {n_leaks}.")
    elif n_warnings := counts[Severity.warning]:
        stdout.print(
            f"No leak among what was examined; look at {pluralize(n_warnings, 'warnings')} above "
            "before training.",
        )
        print_next("mil describe {train} {columns}", train=train, columns=columns)
    else:
        stdout.print("No leak found.")
        print_next(
            "mil train --cohort {train} --bags {bags} {again}",
            train=train, bags=bags or "bags", again=again,
        )  # fmt: skip


def _print_shortcuts(scores: Iterable[ShortcutScore]) -> None:
    numeric = ("score", "95 % interval", "chance", "p", "patients")
    print_table(
        ("from", "to", *numeric),
        [
            (
                each.source, each.target, f"{each.score.value:.3f}",
                f"{each.score.low:.3f} to {each.score.high:.3f}", f"{each.chance:.3f}",
                f"{each.p_value:.3f}", str(each.n_patients),
            )
            for each in scores
        ],
        title="Shortcuts: predictions without tissue",
        numeric=numeric,
    )  # fmt: skip
    stdout.print(
        "Score: cross-validated AUROC for labels, balanced accuracy for centres; below chance "
        "means no information. p: share of shuffled labels that score as high. Intervals: "
        "class-stratified bootstrap over patients."
    )
