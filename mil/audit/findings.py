"""What an audit finds, and how bad it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Severity", "abbreviate"]

_N_NAMED = 3


class Severity(StrEnum):
    """How bad a finding is, worst first."""

    error = "error"
    """A leak: scores got from these tables would be better than the truth."""
    warning = "warning"
    """Nothing leaks, but training would refuse the table, or scores could mislead."""
    note = "note"
    """Worth knowing."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found, in plain words."""

    severity: Severity
    """How bad it is."""
    kind: str
    """What it is, one stable word for programs, e.g. ``patient_on_two_sides``."""
    message: str
    """What was found."""
    advice: str
    """What to do, as full sentences; empty where there is nothing to do."""
    subjects: tuple[str, ...] = ()
    """All patients, slides, centres or classes concerned; the message names the first few."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "severity": self.severity.value,
            "kind": self.kind,
            "message": self.message,
            "advice": self.advice,
            "subjects": list(self.subjects),
        }


def abbreviate(names: Sequence[str]) -> str:
    """The first few names and how many more there are: ``a, b, c and 4 more``."""
    more = len(names) - _N_NAMED
    return ", ".join(names[:_N_NAMED]) + (f" and {more} more" if more > 0 else "")
