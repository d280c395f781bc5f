"""Workers in processes of their own on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Lock, Thread
from typing import NamedTuple

from features.parallel.base import Hire
from features.parallel.messages import Shutdown, StartFailed, WorkerDied
from features.parallel.worker_loop import run_worker

__all__ = ["ProcessTransport"]

_SECONDS_TO_LEAVE = 20.0


class _ProcessHandle(NamedTuple):
    """A process and the pipe to it."""

    process: BaseProcess
    pipe: Connection


class ProcessTransport:
    """Workers in processes of their own, one a place.

    Parameters
    ----------
    hires
        What makes the worker of each place, by the place's name, e.g. ``cuda:0``.
    """

    def __init__(self, hires: Mapping[str, Hire]) -> None:
        self._hires = dict(hires)
        self._lines: dict[str, _ProcessHandle] = {}

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the places."""
        return tuple(self._hires)

    def start(self, place: str) -> None:
        """Start the worker of a place, or another after one that died."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_main, args=(self._hires[place], theirs), name=place)
        with _block_sigint():
            process.start()
        theirs.close()
        self._lines[place] = _ProcessHandle(process, ours)

    def send(self, place: str, message: object) -> None:
        """Send a message to a worker; one that is dead gets none."""
        if (line := self._lines.get(place)) is not None:
            with suppress(OSError):
                line.pipe.send(message)

    def receive(self, *, timeout_s: float) -> list[tuple[str, object]]:
        """What workers have sent since, each with its place; waits for something to come."""
        places = {line.pipe: place for place, line in self._lines.items()}
        found: list[tuple[str, object]] = []
        for pipe in connection.wait(list(places), timeout_s):
            assert isinstance(pipe, Connection)  # noqa: S101 - nothing else was asked for
            place = places[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                message = None
            if message is None:
                message = WorkerDied(_terminate(self._lines.pop(place)))
            elif isinstance(message, (WorkerDied, StartFailed)):
                _terminate(self._lines.pop(place))
            found.append((place, message))
        return found

    def close(self, *, sent_home: Collection[str]) -> None:
        """Send the workers of these places home, and end all others."""
        for place, line in self._lines.items():
            if place in sent_home:
                self.send(place, Shutdown())
            else:
                line.process.kill()
        for line in self._lines.values():
            line.process.join(_SECONDS_TO_LEAVE)
            _terminate(line)
        self._lines.clear()


def _terminate(line: _ProcessHandle) -> str:
    """Make sure that a process is gone; returns how it ended."""
    line.pipe.close()
    line.process.join(1.0)
    if line.process.exitcode is None:
        line.process.kill()
        line.process.join()
    code = line.process.exitcode
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@contextmanager
def _block_sigint() -> Iterator[None]:
    """A process started in this block never sees Ctrl-C, which is meant for its parent."""
    resource_tracker.ensure_running()  # which would let them through again if it began only now
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _main(hire: Hire, pipe: Connection) -> None:
    """What runs in the process."""
    lock = Lock()
    inbox: SimpleQueue[object] = SimpleQueue()

    def send(message: object) -> None:
        with lock:
            pipe.send(message)

    def read() -> None:
        with suppress(EOFError, OSError):
            while True:
                inbox.put(pipe.recv())
        os._exit(1)  # the crew is no more, and nobody would ask for what is in work

    Thread(target=read, name="inbox", daemon=True).start()
    with suppress(BrokenPipeError):
        run_worker(hire, send, inbox.get)
