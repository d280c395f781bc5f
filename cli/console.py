"""What a person sees: progress on standard error, results on standard output, one-line errors."""

from __future__ import annotations

import io
import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from features.errors import MilError
from features.utils.text import printable

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_KNOWN_ERROR",
    "EXIT_PARTLY_FAILED",
    "ErrorHandlingGroup",
    "PlainCommand",
    "PlainGroup",
    "finish_on_interrupt",
    "print_json",
    "progress_bar",
    "raise_open_file_limit",
    "set_error_tolerant_streams",
    "spinner",
    "stderr",
    "stdout",
]

EXIT_KNOWN_ERROR = 1
EXIT_PARTLY_FAILED = 3
EXIT_INTERRUPTED = 130


class _PlainConsole(Console):
    """A console to which names of slides, patients and files are names, whatever they hold.

    Brackets are no markup, colons no emoji, and nothing is printed that a terminal would obey.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text on its way to the terminal, those in tables too."""
        return super().render_str(printable(text, kept="\n"), **options)


stderr = _PlainConsole(stderr=True)
"""Progress, warnings and errors."""

stdout = _PlainConsole()
"""What was asked for; nothing else goes to standard output."""


def _without_values(options: list[Any]) -> list[Any]:
    """The options; those that take no value show none in the help, Typer's own included."""
    for option in options:
        if getattr(option, "is_flag", False) and option.metavar is None:
            option.metavar = ""
    return options


class PlainCommand(TyperCommand):
    """A command whose help shows values of options that take one."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Options, Typer's own among them."""
        return _without_values(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose help shows values of options that take one."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Options, Typer's own among them."""
        return _without_values(super().get_params(ctx))


class ErrorHandlingGroup(PlainGroup):
    """A command group in which a known error is one line and exit code 1, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MilError as error:
            stderr.print("error:", style="bold red", end=" ")
            stderr.print(printable(str(error)))
            raise typer.Exit(EXIT_KNOWN_ERROR) from error
        except KeyboardInterrupt as error:
            stderr.print("stopped; what was finished is kept")
            raise typer.Exit(EXIT_INTERRUPTED) from error


def print_json(content: Mapping[str, object]) -> None:
    """Print one JSON object on standard output; numbers that are not finite become null."""
    sys.stdout.write(json.dumps(_finite(content), indent=2) + "\n")


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """A progress bar on standard error, with counts, time and time left.

    Parameters
    ----------
    unit
        What is counted, e.g. ``tiles``.
    """
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    ) as progress:
        yield progress


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """A spinner on standard error while something without a known end goes on."""
    with stderr.status(description):
        yield


@contextmanager
def finish_on_interrupt() -> Iterator[Event]:
    """Let the first Ctrl-C only ask to finish what is in work; the second stops at once.

    Yields
    ------
    Event
        Set by the first Ctrl-C.
    """
    stop = Event()
    if current_thread() is not main_thread():  # only there may signals be caught
        yield stop
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        stderr.print("finishing the slides in work; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def raise_open_file_limit() -> None:
    """Raise the limit of open files as far as this process may; macOS begins at 256."""
    try:
        import resource
    except ImportError:  # Windows, where there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS calls its hard limit unlimited, and refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def set_error_tolerant_streams() -> None:
    """Let characters that the terminal's encoding lacks, such as µ, be printed as ``?``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
