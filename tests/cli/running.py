"""``mil`` as a user types it, in the process of the tests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import typer.main
from typer.testing import CliRunner, Result

from cli.app import app
from cli.console import leaf_commands

__all__ = ["COMMANDS", "expect_advice", "follow_advice", "mil", "mil_ok"]

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


COMMANDS: dict[str, Any] = dict(leaf_commands(typer.main.get_command(app), "mil"))
"""All commands by name."""


def mil(*arguments: object) -> Result:
    """Run a command; its exit code and output are in the result."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mil_ok(*arguments: object) -> Result:
    """Run a command that must succeed, and end with what to do next."""
    result = mil(*arguments)
    assert result.exit_code == 0, (arguments, result.output)
    # Other programs read exported bags and JSON.
    if not {"--json", "--help", "--version", "export"} & set(map(str, arguments)):
        assert "Next: " in result.stderr, (arguments, result.output)
    return result


def follow_advice(
    wrong: str | Sequence[object], advice: str, then: str | Sequence[object], *, exit_code: int = 1
) -> None:
    """Type a command that fails with an advice, and then what it says, which must succeed."""
    expect_advice(wrong, advice, exit_code=exit_code)
    mil_ok(*_words(then))


def expect_advice(command: str | Sequence[object], advice: str, *, exit_code: int = 1) -> str:
    """Type a command that fails with an advice, and return the line that gives it.

    The options in the line are those of the command, or of another that the line names.
    """
    failed = mil(*_words(command))
    assert failed.exit_code == exit_code, (command, failed.output)
    output = failed.output
    if exit_code == 2:  # The line is broken in a frame.
        output = " ".join(output.replace("│", " ").split())
    lines = [line for line in output.splitlines() if advice in line]
    assert lines, failed.output
    typed = next(name for name in COMMANDS if _is_start(name.split()[1:], _words(command)))
    named = {typed, *(name for name in COMMANDS if name in lines[0])}
    known = {option for name in named for one in COMMANDS[name].params for option in one.opts}
    assert not set(_OPTION.findall(lines[0])) - known, lines[0]
    return lines[0]


def _is_start(words: Sequence[str], of: Sequence[object]) -> bool:
    return list(map(str, of[: len(words)])) == list(words)


def _words(command: str | Sequence[object]) -> Sequence[object]:
    return shlex.split(command) if isinstance(command, str) else command
