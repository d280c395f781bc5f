"""``mil report``: write the report of a finished run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.console import print_json, print_next, spinner, stdout
from cli.options import BagsSource, JsonOutput, SlidesDir
from cli.shared.arguments import given_options
from cli.shared.combination import draw_combination
from cli.shared.runs import is_combination

__all__ = ["report"]


def report(
    context: typer.Context,
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    explanations: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default=False,
            help="Folder written by `mil explain`, to link patients to their pages; default: "
            "`explanations` in the run, if there is one.",
        ),
    ] = None,
    bags: BagsSource = Path("bags"),
    slides: SlidesDir = None,
    as_json: JsonOutput = False,
) -> None:
    """Write `report.html` of a run again from the files of the run, without training or scoring.

    `mil train` writes the page with every run. Use this command if the page was deleted, or to get
    the page of a later version of this program. It shows the tissue of a few patients if their
    bags are in `--bags`, and their slides in `--slides` or still where they were embedded. The page
    of combined runs compares them with their combination, that of a recalibrated run with the run
    before; of a run of several labels, all pages are written.

    Example: `mil report runs/first`

    Example: `mil report runs/first --slides slides/ --explanations explanations`

    Exit codes: 0 done, 1 the run or the bags cannot be used, 2 usage.
    """
    if explanations is not None and not explanations.is_dir():
        raise typer.BadParameter(f"{explanations} is not a folder", param_hint="--explanations")
    if given_options(context, "bags"):
        from features.bags.store import open_bags

        open_bags(bags)  # else passed over where it cannot be read, as the default may be
    with spinner("drawing the report"):
        if is_combination(run):
            page = draw_combination(run)
        elif (run / "recalibration.json").is_file():
            from mil.reporting.recalibration_report import write_recalibration

            page = write_recalibration(run)
        else:
            from cli.shared.report_tissue import draw_report

            page = draw_report(
                run, bags, slides=slides, explanations=explanations or _explanations_in(run)
            )
    if as_json:
        print_json({"report": str(page)})
    else:
        stdout.print(f"Report written to {page}")
        print_next("open {page}", page=page)


def _explanations_in(run: Path) -> Path | None:
    folder = run / "explanations"
    return folder if (folder / "index.html").is_file() else None
