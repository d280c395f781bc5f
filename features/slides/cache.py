"""Cache of decoded blocks of a slide."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock, RLock

import numpy as np
import numpy.typing as npt

from features.slides.base import RgbArray

__all__ = ["TileCache"]

_MOST_REUSED_BYTES = 4 << 20
"""Largest block whose memory is used again: fresh memory of larger ones has huge pages."""
_SPARE_BYTES = 160 << 20


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
            pixels = _MEMORY.copy(decode())
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


class _BlockMemory:
    """Memory of blocks, used again once no array refers to it, by this slide or the next one.

    The kernel clears fresh memory page by page, which took two fifths of the time of decoding.
    """

    def __init__(self, max_spare_bytes: int) -> None:
        self._max_spare_bytes = max_spare_bytes
        self._n_spare_bytes = 0
        self._spare: OrderedDict[int, list[npt.NDArray[np.uint8]]] = OrderedDict()
        self._lock = RLock()  # Memory may come back while this thread takes some.

    def copy(self, pixels: RgbArray) -> RgbArray:
        """Return a copy of a block, shape (height, width, 3), uint8; a large one as it is."""
        if pixels.nbytes > _MOST_REUSED_BYTES:
            return pixels
        memory = self._take(pixels.nbytes)
        flat = np.frombuffer(memory.data, np.uint8)  # All views of it refer to this array.
        weakref.finalize(flat, self._give_back, memory).atexit = False
        block = flat.reshape(pixels.shape)
        block[:] = pixels
        return block

    def _take(self, n_bytes: int) -> npt.NDArray[np.uint8]:
        with self._lock:
            if spare := self._spare.get(n_bytes):
                self._n_spare_bytes -= n_bytes
                return spare.pop()
        return np.empty(n_bytes, np.uint8)

    def _give_back(self, memory: npt.NDArray[np.uint8]) -> None:
        with self._lock:
            self._spare.setdefault(memory.nbytes, []).append(memory)
            self._spare.move_to_end(memory.nbytes)
            self._n_spare_bytes += memory.nbytes
            while self._n_spare_bytes > self._max_spare_bytes:
                n_bytes, spare = next(iter(self._spare.items()))
                if spare:
                    spare.pop()
                    self._n_spare_bytes -= n_bytes
                else:
                    del self._spare[n_bytes]


_MEMORY = _BlockMemory(_SPARE_BYTES)
