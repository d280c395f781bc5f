"""Workers that crash on demand, and a listener that records everything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import MilError
from features.parallel.base import JobQueue, Worker


@dataclass(frozen=True)
class ToyWorker:
    """Squares numbers; a path that does not exist yet is created and crashes the worker."""

    info: str = "toy"
    closed_dir: Path | None = None

    def run(self, queue: JobQueue) -> None:
        for job in queue.jobs():
            queue.send_message(f"started {job.payload}")
            if job.payload == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            if isinstance(job.payload, Path) and not job.payload.exists():
                job.payload.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if job.payload == "impossible":
                raise ValueError("this cannot be computed")
            queue.finish(job, job.payload**2 if isinstance(job.payload, int) else os.getpid())

    def close(self) -> None:
        if self.closed_dir is not None:
            (self.closed_dir / str(os.getpid())).touch()


class LateToyWorker(ToyWorker):
    """Worker that sends a message some time after its last job."""

    def run(self, queue: JobQueue) -> None:
        super().run(queue)
        time.sleep(0.3)
        queue.send_message("ended")


def make_late_toy() -> Worker:
    return LateToyWorker()


def exit_and_count(folder: Path) -> Worker:
    (folder / str(os.getpid())).touch()
    os._exit(3)


def make_toy_after(folder: Path, n_exits: int) -> Worker:
    """Return a worker once others have ended so many times."""
    while len(list(folder.iterdir())) < n_exits:
        time.sleep(0.05)
    time.sleep(1.0)
    return ToyWorker()


def make_toy(info: str = "toy", closed_dir: Path | None = None) -> Worker:
    return ToyWorker(info, closed_dir)


def raise_error() -> Worker:
    raise MilError("the machine", actual="no room")


def exit_at_once() -> Worker:
    os._exit(3)


class RecordingListener:
    """Listener that records everything; ``on_result`` may do more."""

    def __init__(self, on_result: Callable[[Any], None] = lambda payload: None) -> None:
        self.results: dict[Any, Any] = {}
        self.reasons: dict[Any, str] = {}
        self.messages: list[Any] = []
        self._on_result = on_result

    def on_done(self, payload: Any, result: Any) -> None:
        assert payload not in self.results
        self.results[payload] = result
        self._on_result(payload)

    def on_failed(self, payload: Any, reason: str) -> None:
        self.reasons[payload] = reason

    def on_message(self, message: Any) -> None:
        self.messages.append(message)
