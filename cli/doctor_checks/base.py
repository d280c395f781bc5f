"""What a look at one part of the machine found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["CheckResult", "Status", "run_check"]

Status = Literal["ok", "note", "failed"]
"""``note`` is something one may do without, ``failed`` something that the work needs."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One line of a checkup."""

    part: str
    """Part of the machine, e.g. ``software``."""
    name: str
    """What was looked at."""
    status: Status
    """Whether it is as it should be."""
    found: str
    """What is there."""
    advice: str = ""
    """What to do about it, as full sentences; empty where nothing is to be done."""


def run_check(part: str, name: str, look: Callable[[], str], *, advice: str) -> CheckResult:
    """What came of trying something.

    Parameters
    ----------
    part, name
        As of the finding.
    look
        Tries it and says what was found, in a few words.
    advice
        What to do where it fails.
    """
    try:
        return CheckResult(part=part, name=name, status="ok", found=look())
    except Exception as error:  # noqa: BLE001 - whatever is broken, the other lines still count
        said = " ".join(str(error).split())[:200] or type(error).__name__
        return CheckResult(part=part, name=name, status="failed", found=said, advice=advice)
