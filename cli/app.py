"""The command ``mil`` and its subcommands; heavy packages are imported only when one runs."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from cli.commands.audit import audit
from cli.commands.backbones import backbones
from cli.commands.bags import bags
from cli.commands.combine import combine
from cli.commands.compare import compare
from cli.commands.demo import demo
from cli.commands.describe import describe
from cli.commands.doctor import doctor
from cli.commands.embed import embed
from cli.commands.evaluate import evaluate
from cli.commands.explain import explain
from cli.commands.filter import filter_
from cli.commands.infer import infer
from cli.commands.inspect import inspect
from cli.commands.preview import preview
from cli.commands.recalibrate import recalibrate
from cli.commands.report import report
from cli.commands.score import score
from cli.commands.train import train
from cli.commands.view import view
from cli.console import (
    ErrorHandlingGroup,
    PlainCommand,
    hush_matplotlib,
    let_waiting_threads_sleep,
    raise_open_file_limit,
    treat_sigterm_as_interrupt,
)
from cli.streams import guard_standard_streams

__all__ = ["app", "main"]

app = typer.Typer(
    name="mil",
    cls=ErrorHandlingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help=(
        "Calibrated patient probabilities from whole-slide images.\n\n"
        "First `mil embed slides/`, then `mil train`, then `mil infer --patients test.csv`; "
        "`mil demo` shows all three on synthetic slides."
    ),
)
# The panels of `mil --help`, in the order of the work.
_PANELS = {
    "Before": (demo, doctor, describe, audit, inspect, preview, backbones),
    "The three steps": (embed, train, infer),
    "After": (score, report, explain, view),
    "Several runs and cohorts": (compare, combine, evaluate, recalibrate),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(cls=PlainCommand, rich_help_panel=_panel)(_command)
app.add_typer(bags, name="bags", rich_help_panel="Bags and filters")
app.add_typer(filter_, name="filter", rich_help_panel="Bags and filters")


def _print_version(*, requested: bool) -> None:
    if requested:
        typer.echo(f"mil {metadata.version('mil-slides')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=lambda requested: _print_version(requested=requested),
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Run the command line, named ``mil`` in usage and completion however it was started."""
    let_waiting_threads_sleep()
    raise_open_file_limit()
    guard_standard_streams()
    treat_sigterm_as_interrupt()
    hush_matplotlib()
    app(prog_name="mil")
