"""Executor that runs jobs in the calling process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

from features.parallel.base import Job, JobListener, Worker

__all__ = ["LocalExecutor"]

_REQUEUE_DELAY_S = 1.0


class LocalExecutor:
    """Executor with one worker, in the caller's process and thread.

    Jobs that cannot run now are offered again after one second.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def info(self) -> object:
        """Properties of the worker."""
        return self._worker.info

    def run(self, payloads: Sequence[Any], listener: JobListener, *, stop: Event) -> None:
        """Run jobs; see :meth:`features.parallel.base.Executor.run`."""
        waiting = [Job(index, payload) for index, payload in enumerate(payloads)]
        while waiting and not stop.is_set():
            queue = _LocalQueue(waiting, listener, stop)
            self._worker.run(queue)
            waiting = queue.requeued
            if waiting:
                stop.wait(_REQUEUE_DELAY_S)


class _LocalQueue:
    def __init__(self, jobs: Sequence[Job], listener: JobListener, stop: Event) -> None:
        self._jobs, self._listener, self._stop = jobs, listener, stop
        self.requeued: list[Job] = []

    def jobs(self) -> Iterator[Job]:
        for job in self._jobs:
            if self._stop.is_set():
                return
            yield job

    def finish(self, job: Job, result: Any) -> None:
        self._listener.on_done(job.payload, result)

    def requeue(self, job: Job) -> None:
        self.requeued.append(job)

    def send_message(self, message: Any) -> None:
        self._listener.on_message(message)
