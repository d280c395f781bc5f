"""Results of the checks, and the functions that run them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from features.errors import one_line

__all__ = ["PARTS", "CheckResult", "Status", "run_check", "run_checks"]

Status = Literal["ok", "note", "failed"]
"""``note``: something optional is missing; ``failed``: something required does not work."""

PARTS = {
    "software": "packages",
    "machine": "hardware",
    "readers": "readers",
    "backbone": "encoder",
}
"""Module of this package that checks each part, the fastest first."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Observation of one check of a part of the system, e.g. ``software``.

    ``advice`` is in full sentences, empty if nothing has to be done.
    """

    part: str
    name: str
    status: Status = "ok"
    found: str
    advice: str = ""


def run_check(part: str, name: str, check: Callable[[], str], *, advice: str) -> CheckResult:
    """Run a check that returns its observation; any exception is a failure with the advice."""
    try:
        return CheckResult(part=part, name=name, found=check())
    except Exception as error:  # noqa: BLE001 - any failure must leave the other checks running
        message = one_line(str(error), max_chars=300) or type(error).__name__
        return CheckResult(part=part, name=name, status="failed", found=message, advice=advice)


def run_checks() -> Iterator[list[CheckResult]]:
    """Yield the results of each of :data:`PARTS`.

    Each part is imported only when its turn comes, so that a package that cannot be imported fails
    its own part and no other.
    """
    for part, name in PARTS.items():
        try:
            yield importlib.import_module(f"cli.doctor_checks.{name}").check()
        except Exception as error:  # noqa: BLE001 - a broken installation fails in any way
            message = one_line(f"{type(error).__name__}: {error}", max_chars=200)
            yield [
                CheckResult(
                    part=part, name="all of it", status="failed", found=message,
                    advice="Install again: pip install --force-reinstall mil-slides",
                )
            ]  # fmt: skip
