"""Cache of decoded blocks of a slide."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

from features.slides.base import RgbArray

__all__ = ["TileCache"]


class TileCache:
    """Thread-safe LRU cache of blocks, shape (height, width, 3), of up to ``max_bytes`` bytes.

    Of two threads that request the same block at once, the second waits for the first.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._blocks: OrderedDict[Hashable, RgbArray] = OrderedDict()
        self._decoding: dict[Hashable, Lock] = {}  # a future would cost five times as much
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], RgbArray]) -> RgbArray:
        """Return the pixels of a block, shape (height, width, 3), uint8; decode them if missing."""
        while True:
            with self._lock:
                if (pixels := self._blocks.get(key)) is not None:
                    self._blocks.move_to_end(key)
                    return pixels
                other = self._decoding.get(key)
                if other is None:
                    own = self._decoding[key] = Lock()
                    own.acquire()
                    break
            with other:  # Its block is in the cache now; else it failed, or was evicted at once.
                pass
        try:
            pixels = decode()
            with self._lock:
                self._blocks[key] = pixels
                self._n_bytes += pixels.nbytes
                while self._n_bytes > self._max_bytes:
                    self._n_bytes -= self._blocks.popitem(last=False)[1].nbytes
        finally:
            with self._lock:
                del self._decoding[key]
            own.release()
        return pixels

    def clear(self) -> None:
        """Drop all decoded blocks."""
        with self._lock:
            self._blocks.clear()
            self._n_bytes = 0
