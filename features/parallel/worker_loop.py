"""Main loop of a worker in another process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from features.errors import MilError, one_line
from features.parallel.base import Job, WorkerFactory
from features.parallel.messages import (
    Done,
    Progress,
    Ready,
    Requeue,
    Signal,
    StartFailed,
    WorkerDied,
)

__all__ = ["run_worker"]

Send = Callable[[object], None]
Receive = Callable[[], object]


def run_worker(factory: WorkerFactory, send: Send, receive: Receive) -> None:
    """Build a worker and run its jobs until it is shut down.

    ``send`` sends a message to the pool and is called from several threads; ``receive`` blocks
    until there is a message of the pool, and returns it.
    """
    try:
        with closing(factory()) as worker:
            send(Ready(worker.info, f"{socket.gethostname()}, process {os.getpid()}"))
            while isinstance(job := receive(), Job):
                queue = _RemoteQueue(job, send, receive)
                worker.run(queue)
                if queue.is_shut_down:
                    break
                send(Signal.IDLE)
    except MilError as error:
        send(StartFailed(error))
    except Exception as error:  # noqa: BLE001 - the pool reports it and replaces this worker
        send(WorkerDied(f"stopped ({type(error).__name__}: {one_line(str(error))})"))


class _RemoteQueue:
    def __init__(self, first: Job, send: Send, receive: Receive) -> None:
        self._first, self._send, self._receive = first, send, receive
        self.is_shut_down = False

    def jobs(self) -> Iterator[Job]:
        yield self._first
        while True:
            self._send(Signal.REQUEST_JOB)
            answer = self._receive()
            if not isinstance(answer, Job):
                self.is_shut_down = answer is Signal.SHUTDOWN
                return
            yield answer

    def finish(self, job: Job, result: Any) -> None:
        self._send(Done(job.index, result))

    def requeue(self, job: Job) -> None:
        self._send(Requeue(job.index))

    def send_message(self, message: Any) -> None:
        self._send(Progress(message))
