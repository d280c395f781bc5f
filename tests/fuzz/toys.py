"""Parsers that do all that no parser should, to see that it is found."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from features.errors import MilError
from tests.fuzz.samples import Sample
from tests.fuzz.targets import Target

__all__ = ["TOYS"]

_HEALTHY = b"healthy"


def _samples(_folder: Path, _real: Path | None) -> list[Sample]:
    return [{"a.txt": _HEALTHY}]


def _toy(misbehave: Callable[[], object]) -> Target:
    def read(folder: Path) -> None:
        if (folder / "a.txt").read_bytes() != _HEALTHY:
            misbehave()

    return Target(samples=_samples, read=read)


def _refuse() -> None:
    raise MilError("a.txt", actual="not healthy")


def _hang() -> None:
    while True:
        pass


def _ask_for_memory() -> None:
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise MilError("a.txt", actual="too large") from error


def _trace() -> None:
    raise ZeroDivisionError


TOYS: Mapping[str, Target] = MappingProxyType({
    "toy refused": _toy(_refuse),
    "toy traceback": _toy(_trace),
    "toy memory": _toy(_ask_for_memory),
    "toy crash": _toy(os.abort),
    "toy hang": _toy(_hang),
})  # fmt: skip
"""By what is to be found."""
