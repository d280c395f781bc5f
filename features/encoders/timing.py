"""Encoder that records how long its device works and waits."""

from __future__ import annotations

import time

from features.encoders.base import ConcatResult, Encoder
from features.slides.base import RgbArray
from features.utils.stage_times import STAGE_TIMES

__all__ = ["TimedEncoder"]


class TimedEncoder:
    """Encoder whose batches add to the stages ``device`` and ``wait``; one thread feeds it.

    The time between two batches is the device's if it was still busy with the earlier one when the
    later came, else it waited.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._sent: ConcatResult | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Let the time without a batch begin now."""
        self._free_at = time.perf_counter()

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Start to embed tiles; see :meth:`features.encoders.base.Encoder.embed_async`."""
        started = time.perf_counter()
        idle = self._sent is None or self._sent.is_ready
        self._sent = self._encoder.embed_async(tiles)
        ended = time.perf_counter()
        before = {"wait" if idle else "device": started - self._free_at}
        STAGE_TIMES.add(before)
        STAGE_TIMES.add({"device": ended - started})
        self._free_at = ended
        return self._sent
