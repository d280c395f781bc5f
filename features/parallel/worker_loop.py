"""The worker's end of a line to a crew."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from features.errors import MilError
from features.parallel.base import Hire, Job
from features.parallel.messages import (
    Done,
    Idle,
    Progress,
    Ready,
    RequestJob,
    Requeue,
    Shutdown,
    StartFailed,
    WorkerDied,
)

__all__ = ["run_worker"]

Send = Callable[[object], None]
Receive = Callable[[], object]


def run_worker(hire: Hire, send: Send, receive: Receive) -> None:
    """Make a worker and let it work until it is sent home.

    Parameters
    ----------
    hire
        Makes the worker.
    send
        Sends a message to the crew; called from several threads.
    receive
        Waits for the next message from the crew.
    """
    try:
        with closing(hire()) as worker:
            send(Ready(worker.card, f"{socket.gethostname()}, process {os.getpid()}"))
            while isinstance(deal := receive(), Job):
                desk = _Desk(deal, send, receive)
                worker.work(desk)
                if desk.is_closed:
                    break
                send(Idle())
    except MilError as error:
        send(StartFailed(error))
    except Exception as error:  # noqa: BLE001 - told where somebody can replace this worker
        send(WorkerDied(f"stopped ({type(error).__name__}: {error})"))


class _Desk:
    def __init__(self, first: Job, send: Send, receive: Receive) -> None:
        self._first, self._send, self._receive = first, send, receive
        self.is_closed = False

    def deals(self) -> Iterator[Job]:
        yield self._first
        while True:
            self._send(RequestJob())
            answer = self._receive()
            if not isinstance(answer, Job):
                self.is_closed = isinstance(answer, Shutdown)
                return
            yield answer

    def done(self, deal: Job, result: Any) -> None:
        self._send(Done(deal.number, result))

    def requeue(self, deal: Job) -> None:
        self._send(Requeue(deal.number))

    def tell(self, news: Any) -> None:
        self._send(Progress(news))
