"""What workers elsewhere and their crew send each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from features.errors import MilError

__all__ = [
    "Done",
    "Idle",
    "NoJob",
    "Progress",
    "Ready",
    "RequestJob",
    "Requeue",
    "Shutdown",
    "StartFailed",
    "WorkerDied",
]


@dataclass(frozen=True)
class Ready:
    """A worker has begun and waits for a job."""

    card: object
    """What it says of itself."""
    where: str
    """Machine and process it is in."""


@dataclass(frozen=True)
class StartFailed:
    """A worker cannot begin."""

    error: MilError
    """Why."""


@dataclass(frozen=True)
class RequestJob:
    """A worker has room for another job; the answer is a deal or :class:`NoJob`."""


@dataclass(frozen=True)
class Done:
    """A job is done."""

    number: int
    """Which."""
    result: Any
    """What came of it."""


@dataclass(frozen=True)
class Requeue:
    """A job cannot be done now."""

    number: int
    """Which."""


@dataclass(frozen=True)
class Progress:
    """A worker says how far it is."""

    news: Any
    """What it says."""


@dataclass(frozen=True)
class Idle:
    """A worker has nothing in hand and waits for a job."""


@dataclass(frozen=True)
class WorkerDied:
    """A worker is no more."""

    reason: str
    """How it came."""


@dataclass(frozen=True)
class NoJob:
    """To a worker: no job for now; finish what you have."""


@dataclass(frozen=True)
class Shutdown:
    """To a worker: go home."""
