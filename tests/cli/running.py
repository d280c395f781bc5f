"""``mil`` as a user types it, in the process of the tests."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from typer.testing import CliRunner, Result

from cli.app import app

__all__ = ["follow_advice", "mil", "mil_ok"]


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
    failed = mil(*_words(wrong))
    assert failed.exit_code == exit_code, (wrong, failed.output)
    assert advice in " ".join(failed.output.replace("│", " ").split()), failed.output
    mil_ok(*_words(then))


def _words(command: str | Sequence[object]) -> Sequence[object]:
    return shlex.split(command) if isinstance(command, str) else command
