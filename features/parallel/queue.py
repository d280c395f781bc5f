"""Job queue of a worker pool, which counts the workers that each job has crashed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
    three crashes. Jobs start in the order of their payloads as far as possible; a payload is taken
    from the iterable when a worker is free for it. ``on_requeue`` receives those that cannot run
    now.
    """

    def __init__(
        self, payloads: Iterable[Any], *, on_requeue: Callable[[Any], None] | None = None
    ) -> None:
        self._on_requeue = on_requeue
        self._payloads: Iterator[tuple[int, Any]] | None = enumerate(payloads)
        self._requeued: deque[Job] = deque()
        self._crashed: deque[Job] = deque()
        self._delayed: deque[tuple[float, Job]] = deque()
        self._running: dict[str, dict[int, Job]] = {}

    @property
    def has_waiting(self) -> bool:
        """True if there may be jobs that no worker runs."""
        return self._payloads is not None or bool(self._requeued or self._crashed or self._delayed)

    @property
    def n_running(self) -> int:
        """Number of jobs that workers run."""
        return sum(map(len, self._running.values()))

    def pop_for(self, worker_id: str) -> Job | None:
        """Return the next job for a worker; None if it can have none now."""
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            _, job = self._delayed.popleft()
            (self._crashed if job.n_crashes else self._requeued).append(job)
        running = self._running.setdefault(worker_id, {})
        if any(job.n_crashes for job in running.values()):
            return None
        if self._crashed and not running:
            job = self._crashed.popleft()
        elif (new := self._take_new()) is not None:
            job = new
        elif self._requeued:
            job = self._requeued.popleft()
        else:
            return None
        running[job.index] = job
        return job

    def _take_new(self) -> Job | None:
        """Return the job of the next payload; None if there is none left."""
        if self._payloads is None:
            return None
        for index, payload in self._payloads:
            return Job(index, payload)
        self._payloads = None
        return None

    def finish(self, worker_id: str, index: int) -> Any:
        """Remove a finished job and return its payload."""
        return self._running[worker_id].pop(index).payload

    def requeue(self, worker_id: str, index: int) -> None:
        """Queue a job again that cannot run now, with a delay of a second, or hand it back."""
        job = self._running[worker_id].pop(index)
        if self._on_requeue is not None:
            self._on_requeue(job.payload)
        else:
            self._delayed.append((time.monotonic() + _REQUEUE_DELAY_S, job))

    def requeue_crashed(self, worker_id: str) -> tuple[int, list[Any]]:
        """Queue the jobs of a dead worker again; return their number and the payloads given up."""
        running = self._running.pop(worker_id, {}).values()
        jobs = [replace(job, n_crashes=job.n_crashes + 1) for job in running]
        kept = [job for job in jobs if job.n_crashes < _MAX_CRASHES]
        self._crashed.extend(kept)
        return len(kept), [job.payload for job in jobs if job.n_crashes >= _MAX_CRASHES]
