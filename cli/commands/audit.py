"""``mil audit``: leaks and shortcuts, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cli.console import print_json, progress_bar, spinner, stdout
from cli.options import JsonOutput
from cli.shared.output import print_findings
from features.utils.text import pluralize

if TYPE_CHECKING:
    from mil.audit import AuditReport

__all__ = ["audit"]

_EXIT_LEAK = 1


def audit(
    *,
    train: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN", help="CSV with `image_id` (or `slide_id`), `patient_id`, `label`."
        ),
    ],
    test: Annotated[
        Path | None,
        typer.Argument(
            metavar="TEST", help="CSV of patients kept apart; labels are not looked at."
        ),
    ] = None,
    bags: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of bags, or a packed store; without it only the tables are audited.",
        ),
    ] = None,
    folds: Annotated[
        int, typer.Option(min=2, max=50, metavar="N", help="Folds of the training to come.")
    ] = 5,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the training to come.")
    ] = 0,
    as_json: JsonOutput = False,
) -> None:
    """Look for leaks and shortcuts before anything is trained.

    Leaks: patients or slides on two sides, slides of two patients, identical files and
    near-duplicate slides (with `--bags`) that folds or tables would put on two sides. Also classes
    too small for the folds asked for, and the shortcut report: how well centre, number of slides
    and, with `--bags`, tiles, area, aspect and background colour alone predict the label, and how
    well mean embeddings predict the centre.

    Example: `mil audit train.csv`

    Example: `mil audit train.csv test.csv --bags bags --json`

    Exit codes: 0 no leak was found, whatever else was; 1 a leak, or a table or bag that cannot be
    used; 2 usage.
    """
    with spinner("loading"):
        from mil.audit import audit as run_audit

    with progress_bar("") as bars:
        task = bars.add_task("reading tables", total=None)
        report = run_audit(
            train,
            test=test,
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
        _print_report(report, bags=bags)
    if report.leaks:
        raise typer.Exit(_EXIT_LEAK)


def _print_report(report: AuditReport, *, bags: Path | None) -> None:
    print_findings(report.findings)
    if report.shortcut_scores:
        _print_shortcuts(report)
    looked_at = ", ".join(
        f"{pluralize(report.n_patients[side], 'patients')} and "
        f"{pluralize(report.n_slides[side], 'slides')} in {side}"
        for side in report.n_patients
    )
    stdout.print(
        f"Looked at {looked_at}, "
        + (
            "at tables only: add --bags to find copies."
            if bags is None
            else f"{pluralize(report.n_bags, 'bags')}."
        )
    )
    n_leaks = sum(finding.severity == "error" for finding in report.findings)
    stdout.print(f"Leaks: {n_leaks}." if n_leaks else "No leak found.")


def _print_shortcuts(report: AuditReport) -> None:
    table = Table(title="Shortcuts: what can be predicted without tissue", title_justify="left")
    for name in ("from", "to"):
        table.add_column(name, no_wrap=True)
    for name in ("score", "95 % interval", "chance", "p", "patients"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in report.shortcut_scores:
        table.add_row(
            found.source,
            found.target,
            f"{found.score.value:.3f}",
            f"{found.score.low:.3f} to {found.score.high:.3f}",
            f"{found.chance:.3f}",
            f"{found.p_value:.3f}",
            str(found.n_patients),
        )
    stdout.print(table)
    stdout.print(
        "Score: cross-validated AUROC for labels, balanced accuracy for centres; below chance "
        "means no information. p: share of shuffled truths that score as high."
    )
    stdout.print("Intervals: class-stratified bootstrap over patients.")
