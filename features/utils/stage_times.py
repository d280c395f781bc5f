"""Time that each stage of an embedding takes, added up over slides and threads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

__all__ = ["DEVICE_STAGES", "STAGES", "STAGE_TIMES", "StageTimes"]

STAGES = {
    "open": "slides opened, their directories and resolution read",
    "mask": "overview read and tissue found",
    "decode": "pixels of tiles read from the file",
    "resample": "tiles scaled, judged by the rules, normalised and varied",
    "wait": "the device had nothing to do",
    "device": "the encoder worked",
    "write": "slides hashed, bags and previews written",
}
"""What each stage is, in the order in which a slide passes through them."""
DEVICE_STAGES = ("wait", "device")
"""Stages of the device, which several processes may share."""


class StageTimes:
    """Wall time by stage, seconds; thread-safe.

    Stages overlap and run in several threads, whose times are added: their sum is longer than the
    run. ``wait`` and ``device`` are of one thread and exclude each other. ``began_s`` is the moment
    on the monotonic clock at which the work on slides began.
    """

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = Lock()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by stage."""
        with self._lock:
            for stage, value in seconds.items():
                self._seconds[stage] += value

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time until the end of the block, seconds."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add({stage: time.perf_counter() - started})

    def as_dict(self) -> dict[str, float]:
        """Return the seconds by stage."""
        with self._lock:
            return dict(self._seconds)


STAGE_TIMES = StageTimes()
"""Times of this process, to which every stage adds."""
