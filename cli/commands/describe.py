"""``mil describe``: a cohort on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    EXIT_PARTLY_FAILED,
    print_json,
    print_next,
    progress_bar,
    spinner,
    stdout,
    warn,
)
from cli.options import ColumnNames, JsonOutput
from cli.shared.arguments import check_output, given_options, parse_columns
from cli.shared.output import print_findings
from features.utils.text import pluralize

if TYPE_CHECKING:
    from mil.reporting.cohort_report import CohortSummary

__all__ = ["describe"]


def describe(
    context: typer.Context,
    *,
    train: Annotated[
        Path,
        typer.Argument(
            metavar="TRAIN",
            help="CSV with `image_id`, `slide_id` or `bag_id`, and `patient_id`; `label`, "
            "`center_id` and `image_num` if present.",
        ),
    ],
    columns: ColumnNames = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the labels; default: `label`."),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of slides whose headers are read."),
    ] = None,
    bags: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of bags, or a packed store, for tiles and tissue."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="HTML", help="Path of the page to write.")] = Path(
        "describe.html"
    ),
    gallery: Annotated[
        int,
        typer.Option(
            min=0, max=100, metavar="N", help="With --slides: number of slides shown per label."
        ),
    ] = 6,
    as_json: JsonOutput = False,
) -> None:
    """Describe a cohort on one page: counts, shares, sizes, tissue and anomalies.

    Everything is counted per slide and per patient. The page is a single file that needs no
    network. `--slides` adds sizes, resolutions, copies of files and a small gallery; `--bags` adds
    tiles, tissue and the colour of the glass.

    Example: `mil describe train.csv`

    Example: `mil describe train.csv --slides slides --bags bags --out describe.html`

    Example: `mil describe scans.csv --label subdural --bags bags`

    Exit codes: 0 done, 1 table or bags cannot be used, 2 usage, 3 some slides or bags cannot be
    used.
    """
    names = parse_columns(columns)
    from features.utils.files import make_folder

    check_output(out, [train], suffix=".html", makes_folder=True)
    make_folder(out.parent)
    if label is not None and "label" in names:
        raise typer.BadParameter("give either --label or --column label=", param_hint="--label")
    with spinner("loading"):
        from mil.reporting.cohort_report import (
            read_cohort_table,
            render_cohort_report,
            summarize_cohort,
        )
        from mil.reporting.html import write_html

    with progress_bar("") as bars:
        task = bars.add_task("reading the table", total=None)

        def on_step(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        table = read_cohort_table(train, label=label, columns=names)
        files = None
        if slides is not None:
            from cli.shared.slide_files import read_slide_files

            files = read_slide_files(slides, table, n_thumbnails=gallery, on_step=on_step)
        summary = summarize_cohort(table, files=files, bags_dir=bags, on_step=on_step)
        on_step("drawing", 0, 1)
        html = render_cohort_report(summary)
    write_html(out, html)
    for path, first in files.repeated.items() if files else ():
        warn(f"ignored: {path} has the same slide id as {first}")
    if as_json:
        print_json({"page": str(out), **summary.as_dict()})
    else:
        _print_summary(summary, out)
        again = given_options(context, "columns", "bags")
        again += [] if label is None else ["--column", f"label={label}"]
        print_next("open {page}", "mil audit {train} {again}", page=out, train=train, again=again)
    if (files and files.failures) or summary.incomplete:
        raise typer.Exit(EXIT_PARTLY_FAILED)


def _print_summary(summary: CohortSummary, page: Path) -> None:
    print_findings(summary.findings)
    table = summary.table
    text = (
        f"{pluralize(len(table.slides), 'slides')} of {pluralize(len(table.patients), 'patients')}"
    )
    if table.labelled:
        counts = ", ".join(f"{n} {name}" for name, n in summary.labels["patients"].items())
        text += f" ({counts})"
    stdout.print(f"{text}.")
    stdout.print(f"Page: {page}")
