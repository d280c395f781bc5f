"""Workers that do little, and die when they are told to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.errors import MilError
from features.parallel.base import JobQueue, Worker


@dataclass(frozen=True)
class Toy:
    """Squares numbers; a path is a bomb that goes off unless it was defused by going off before."""

    card: str = "toy"
    farewells: Path | None = None

    def work(self, desk: JobQueue) -> None:
        for deal in desk.deals():
            desk.tell(f"began {deal.job}")
            if deal.job == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            if isinstance(deal.job, Path) and not deal.job.exists():
                deal.job.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if deal.job == "impossible":
                raise ValueError("nobody can do this")
            desk.done(deal, deal.job**2 if isinstance(deal.job, int) else os.getpid())

    def close(self) -> None:
        if self.farewells is not None:
            (self.farewells / str(os.getpid())).touch()


def hire_toy(card: str = "toy", farewells: Path | None = None) -> Worker:
    return Toy(card, farewells)


def hire_nobody() -> Worker:
    raise MilError("the machine", actual="no room")


def hire_dead() -> Worker:
    os._exit(3)


class Notebook:
    """A watcher that writes everything down; ``on_done`` may do more."""

    def __init__(self, on_done: Callable[[Any], None] = lambda job: None) -> None:
        self.results: dict[Any, Any] = {}
        self.reasons: dict[Any, str] = {}
        self.news: list[Any] = []
        self._on_done = on_done

    def done(self, job: Any, result: Any) -> None:
        assert job not in self.results
        self.results[job] = result
        self._on_done(job)

    def lost(self, job: Any, reason: str) -> None:
        self.reasons[job] = reason

    def told(self, news: Any) -> None:
        self.news.append(news)
