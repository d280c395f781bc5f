"""Cache of decoded blocks of a slide."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
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
        self._blocks: OrderedDict[Hashable, Future[RgbArray]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], RgbArray]) -> RgbArray:
        """Return the pixels of a block, shape (height, width, 3), uint8; decode them if missing."""
        with self._lock:
            future = self._blocks.get(key)
            if future is not None:
                self._blocks.move_to_end(key)
            else:
                own = self._blocks[key] = Future()
        if future is not None:
            return future.result()
        try:
            pixels = decode()
        except BaseException as error:
            with self._lock:
                self._blocks.pop(key, None)
            own.set_exception(error)
            raise
        with self._lock:  # one step, so that it is not evicted before it is counted
            own.set_result(pixels)
            self._n_bytes += pixels.nbytes
            self._shrink()
        return pixels

    def clear(self) -> None:
        """Drop all decoded blocks."""
        with self._lock:
            for key in [key for key, future in self._blocks.items() if future.done()]:
                del self._blocks[key]
            self._n_bytes = 0

    def _shrink(self) -> None:
        """Evict the least recently used blocks until the rest fits."""
        while self._n_bytes > self._max_bytes:
            key = next((key for key, future in self._blocks.items() if future.done()), None)
            if key is None:
                return
            self._n_bytes -= self._blocks.pop(key).result().nbytes
