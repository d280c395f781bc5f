"""``mil doctor``: whether this machine can do the work."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from cli.console import EXIT_KNOWN_ERROR, print_json, spinner, stdout
from cli.options import JsonOutput
from features.utils.text import pluralize

if TYPE_CHECKING:
    from cli.doctor_checks.base import CheckResult

__all__ = ["doctor"]

_STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


def doctor(*, as_json: JsonOutput = False) -> None:
    """Look at versions, devices, readers, weights and disks, and embed a painted slide.

    Each line is `ok`, a `note` (something one may do without), or `failed`, with what to do about
    it. Nothing is sent or downloaded, and nothing is kept.

    Example: `mil doctor`

    Example: `mil doctor --json`

    Exit codes: 0 nothing failed, 1 something failed.
    """
    from cli.doctor_checks.run import run_checks

    with spinner("looking at software, machine, readers and backbone"):
        findings = [finding for part in run_checks() for finding in part]
    n_failed = sum(finding.status == "failed" for finding in findings)
    if as_json:
        print_json({"ok": not n_failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if n_failed:
        raise typer.Exit(EXIT_KNOWN_ERROR)


def _print(findings: list[CheckResult]) -> None:
    table = Table()
    for name in ("part", "looked at", "", "found"):
        table.add_column(name, overflow="fold")
    part = ""
    for finding in findings:
        table.add_row(
            finding.part if finding.part != part else "",
            finding.name,
            Text(finding.status, style=_STYLES[finding.status]),
            Text(finding.found),
        )
        part = finding.part
    stdout.print(table)
    for finding in findings:
        if finding.status != "ok":
            stdout.print(f"{finding.status}: {finding.name}: {finding.advice}")
    counts = Counter(finding.status for finding in findings)
    stdout.print(
        f"{counts['ok']} ok, {pluralize(counts['note'], 'notes')}, {counts['failed']} failed"
    )
