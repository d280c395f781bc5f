"""Protocols of executors, workers and job queues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

__all__ = ["Executor", "Job", "JobListener", "JobQueue", "Worker", "WorkerFactory"]


@dataclass(frozen=True)
class Job:
    """One unit of work: its index among the jobs of a run, and how many workers died running it."""

    index: int
    payload: Any
    n_crashes: int = 0


class JobQueue(Protocol):
    """The queue from which one worker takes jobs and to which it reports; thread-safe."""

    def jobs(self) -> Iterator[Job]:
        """Yield jobs until none is available for now."""

    def finish(self, job: Job, result: Any) -> None:
        """Report the result of a job."""

    def requeue(self, job: Job) -> None:
        """Return a job that cannot run now; it is offered again after about a second."""

    def send_message(self, message: Any) -> None:
        """Send a progress message to the listener of the run."""


class Worker(Protocol):
    """A runner of jobs, of one or several at once."""

    @property
    def info(self) -> object:
        """Properties that all workers of a run must share; compared with ``==``, shown as text."""

    def run(self, queue: JobQueue) -> None:
        """Run jobs until the queue offers none, and finish all that were started."""

    def close(self) -> None:
        """Release all resources."""


WorkerFactory = Callable[[], Worker]
"""Builds a worker in the process where it will run; must be picklable, as payloads and results."""


class JobListener(Protocol):
    """Callbacks of a run; a local executor calls them from several threads."""

    def on_done(self, payload: Any, result: Any) -> None:
        """Receive the result of a job."""

    def on_failed(self, payload: Any, reason: str) -> None:
        """Receive the reason why a job was given up, after it crashed several workers."""

    def on_message(self, message: Any) -> None:
        """Receive a progress message of a worker."""


class Executor(Protocol):
    """A runner of many jobs on one or several workers."""

    @property
    def info(self) -> object:
        """Properties that its workers share."""

    def run(self, payloads: Sequence[Any], listener: JobListener, *, stop: Event) -> None:
        """Run jobs; returns when each has a result or is given up.

        Parameters
        ----------
        payloads
            One per job; started in this order as far as possible.
        listener
            Receives results, failures and progress messages.
        stop
            Once set, started jobs are finished and no others started.
        """
