"""Jobs, those who do them, and those who want to know what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

__all__ = ["Executor", "Hire", "Job", "JobListener", "JobQueue", "Worker"]


@dataclass(frozen=True)
class Job:
    """A job in somebody's hands."""

    number: int
    """Its place among the jobs of a run."""
    job: Any
    """What is to be done."""
    n_crashes: int = 0
    """Workers that died with it in their hands."""


class JobQueue(Protocol):
    """Where one worker gets its jobs and leaves its results; used from several threads."""

    def deals(self) -> Iterator[Job]:
        """Jobs as they are wanted; ends when there is none for now."""
        ...

    def done(self, deal: Job, result: Any) -> None:
        """Leave the result of a job."""
        ...

    def requeue(self, deal: Job) -> None:
        """Give a job back that cannot be done now; it comes again a little later."""
        ...

    def tell(self, news: Any) -> None:
        """Say how far the work is."""
        ...


class Worker(Protocol):
    """Does jobs, several at once if it likes."""

    @property
    def card(self) -> object:
        """What all workers of a run must have in common; compared with ``==``, shown as text."""
        ...

    def work(self, desk: JobQueue) -> None:
        """Do jobs until there is none for now, and finish all that were begun."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


Hire = Callable[[], Worker]
"""Makes a worker where it is to work; it has to survive pickling, and so have jobs and results."""


class JobListener(Protocol):
    """Whoever gave the jobs; called from several threads where the work is done in this process."""

    def done(self, job: Any, result: Any) -> None:
        """Called with the result of a job."""
        ...

    def lost(self, job: Any, reason: str) -> None:
        """Called instead where a job killed its workers again and again."""
        ...

    def told(self, news: Any) -> None:
        """Called with what a worker says while it works."""
        ...


class Executor(Protocol):
    """Has jobs done."""

    @property
    def card(self) -> object:
        """What its workers have in common."""
        ...

    def run(self, jobs: Sequence[Any], watcher: JobListener, *, stop: Event) -> None:
        """Have jobs done; returns when the watcher knows of each what became of it.

        Parameters
        ----------
        jobs
            What is to be done, in this order as far as possible.
        watcher
            Told of everything.
        stop
            Once set, what was begun is finished and nothing new begun.
        """
        ...
