"""Findings of an audit and their severity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Severity", "worst_first"]


class Severity(StrEnum):
    """Severity of a finding, worst first.

    An error is a leak: scores obtained from these tables would be too good. After a warning,
    training would refuse the table, or scores could mislead.
    """

    error = "error"
    warning = "warning"
    note = "note"


@dataclass(frozen=True)
class Finding:
    """One finding, in plain words.

    ``kind`` is a stable identifier for programs, e.g. ``patient_on_two_sides``; ``advice`` is in
    full sentences, empty if nothing has to be done; ``subjects`` are all patients, slides, centres
    or classes concerned, of which the message names the first few.
    """

    severity: Severity
    kind: str
    message: str
    advice: str = ""
    subjects: tuple[str, ...] = ()


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings by severity; those of equal severity keep their order."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))
