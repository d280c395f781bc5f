"""Executor with several workers in other processes, which replaces those that die."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from threading import Event
from typing import Any, Protocol, Self

from features.errors import MilError
from features.parallel.base import JobListener
from features.parallel.messages import (
    Done,
    Progress,
    Ready,
    Requeue,
    Signal,
    StartFailed,
    WorkerDied,
)
from features.parallel.queue import CrashAwareQueue

__all__ = ["Transport", "WorkerPool"]

_MAX_FAILED_STARTS = 3
_POLL_S = 0.2
_SLOW_START_S = 30.0


class Transport(Protocol):
    """Starts workers and carries messages to and from them."""

    @property
    def worker_ids(self) -> tuple[str, ...]:
        """Names of the workers, e.g. ``cuda:0``; a replacement keeps the name."""

    def start(self, worker_id: str) -> None:
        """Start a worker, or its replacement after it died; raises MilError if none can start."""

    def send(self, worker_id: str, message: object) -> None:
        """Send a message to a worker; ignored if it is dead."""

    def receive(self, *, timeout_s: float) -> list[tuple[str, object]]:
        """Return new messages with the ids of their workers; wait up to ``timeout_s`` seconds."""

    def close(self, *, shutdown: Collection[str]) -> None:
        """Shut down these workers within some seconds, and kill all others."""


class WorkerPool:
    """Executor with several workers, each in another process.

    A worker that dies is replaced and its jobs are queued again; see
    :class:`features.parallel.queue.CrashAwareQueue`. A worker that dies before it has started is
    started again with a warning, and given up after the third time.

    Use it as a context manager: workers start on entry; with ``start_first_only``, the others after
    the first is ready, which makes a choice that they take over. Entry waits for the first, unless
    ``wait_for_first`` is False: then jobs wait for it. ``on_warning`` receives text for the user,
    e.g. that a worker died, or that none was ready after 30 seconds. Raises MilError on entry, if
    no worker can start, and while running, if none is left.
    """

    def __init__(
        self, transport: Transport, *, start_first_only: bool, on_warning: Callable[[str], None],
        wait_for_first: bool = True,
    ) -> None:  # fmt: skip
        self._transport = transport
        self._start_first_only, self._wait_on_entry = start_first_only, wait_for_first
        self._warn = on_warning
        self.info: object = None
        self._active = set(transport.worker_ids)
        self._n_failed_starts = dict.fromkeys(transport.worker_ids, 0)
        self._locations: dict[str, str] = {}
        self._idle: set[str] = set()

    def __enter__(self) -> Self:
        first, *others = self._transport.worker_ids
        try:
            self._transport.start(first)
            if self._start_first_only:
                self._wait_for_first()
            for worker_id in others:
                self._transport.start(worker_id)
            if self._wait_on_entry:
                self._wait_for_first()
        except BaseException:
            self._transport.close(shutdown=())
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._transport.close(shutdown=self._locations if error is None else ())

    def run(
        self,
        payloads: Iterable[Any],
        listener: JobListener,
        *,
        stop: Event,
        on_requeue: Callable[[Any], None] | None = None,
    ) -> None:
        """Run jobs; see :meth:`features.parallel.base.Executor.run`.

        A payload is taken from the iterable when a worker is free for it. ``on_requeue`` receives
        those that cannot run now; without it they are offered again after a second. On an error,
        such as an interrupt, the workers are killed at once, so that what they held is free.
        """
        queue = CrashAwareQueue(payloads, on_requeue=on_requeue)
        try:
            self._run(queue, listener, stop)
        except BaseException:
            self._transport.close(shutdown=())
            raise

    def _run(self, queue: CrashAwareQueue, listener: JobListener, stop: Event) -> None:
        while self._has_busy() or queue.n_running or (queue.has_waiting and not stop.is_set()):
            if not stop.is_set():
                self._feed_idle(queue)
            for worker_id, message in self._transport.receive(timeout_s=_POLL_S):
                match message:
                    case Signal.REQUEST_JOB:
                        job = None if stop.is_set() else queue.pop_for(worker_id)
                        self._transport.send(worker_id, job or Signal.NO_JOB)
                    case Done(index, result):
                        listener.on_done(queue.finish(worker_id, index), result)
                    case Requeue(index):
                        queue.requeue(worker_id, index)
                    case Progress(progress):
                        listener.on_message(progress)
                    case WorkerDied(reason):
                        self._requeue_jobs_of(worker_id, reason, queue, listener)
                    case StartFailed(error):
                        self._requeue_jobs_of(worker_id, f"stopped ({error})", queue, listener)
                self._handle(worker_id, message)

    def _has_busy(self) -> bool:
        """Whether a worker has not ended its run: it may still send messages after its last job."""
        return not self._locations.keys() <= self._idle

    def _wait_for_first(self) -> None:
        """Wait until one worker is ready."""
        warn_at = time.monotonic() + _SLOW_START_S
        while self.info is None:
            for worker_id, message in self._transport.receive(timeout_s=_POLL_S):
                self._handle(worker_id, message)
            if time.monotonic() > warn_at:
                warn_at = float("inf")
                self._warn(f"no worker was ready after {_SLOW_START_S:.0f} s; still waiting")

    def _feed_idle(self, queue: CrashAwareQueue) -> None:
        for worker_id in sorted(self._idle):
            if (job := queue.pop_for(worker_id)) is not None:
                self._idle.discard(worker_id)
                self._transport.send(worker_id, job)

    def _requeue_jobs_of(
        self, worker_id: str, reason: str, queue: CrashAwareQueue, listener: JobListener
    ) -> None:
        """Queue the jobs of a dead worker again, or report them as failed."""
        n_requeued, given_up = queue.requeue_crashed(worker_id)
        if (location := self._locations.get(worker_id)) is not None:
            self._warn(f"worker {worker_id} ({location}) {reason}; jobs queued again: {n_requeued}")
        for payload in given_up:
            listener.on_failed(payload, f"every worker that ran it {reason}")

    def _handle(self, worker_id: str, message: object) -> None:
        """Keep track of which workers are ready, idle and dead."""
        match message:
            case Ready(info, location):
                self._locations[worker_id] = location
                self._register(worker_id, info)
            case Signal.IDLE:
                self._idle.add(worker_id)
            case StartFailed(error):
                self._retire(worker_id, error)
            case WorkerDied(reason):
                self._replace(worker_id, reason)

    def _register(self, worker_id: str, info: object) -> None:
        self.info = info if self.info is None else self.info
        if info == self.info:
            self._n_failed_starts[worker_id] = 0
            self._idle.add(worker_id)
        else:
            error = MilError(
                f"worker {worker_id}",
                actual=str(info),
                expected=f"{self.info}, as on the other workers",
                hint="Install the same versions and weights everywhere.",
            )
            self._retire(worker_id, error)

    def _replace(self, worker_id: str, reason: str) -> None:
        is_start = worker_id not in self._locations
        self._n_failed_starts[worker_id] += is_start
        self._locations.pop(worker_id, None)
        self._idle.discard(worker_id)
        are_others_starting = not self._start_first_only
        if self._n_failed_starts[worker_id] < _MAX_FAILED_STARTS:
            try:
                self._transport.start(worker_id)
            except MilError as no_room:
                self._retire(worker_id, no_room, are_others_starting=are_others_starting)
            else:
                if is_start:
                    self._warn(f"worker {worker_id} {reason} while it started; it is started again")
        else:
            error = MilError(
                f"worker {worker_id}",
                actual=f"{reason}, {_MAX_FAILED_STARTS} times while it started",
                expected="a worker that stays alive",
                hint="Memory may be short: give fewer --workers or devices, or a smaller --batch.",
            )
            self._retire(worker_id, error, are_others_starting=are_others_starting)

    def _retire(
        self, worker_id: str, error: MilError, *, are_others_starting: bool = False
    ) -> None:
        """Continue without a worker; raises if none is left, or none is ready or may become so."""
        self._locations.pop(worker_id, None)
        self._idle.discard(worker_id)
        self._active.discard(worker_id)
        if not self._active or (self.info is None and not are_others_starting):
            raise error
        self._warn(f"continuing without {worker_id}: {error}")
