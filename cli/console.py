"""Consoles, progress bars, error handling and process limits of the command line."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, copy_context
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread, current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from cli.streams import known_errors
from cli.synonyms import command_meant, option_meant
from features.errors import MilError
from features.parallel.locks import release_shared_locks
from features.utils.text import printable

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_KNOWN_ERROR",
    "EXIT_PARTLY_FAILED",
    "ErrorHandlingGroup",
    "PlainCommand",
    "PlainGroup",
    "exit_if_failed",
    "finish_on_interrupt",
    "hush_matplotlib",
    "in_thread",
    "leaf_commands",
    "let_waiting_threads_sleep",
    "options_elsewhere",
    "print_json",
    "print_next",
    "print_numbers",
    "print_table",
    "progress_bar",
    "raise_open_file_limit",
    "spinner",
    "stderr",
    "stdout",
    "treat_sigterm_as_interrupt",
    "warn",
]

T = TypeVar("T")

EXIT_KNOWN_ERROR = 1
EXIT_PARTLY_FAILED = 3
EXIT_INTERRUPTED = 130

_RUNNING: ContextVar[Any] = ContextVar("_RUNNING", default=None)
"""Context of the command that runs."""
_EXTRA = "Got unexpected extra argument"
"""Beginning of the usage error for words that a command does not take."""
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")

_STOPPED = "stopped; what was finished is kept"
_EXIT_S = 10.0
"""Time for an interrupt to end the work, before the program ends without waiting for it."""
_RELEASE_S = 2.0
_MIN_COLUMNS, _USUAL_COLUMNS = 20, 80
_POLL_S = 0.2

_SPEED_PERIOD_S = 300.0
"""Period over which speeds are averaged; slides differ in size, and estimates shall settle."""


class _PlainConsole(Console):
    """A console that prints any text literally.

    Brackets are not markup, colons not emoji, and control characters are replaced, on standard
    error also line breaks: a message has one line, whatever a name in it holds.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
        if self.width < _MIN_COLUMNS:  # some terminals state 0, and all text would be lost
            os.environ.pop("COLUMNS", None)
            self.width = _USUAL_COLUMNS

    def render_str(self, text: str, **options: Any) -> Text:
        """Replace control characters in all text, including that of tables."""
        text = text.replace("\n", " ") if self.stderr else text
        return super().render_str(printable(text, kept="\n"), **options)


stderr = _PlainConsole(stderr=True)
"""Console for progress, warnings and errors."""

stdout = _PlainConsole()
"""Console for results; nothing else goes to standard output."""


def warn(text: str) -> None:
    """Print a warning or note on standard error."""
    stderr.print(text, style="yellow")


def exit_if_failed(n_failed: int, n_all: int) -> None:
    """End the command with an error if any of all failed, another one if every one did."""
    if n_failed:
        raise typer.Exit(EXIT_KNOWN_ERROR if n_failed == n_all else EXIT_PARTLY_FAILED)


class _PlainHelp:
    """Help that shows a value only for options that take one, including Typer's own."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all options."""
        options: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for option in options:
            if getattr(option, "is_flag", False) and option.metavar is None:
                option.metavar = ""
        return options


class PlainCommand(_PlainHelp, TyperCommand):
    """A command whose help shows a value only for options that take one.

    An error that advises on an option of other commands, as their shared code does, says so.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the arguments; say which option is meant by a name that other programs use."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if hasattr(error, "possibilities"):
                known = {word for one in self.params for word in _names(one)}
                if meant := option_meant(str(getattr(error, "option_name", "")), known):
                    error.possibilities = ()
                    error.message = f"{getattr(error, 'message', '')}. Did you mean {meant}?"
            text = str(getattr(error, "message", ""))
            if text.startswith(_EXTRA) and (named := _path_options(self.params)):
                error.message = f"{text}. Name files and folders by {named}."
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        token = _RUNNING.set(ctx)
        try:
            return super().invoke(ctx)
        except MilError as error:
            error.hint = f"{error.hint} {options_elsewhere(str(error))}".strip()
            raise
        finally:
            _RUNNING.reset(token)


class PlainGroup(_PlainHelp, TyperGroup):
    """A group of commands whose help shows a value only for options that take one."""


class _Abandoned(KeyboardInterrupt):
    """An interrupt while another thread works, which goes on."""


class ErrorHandlingGroup(PlainGroup):
    """A command group that reports a known error in one line, with exit code 1."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line, also where its results cannot be written."""
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except MilError as error:
            _print_error(error)
            sys.exit(EXIT_KNOWN_ERROR)

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the options of all commands; Typer prints for them past the guarded stream."""
        with known_errors(sys.stdout):
            return super().make_context(*args, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; say which one is meant by a name that other programs use."""
        if args[0] not in self.commands and (meant := command_meant(args[0])):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {meant!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MilError as error:
            _print_error(error)
            raise typer.Exit(EXIT_KNOWN_ERROR) from error
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # which Path.is_file and the like raise
                raise
            _print_error(MilError(error.filename, actual=str(error.strerror)))
            raise typer.Exit(EXIT_KNOWN_ERROR) from error
        except _Abandoned:  # Python would wait for the thread's own threads before it ends.
            _end_at_once()
        except KeyboardInterrupt as error:
            stderr.print(_STOPPED)
            raise typer.Exit(EXIT_INTERRUPTED) from error


def _print_error(error: MilError) -> None:
    stderr.print("error:", style="bold red", end=" ")
    stderr.print(str(error))


def _names(parameter: Any) -> list[str]:
    """Return the names of an option, or that of an argument in the help, such as SLIDES."""
    if parameter.param_type_name == "argument":
        return re.findall("[A-Z]+", parameter.metavar or parameter.name.upper())
    return list(parameter.opts)


def _path_options(parameters: list[Any]) -> str:
    """Return the options that name tables and folders, for a command that has no arguments."""
    if any(one.param_type_name == "argument" for one in parameters):
        return ""
    return ", ".join(one.opts[0] for one in parameters if one.metavar in {"CSV", "FOLDER"})


def options_elsewhere(text: str) -> str:
    """Return which commands have the options of a text that the running one has not.

    Options of a command that the text names are clear; so are those of other programs.
    """
    if (ctx := _RUNNING.get()) is None:
        return ""
    commands = dict(leaf_commands(ctx.find_root().command, "mil"))
    known = {name: {word for one in command.params for word in one.opts}
             for name, command in commands.items()}  # fmt: skip
    own = {word for one in ctx.command.params for word in one.opts}
    named = own.union(*(options for name, options in known.items() if name in text))
    sentences = []
    for option in dict.fromkeys(_OPTION.findall(text)):
        others = [f"'{name}'" for name, options in known.items() if option in options]
        if others and option not in named:
            sentences.append(f"{option} is an option of {', '.join(others)}.")
    return " ".join(sentences)


def leaf_commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the commands below a group, with what is typed to run them."""
    if not isinstance(command, TyperGroup):
        yield name, command
        return
    for word, part in command.commands.items():
        yield from leaf_commands(part, f"{name} {word}")


def print_json(content: Mapping[str, object]) -> None:
    """Print one JSON object on standard output; NaN and infinity become null."""
    sys.stdout.write(json.dumps(_finite(content), indent=2) + "\n")


def print_next(*commands: str, **paths: Path | str | Sequence[Path | str]) -> None:
    """Print on standard error what can be done next: commands, with paths in braces by name.

    Paths are quoted for the shell where they have to be; none leave nothing at the end.
    """
    quoted = {
        name: shlex.join(map(_argument, [path] if isinstance(path, Path | str) else path))
        for name, path in paths.items()
    }
    for number, command in enumerate(commands):
        start = "or:  " if number else "Next:"
        stderr.print(f"{start} {command.format(**quoted).rstrip()}", style="dim")


def _argument(path: Path | str) -> str:
    """Return a path as it is typed: one that begins as an option does is not taken for one."""
    return f"./{path}" if isinstance(path, Path) and str(path).startswith("-") else str(path)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    title: str | None = None,
    numeric: Collection[str] = (),
    whole: Collection[str] = (),
) -> None:
    """Print a table of shape (rows, columns) on standard output; numbers are right-aligned.

    Columns named in ``whole`` are not broken over lines, however narrow the terminal.
    """
    table = Table(title=title, title_justify="left")
    for name in columns:
        if name in numeric:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold", no_wrap=name in whole)
    for row in rows:
        table.add_row(*row)
    stdout.print(table)


def print_numbers(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, n_names: int = 1
) -> None:
    """Print a table of numbers, shape (rows, columns), on standard output.

    The first ``n_names`` columns are left-aligned, and a narrow terminal breaks any cell.
    """
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < n_names else "right")
    for row in rows:
        table.add_row(*row)
    stdout.print(table)


class _CountColumn(ProgressColumn):
    """Finished items and all of them, as far as that is known: ``3/60 slides``, ``3 slides``."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        if task.total is None and not task.completed:
            return Text("")
        of_all = "" if task.total is None else f"/{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}{of_all} {self._unit}", style="progress.download")


class _RemainingColumn(ProgressColumn):
    """Time left by the mean speed of the last minutes; empty as long as nothing is known of it."""

    max_refresh = 1.0  # seconds, so that it can be read

    def render(self, task: Task) -> Text:
        if task.total is None or task.time_remaining is None or task.finished:
            return Text("")
        left = timedelta(seconds=int(task.time_remaining))
        return Text(f"{left} left", style="progress.remaining")


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """Show a progress bar on standard error, with counts of a unit such as ``tiles``."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _CountColumn(unit),
        TimeElapsedColumn(),
        _RemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,  # all that a file would get is an empty line
        speed_estimate_period=_SPEED_PERIOD_S,
    ) as progress:
        yield progress


def spinner(description: str) -> AbstractContextManager[object]:
    """Show a spinner on standard error during an activity of unknown length."""
    return stderr.status(description) if stderr.is_terminal else nullcontext()


@contextmanager
def finish_on_interrupt() -> Iterator[Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; the second stops the program at once.

    Where a thread waits for storage that does not answer, the second ends it after ten seconds, and
    a third does so at once.

    Job schedulers, container engines and ``kill`` send SIGTERM, also where Ctrl-C is ignored: under
    ``nohup`` and in the background.
    """
    stop, ended = Event(), Event()
    if current_thread() is not main_thread():  # signals can be caught only there
        yield stop
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            _end_soon(ended)
            raise KeyboardInterrupt
        stop.set()
        stderr.print("finishing the slides in progress; Ctrl-C or SIGTERM again stops at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def in_thread(function: Callable[[], T]) -> T:
    """Call a function in another thread, so that Ctrl-C and SIGTERM end the program if it hangs.

    A thread that waits for storage is not interrupted by them. The program ends without it, as soon
    as the command has cleaned up; if that hangs too, after ten seconds or at the next signal.
    """
    ended: SimpleQueue[tuple[T] | BaseException] = SimpleQueue()
    result: tuple[T] | BaseException | None = None

    def call() -> None:
        try:
            ended.put((function(),))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            ended.put(error)

    try:
        Thread(target=copy_context().run, args=(call,), daemon=True).start()
        while result is None:  # A signal that comes just before an endless wait is not noticed.
            with suppress(Empty):
                result = ended.get(timeout=_POLL_S)
    except KeyboardInterrupt as error:
        _end_soon(Event())
        raise _Abandoned from error
    if isinstance(result, BaseException):
        raise result
    return result[0]


def _end_soon(ended: Event) -> None:
    """End the program at the next signal, or unless the interrupt has ended the work in time."""

    def wait() -> None:
        if not ended.wait(_EXIT_S):
            _end_at_once()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: _end_at_once())
    Thread(target=wait, daemon=True).start()


def _end_at_once() -> NoReturn:
    """Release locks and end the program, whatever its threads wait for."""
    releasing = Thread(target=release_shared_locks, daemon=True)  # it may hang on the same storage
    releasing.start()
    releasing.join(_RELEASE_S)
    stderr.show_cursor()
    stderr.print(_STOPPED)
    os._exit(EXIT_INTERRUPTED)


def treat_sigterm_as_interrupt() -> None:
    """Let SIGTERM end a command as Ctrl-C does: locks are released, and finished work is kept."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def let_waiting_threads_sleep() -> None:
    """Make threads of torch and NumPy that wait for work sleep, unless the user set it otherwise.

    OpenMP and OpenBLAS let them spin by default, and read this when torch and NumPy are loaded.
    Training and inference compute many small products in turn with both: the spinning threads of
    one keep those of the other, and other programs, from their work.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # sleep after 2^4 cycles, not 2^26


def hush_matplotlib() -> None:
    """Keep notes of Matplotlib out of messages, such as on a home folder that is read-only."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def raise_open_file_limit() -> None:
    """Raise the limit of open files to its maximum; on macOS the default is 256."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS reports an unlimited hard limit, but refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have, NaN and infinity, by None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
