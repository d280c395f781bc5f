"""Messages between a worker pool and its workers."""

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
    """From a worker: started, and waiting for a job."""

    info: object
    """:attr:`features.parallel.base.Worker.info` of the worker."""
    location: str
    """Its machine and process, as text."""


@dataclass(frozen=True)
class StartFailed:
    """From a worker: it cannot start."""

    error: MilError


@dataclass(frozen=True)
class RequestJob:
    """From a worker: room for another job; the answer is a job or :class:`NoJob`."""


@dataclass(frozen=True)
class Done:
    """From a worker: the result of the job with this index."""

    index: int
    result: Any


@dataclass(frozen=True)
class Requeue:
    """From a worker: the job with this index cannot run now."""

    index: int


@dataclass(frozen=True)
class Progress:
    """From a worker: a message for the listener of the run."""

    message: Any


@dataclass(frozen=True)
class Idle:
    """From a worker: all its jobs are finished, and it waits for another."""


@dataclass(frozen=True)
class WorkerDied:
    """From the transport: a worker has ended."""

    reason: str


@dataclass(frozen=True)
class NoJob:
    """To a worker: no job for now; finish those that were started."""


@dataclass(frozen=True)
class Shutdown:
    """To a worker: end."""
