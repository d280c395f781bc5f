"""The worker's end of a line to a crew."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from features.errors import KnownError
from features.parallel.base import Deal, Hire
from features.parallel.messages import (
    Asks,
    Died,
    Done,
    PutBack,
    Quit,
    Ready,
    Refused,
    Rests,
    Told,
)

__all__ = ["serve"]

Send = Callable[[object], None]
Receive = Callable[[], object]


def serve(hire: Hire, send: Send, receive: Receive) -> None:
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
            while isinstance(deal := receive(), Deal):
                desk = _Desk(deal, send, receive)
                worker.work(desk)
                if desk.is_closed:
                    break
                send(Rests())
    except KnownError as error:
        send(Refused(error))
    except Exception as error:  # noqa: BLE001 - told where somebody can replace this worker
        send(Died(f"stopped ({type(error).__name__}: {error})"))


class _Desk:
    def __init__(self, first: Deal, send: Send, receive: Receive) -> None:
        self._first, self._send, self._receive = first, send, receive
        self.is_closed = False

    def deals(self) -> Iterator[Deal]:
        yield self._first
        while True:
            self._send(Asks())
            answer = self._receive()
            if not isinstance(answer, Deal):
                self.is_closed = isinstance(answer, Quit)
                return
            yield answer

    def done(self, deal: Deal, result: Any) -> None:
        self._send(Done(deal.number, result))

    def put_back(self, deal: Deal) -> None:
        self._send(PutBack(deal.number))

    def tell(self, news: Any) -> None:
        self._send(Told(news))
