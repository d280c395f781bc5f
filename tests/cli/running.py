"""``mil`` as a user types it, in the process of the tests."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from cli.app import app

__all__ = ["mil"]


def mil(*arguments: object) -> Result:
    """Run a command; its exit code and output are in the result."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
