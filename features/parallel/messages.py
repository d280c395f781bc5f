"""What workers elsewhere and their crew send each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from features.errors import KnownError

__all__ = [
    "Asks",
    "Died",
    "Done",
    "Nothing",
    "PutBack",
    "Quit",
    "Ready",
    "Refused",
    "Rests",
    "Told",
]


@dataclass(frozen=True)
class Ready:
    """A worker has begun and waits for a job."""

    card: object
    """What it says of itself."""
    where: str
    """Machine and process it is in."""


@dataclass(frozen=True)
class Refused:
    """A worker cannot begin."""

    error: KnownError
    """Why."""


@dataclass(frozen=True)
class Asks:
    """A worker has room for another job; the answer is a deal or :class:`Nothing`."""


@dataclass(frozen=True)
class Done:
    """A job is done."""

    number: int
    """Which."""
    result: Any
    """What came of it."""


@dataclass(frozen=True)
class PutBack:
    """A job cannot be done now."""

    number: int
    """Which."""


@dataclass(frozen=True)
class Told:
    """A worker says how far it is."""

    news: Any
    """What it says."""


@dataclass(frozen=True)
class Rests:
    """A worker has nothing in hand and waits for a job."""


@dataclass(frozen=True)
class Died:
    """A worker is no more."""

    reason: str
    """How it came."""


@dataclass(frozen=True)
class Nothing:
    """To a worker: no job for now; finish what you have."""


@dataclass(frozen=True)
class Quit:
    """To a worker: go home."""
