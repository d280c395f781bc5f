"""Job queue of a worker pool, which counts the workers that each job has crashed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from features.parallel.base import Job

__all__ = ["CrashAwareQueue"]

_MAX_CRASHES = 3
_REQUEUE_DELAY_S = 1.0


class CrashAwareQueue:
    """Waiting and running jobs of a pool.

    The jobs of a worker that died are queued again, but each runs alone: this separates the job
    that crashes its worker from those that merely ran at the same time. A job is given up after
    three crashes. Jobs start in the order of their payloads as far as possible.
    """

    def __init__(self, payloads: Iterable[Any]) -> None:
        self._new = deque(Job(index, payload) for index, payload in enumerate(payloads))
        self._crashed: deque[Job] = deque()
        self._delayed: deque[tuple[float, Job]] = deque()
        self._running: dict[str, dict[int, Job]] = {}

    @property
    def n_waiting(self) -> int:
        """Number of jobs that no worker runs."""
        return len(self._new) + len(self._crashed) + len(self._delayed)

    @property
    def n_running(self) -> int:
        """Number of jobs that workers run."""
        return sum(map(len, self._running.values()))

    def pop_for(self, worker_id: str) -> Job | None:
        """Return the next job for a worker; None if it can have none now."""
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            _, job = self._delayed.popleft()
            (self._crashed if job.n_crashes else self._new).append(job)
        running = self._running.setdefault(worker_id, {})
        if any(job.n_crashes for job in running.values()):
            return None
        if self._crashed and not running:
            job = self._crashed.popleft()
        elif self._new:
            job = self._new.popleft()
        else:
            return None
        running[job.index] = job
        return job

    def finish(self, worker_id: str, index: int) -> Any:
        """Remove a finished job and return its payload."""
        return self._running[worker_id].pop(index).payload

    def requeue(self, worker_id: str, index: int) -> None:
        """Queue a job again that cannot run now, with a delay of a second."""
        due = time.monotonic() + _REQUEUE_DELAY_S
        self._delayed.append((due, self._running[worker_id].pop(index)))

    def requeue_crashed(self, worker_id: str) -> tuple[int, list[Any]]:
        """Queue the jobs of a dead worker again; return their number and the payloads given up."""
        running = self._running.pop(worker_id, {}).values()
        jobs = [replace(job, n_crashes=job.n_crashes + 1) for job in running]
        kept = [job for job in jobs if job.n_crashes < _MAX_CRASHES]
        self._crashed.extend(kept)
        return len(kept), [job.payload for job in jobs if job.n_crashes >= _MAX_CRASHES]
