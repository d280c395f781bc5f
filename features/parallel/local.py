"""Work in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

from features.parallel.base import Job, JobListener, Worker

__all__ = ["LocalExecutor"]

_SECONDS_BETWEEN_LOOKS = 1.0


class LocalExecutor:
    """An engine of one worker, in the caller's process and thread.

    Parameters
    ----------
    worker
        Who does the jobs.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def card(self) -> object:
        """What the worker says of itself."""
        return self._worker.card

    def run(self, jobs: Sequence[Any], watcher: JobListener, *, stop: Event) -> None:
        """Have jobs done; see :class:`features.parallel.base.Executor`."""
        waiting = [Job(number, job) for number, job in enumerate(jobs)]
        while waiting and not stop.is_set():
            desk = _LocalQueue(waiting, watcher, stop)
            self._worker.work(desk)
            waiting = desk.returned
            if waiting:
                stop.wait(_SECONDS_BETWEEN_LOOKS)


class _LocalQueue:
    def __init__(self, deals: Sequence[Job], watcher: JobListener, stop: Event) -> None:
        self._deals, self._watcher, self._stop = deals, watcher, stop
        self.returned: list[Job] = []

    def deals(self) -> Iterator[Job]:
        for deal in self._deals:
            if self._stop.is_set():
                return
            yield deal

    def done(self, deal: Job, result: Any) -> None:
        self._watcher.done(deal.job, result)

    def requeue(self, deal: Job) -> None:
        self.returned.append(deal)

    def tell(self, news: Any) -> None:
        self._watcher.told(news)
