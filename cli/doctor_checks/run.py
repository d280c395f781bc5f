"""All parts of the machine, one after the other, each by itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from cli.doctor_checks.base import CheckResult

__all__ = ["PARTS", "run_checks"]

PARTS = {
    "software": "packages",
    "machine": "hardware",
    "readers": "readers",
    "backbone": "encoder",
}
"""Module of this package that checks each part, the quickest first."""


def run_checks() -> Iterator[list[CheckResult]]:
    """What was found of each part, in the order of :data:`PARTS`.

    A part is loaded only when it is its turn: a package that cannot be imported fails its own part
    and no other.
    """
    for part, name in PARTS.items():
        try:
            module = importlib.import_module(f"cli.doctor_checks.{name}")
            yield module.check()
        except Exception as error:  # noqa: BLE001 - a broken installation breaks in any way
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            yield [
                CheckResult(
                    part=part, name="all of it", status="failed", found=said,
                    advice="Install again: pip install --force-reinstall mil-slides",
                )
            ]  # fmt: skip
