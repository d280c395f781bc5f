"""Messages between a worker pool and its workers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from features.errors import MilError

__all__ = ["Done", "Progress", "Ready", "Requeue", "Signal", "StartFailed", "WorkerDied"]


class Signal(Enum):
    """Message without content."""

    REQUEST_JOB = "from a worker: room for another job; the answer is a job or NO_JOB"
    IDLE = "from a worker: all its jobs are finished, and it waits for another"
    NO_JOB = "to a worker: no job for now; finish those that were started"
    SHUTDOWN = "to a worker: end"


@dataclass(frozen=True)
class Ready:
    """From a worker: started, and waiting for a job; ``location`` is its machine and process."""

    info: object
    location: str


@dataclass(frozen=True)
class StartFailed:
    """From a worker: it cannot start."""

    error: MilError


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
class WorkerDied:
    """From the transport: a worker has ended."""

    reason: str
