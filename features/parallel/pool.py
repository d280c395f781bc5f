"""Many workers that share jobs, and the replacement of those that die."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from threading import Event
from types import TracebackType
from typing import Any, Protocol, Self

from features.errors import MilError
from features.parallel.base import JobListener
from features.parallel.messages import (
    Done,
    Idle,
    NoJob,
    Progress,
    Ready,
    RequestJob,
    Requeue,
    StartFailed,
    WorkerDied,
)
from features.parallel.queue import CrashAwareQueue

__all__ = ["Transport", "WorkerPool"]

_MOST_FALSE_STARTS = 3
_PATIENCE_S = 0.2
_SECONDS_TO_TELL = 30.0


class Transport(Protocol):
    """Lines to workers at some places."""

    @property
    def places(self) -> tuple[str, ...]:
        """Names of the places."""
        ...

    def start(self, place: str) -> None:
        """Start the worker of a place, or another after one that died."""
        ...

    def send(self, place: str, message: object) -> None:
        """Send a message to a worker; one that is dead gets none."""
        ...

    def receive(self, *, timeout_s: float) -> list[tuple[str, object]]:
        """What workers have sent since, each with its place; waits for something to come."""
        ...

    def close(self, *, sent_home: Collection[str]) -> None:
        """Send the workers of these places home, and end all others."""
        ...


class WorkerPool:
    """An engine of many workers, each elsewhere.

    A worker that dies is replaced, and what it had in hand goes to the others; see
    :class:`features.parallel.queue.CrashAwareQueue`. A place where workers die three times before
    they have begun is given up.

    Use it as a context manager: workers are started on entry.

    Parameters
    ----------
    lines
        Lines to the workers.
    first_alone
        Let the first worker begin before the others are started, because it settles something.
    on_note
        Called with what a person should know, e.g. that a worker died.

    Raises
    ------
    MilError
        On entry, if no worker can begin; while running, if none is left.
    """

    def __init__(
        self, lines: Transport, *, first_alone: bool, on_note: Callable[[str], None]
    ) -> None:
        self._lines = lines
        self._first_alone = first_alone
        self._note = on_note
        self._card: object = None
        self._places = set(lines.places)
        self._n_false_starts = dict.fromkeys(lines.places, 0)
        self._begun: dict[str, str] = {}
        self._resting: set[str] = set()

    def __enter__(self) -> Self:
        first, *others = self._lines.places
        try:
            self._lines.start(first)
            if self._first_alone:
                self._await_first()
            for place in others:
                self._lines.start(place)
            self._await_first()
        except BaseException:
            self._lines.close(sent_home=())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close(sent_home=self._begun if error is None else ())

    @property
    def card(self) -> object:
        """What the workers have in common."""
        return self._card

    def run(self, jobs: Sequence[Any], watcher: JobListener, *, stop: Event) -> None:
        """Have jobs done; see :class:`features.parallel.base.Executor`."""
        deck = CrashAwareQueue(jobs)
        while deck.n_in_hand or (deck.n_waiting and not stop.is_set()):
            if not stop.is_set():
                self._deal_to_resting(deck)
            for place, message in self._lines.receive(timeout_s=_PATIENCE_S):
                match message:
                    case RequestJob():
                        deal = None if stop.is_set() else deck.deal(place)
                        self._lines.send(place, deal or NoJob())
                    case Done(number, result):
                        watcher.done(deck.finish(place, number), result)
                    case Requeue(number):
                        deck.requeue(place, number)
                    case Progress(news):
                        watcher.told(news)
                    case WorkerDied(reason):
                        self._requeue_jobs_of(place, reason, deck, watcher)
                    case StartFailed(error):
                        self._requeue_jobs_of(place, f"gave up ({error})", deck, watcher)
                self._handle(place, message)

    def _await_first(self) -> None:
        """Wait until a worker has begun."""
        told_at = time.monotonic() + _SECONDS_TO_TELL
        while self._card is None:
            for place, message in self._lines.receive(timeout_s=_PATIENCE_S):
                self._handle(place, message)
            if time.monotonic() > told_at:
                told_at = float("inf")
                self._note(f"no worker has begun within {_SECONDS_TO_TELL:.0f} s; waiting on")

    def _deal_to_resting(self, deck: CrashAwareQueue) -> None:
        for place in sorted(self._resting):
            if (deal := deck.deal(place)) is not None:
                self._resting.discard(place)
                self._lines.send(place, deal)

    def _requeue_jobs_of(
        self, place: str, reason: str, deck: CrashAwareQueue, watcher: JobListener
    ) -> None:
        """Deal what a dead worker had in hand again, or give it up."""
        n_again, given_up = deck.drop(place)
        if (where := self._begun.get(place)) is not None:
            self._note(f"the worker on {place} ({where}) {reason}; taken over from it: {n_again}")
        for job in given_up:
            watcher.lost(job, f"one worker after the other that had it in hand {reason}")

    def _handle(self, place: str, message: object) -> None:
        """Keep book of who has begun, rests, and is no more."""
        match message:
            case Ready(card, where):
                self._begun[place] = where
                self._register(place, card)
            case Idle():
                self._resting.add(place)
            case StartFailed(error):
                self._retire(place, error)
            case WorkerDied(reason):
                self._replace(place, reason)

    def _register(self, place: str, card: object) -> None:
        self._card = card if self._card is None else self._card
        if card == self._card:
            self._n_false_starts[place] = 0
            self._resting.add(place)
            return
        error = MilError(
            f"the worker on {place}",
            actual=str(card),
            expected=f"{self._card}, as the others",
            hint="Install the same versions and weights everywhere.",
        )
        self._retire(place, error)

    def _replace(self, place: str, reason: str) -> None:
        self._n_false_starts[place] += place not in self._begun
        self._begun.pop(place, None)
        self._resting.discard(place)
        if self._n_false_starts[place] < _MOST_FALSE_STARTS:
            self._lines.start(place)
            return
        error = MilError(
            f"the worker on {place}",
            actual=f"{reason}, {_MOST_FALSE_STARTS} times before it had begun",
            expected="a worker that lives",
            hint="Memory may be short: try fewer devices or a smaller --batch.",
        )
        self._retire(place, error)

    def _retire(self, place: str, error: MilError) -> None:
        """Go on without a place; raises if no worker has ever begun, or none is left."""
        self._begun.pop(place, None)
        self._resting.discard(place)
        self._places.discard(place)
        if self._card is None or not self._places:
            raise error
        self._note(f"going on without {place}: {error}")
