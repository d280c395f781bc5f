"""Transport to workers in other processes of this machine."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import connection, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Lock, Thread, current_thread, main_thread
from types import ModuleType
from typing import NamedTuple

from features.errors import MilError, one_line
from features.parallel.base import WorkerFactory
from features.parallel.messages import Signal, StartFailed, WorkerDied
from features.parallel.worker_loop import run_worker
from features.utils.files import OPEN_FILES_HINT

__all__ = ["ProcessTransport", "no_room_error"]

_SHUTDOWN_S = 20.0


class _ProcessHandle(NamedTuple):
    process: BaseProcess
    pipe: Connection


def no_room_error(where: str, actual: str, error: OSError) -> MilError:
    """Return the error of a process that cannot be started, with what to allow."""
    return MilError(
        where,
        actual=f"{actual} ({error.strerror or error})",
        expected="room for another process",
        hint=OPEN_FILES_HINT
        if error.errno in {errno.EMFILE, errno.ENFILE}
        else "Give fewer --workers or devices, or allow more processes or memory.",
    )


class ProcessTransport:
    """Transport to workers in one process each, built by factories by worker id (``cuda:0``).

    With ``import_main``, a process first runs the script that was started, so that it knows the
    classes defined there; the script then needs ``if __name__ == "__main__":``.
    """

    def __init__(self, factories: Mapping[str, WorkerFactory], *, import_main: bool = True) -> None:
        self._factories = dict(factories)
        self._import_main = import_main
        self.worker_ids = tuple(factories)
        self._handles: dict[str, _ProcessHandle] = {}

    def start(self, worker_id: str) -> None:
        """Start a worker, or its replacement after it died; MilError if no process can start."""
        try:
            self._start(worker_id)
        except OSError as error:
            raise no_room_error(
                f"worker {worker_id}", "its process cannot be started", error
            ) from error

    def _start(self, worker_id: str) -> None:
        context = get_context("spawn")
        pipe, child_pipe = context.Pipe()
        process = context.Process(
            target=_main, args=(self._factories[worker_id], child_pipe), name=worker_id
        )
        with _defer_stop_signals(), nullcontext() if self._import_main else _hide_main():
            process.start()
            self._handles[worker_id] = _ProcessHandle(process, pipe)  # an interrupt comes after it
        child_pipe.close()

    def send(self, worker_id: str, message: object) -> None:
        """Send a message to a worker; ignored if it is dead."""
        if (handle := self._handles.get(worker_id)) is not None:
            with suppress(OSError):
                handle.pipe.send(message)

    def receive(self, *, timeout_s: float) -> list[tuple[str, object]]:
        """Return new messages with the ids of their workers; wait up to ``timeout_s`` seconds."""
        ids = {handle.pipe: worker_id for worker_id, handle in self._handles.items()}
        received: list[tuple[str, object]] = []
        for pipe in connection.wait(list(ids), timeout_s):
            assert isinstance(pipe, Connection)  # noqa: S101 - only pipes are waited for
            worker_id = ids[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                message = WorkerDied(_terminate(self._handles.pop(worker_id)))
            else:
                if isinstance(message, (WorkerDied, StartFailed)):
                    _terminate(self._handles.pop(worker_id))
            received.append((worker_id, message))
        return received

    def close(self, *, shutdown: Collection[str]) -> None:
        """Shut down these workers within 20 seconds, and kill all others and any late ones."""
        for worker_id, handle in self._handles.items():
            if worker_id in shutdown:
                self.send(worker_id, Signal.SHUTDOWN)
            else:
                handle.process.kill()
        for handle in self._handles.values():
            handle.process.join(_SHUTDOWN_S)
            _terminate(handle)
        self._handles.clear()


def _terminate(handle: _ProcessHandle) -> str:
    """Ensure that a process has ended, and return how it ended."""
    handle.pipe.close()
    handle.process.join(1.0)
    if handle.process.exitcode is None:
        handle.process.kill()
        handle.process.join()
    code = handle.process.exitcode
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"


@contextmanager
def _defer_stop_signals() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from processes started in this block, and handle them at its end.

    Terminals and schedulers send them to all processes, but they are meant for the parent, which
    lets its workers finish their jobs. Blocking alone does not defer them: another thread may take
    a signal, and Python then runs its handler in the main thread, in the middle of this block.
    """
    resource_tracker.ensure_running()  # It unblocks the signals if it starts within the block.
    received: list[int] = []
    handlers = {}
    if current_thread() is main_thread():  # handlers can be set only there, and run only there
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        for number in handlers:
            signal.signal(number, lambda number, _frame: received.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received_number in received:
            signal.raise_signal(received_number)


@contextmanager
def _hide_main() -> Iterator[None]:
    """Keep processes started in this block from running the script that was started."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _main(factory: WorkerFactory, pipe: Connection) -> None:
    """Run one worker; the entry point of its process."""
    lock = Lock()
    inbox: SimpleQueue[object] = SimpleQueue()

    def send(message: object) -> None:
        with lock:
            pipe.send(message)

    def read() -> None:
        try:
            while True:
                inbox.put(pipe.recv())
        except (EOFError, OSError):
            pass  # The parent is gone, so nothing would receive the results.
        except Exception as error:  # noqa: BLE001 - of a job that cannot be loaded here
            send(WorkerDied(f"stopped ({type(error).__name__}: {one_line(str(error))})"))
        finally:
            os._exit(1)

    Thread(target=read, name="inbox", daemon=True).start()
    with suppress(BrokenPipeError):
        run_worker(factory, send, inbox.get)
