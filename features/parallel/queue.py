"""Which job goes to whom."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from features.parallel.base import Job

__all__ = ["CrashAwareQueue"]

_MOST_DEATHS = 3
_SECONDS_BETWEEN_LOOKS = 1.0


class CrashAwareQueue:
    """Jobs that wait, and jobs in the hands of workers.

    What a worker had in hand when it died is dealt again, but alone: so a job which kills its
    worker is told from those that were merely with it. After three deaths it is given up.

    Parameters
    ----------
    jobs
        What is to be done, in this order as far as possible.
    """

    def __init__(self, jobs: Iterable[Any]) -> None:
        self._fresh = deque(Job(number, job) for number, job in enumerate(jobs))
        self._suspects: deque[Job] = deque()
        self._returned: deque[tuple[float, Job]] = deque()
        self._hands: dict[str, dict[int, Job]] = {}

    @property
    def n_waiting(self) -> int:
        """Jobs in nobody's hands."""
        return len(self._fresh) + len(self._suspects) + len(self._returned)

    @property
    def n_in_hand(self) -> int:
        """Jobs in the hands of workers."""
        return sum(map(len, self._hands.values()))

    def deal(self, place: str) -> Job | None:
        """Give a worker a job; None where there is none for it now."""
        self._take_up_returned()
        hand = self._hands.setdefault(place, {})
        if any(deal.n_crashes for deal in hand.values()):
            return None
        if self._suspects and not hand:
            deal = self._suspects.popleft()
        elif self._fresh:
            deal = self._fresh.popleft()
        else:
            return None
        hand[deal.number] = deal
        return deal

    def finish(self, place: str, number: int) -> Any:
        """Take a job that is done from a worker's hand; returns the job."""
        return self._hands[place].pop(number).job

    def requeue(self, place: str, number: int) -> None:
        """Take a job back that cannot be done now, and deal it again a little later."""
        due = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        self._returned.append((due, self._hands[place].pop(number)))

    def drop(self, place: str) -> tuple[int, list[Any]]:
        """Take what a dead worker had in hand.

        Returns
        -------
        tuple
            How many jobs will be dealt again, and the jobs that are given up.
        """
        hand = self._hands.pop(place, {})
        deals = [replace(deal, n_crashes=deal.n_crashes + 1) for deal in hand.values()]
        kept = [deal for deal in deals if deal.n_crashes < _MOST_DEATHS]
        self._suspects.extend(kept)
        return len(kept), [deal.job for deal in deals if deal.n_crashes >= _MOST_DEATHS]

    def _take_up_returned(self) -> None:
        while self._returned and self._returned[0][0] <= time.monotonic():
            _, deal = self._returned.popleft()
            (self._suspects if deal.n_crashes else self._fresh).append(deal)
