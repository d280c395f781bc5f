"""``mil doctor``: check the installation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from cli.console import EXIT_KNOWN_ERROR, print_json, print_next, print_table, spinner, stdout
from cli.options import JsonOutput
from features.utils.text import pluralize

if TYPE_CHECKING:
    from cli.doctor_checks.base import CheckResult

__all__ = ["doctor"]

_STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


def doctor(*, as_json: JsonOutput = False) -> None:
    """Check versions, devices, readers, weights and disks, and embed a synthetic slide.

    Each check is `ok`, a `note` (something optional is missing), or `failed`, with advice. Nothing
    is sent, downloaded or kept.

    Example: `mil doctor`

    Example: `mil doctor --json`

    Exit codes: 0 nothing failed, 1 something failed.
    """
    from cli.doctor_checks.base import run_checks

    with spinner("checking software, machine, readers and backbone"):
        results = [result for part in run_checks() for result in part]
    n_failed = sum(result.status == "failed" for result in results)
    if as_json:
        print_json({"ok": not n_failed, "findings": [asdict(result) for result in results]})
    else:
        _print(results)
        if not n_failed:
            print_next("mil demo")
    if n_failed:
        raise typer.Exit(EXIT_KNOWN_ERROR)


def _print(results: list[CheckResult]) -> None:
    rows: list[tuple[str, str, Text, str]] = []
    part = ""
    for result in results:
        status = Text(result.status, style=_STYLES[result.status])
        rows.append((result.part if result.part != part else "", result.name, status, result.found))
        part = result.part
    print_table(("part", "check", "", "result"), rows)
    for result in results:
        if result.status != "ok":
            stdout.print(f"{result.status}: {result.name}: {result.advice}")
    counts = Counter(result.status for result in results)
    stdout.print(
        f"{counts['ok']} ok, {pluralize(counts['note'], 'notes')}, {counts['failed']} failed"
    )
