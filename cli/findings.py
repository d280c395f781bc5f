"""Findings as ``mil audit`` and ``mil describe`` print them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.text import Text

from cli.console import results

if TYPE_CHECKING:
    from mil.audit import Finding

__all__ = ["print_findings"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_findings(findings: Iterable[Finding]) -> None:
    """Print one line a finding: how bad it is, what was found, and what to do."""
    for finding in findings:
        text = Text()
        text.append(f"{finding.severity.value}: ", style=_STYLES[finding.severity.value])
        text.append(f"{finding.message}. {finding.advice}".rstrip())
        results.print(text)
