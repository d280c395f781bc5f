"""Decoded pieces of a slide, kept while there is room, each decoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock

from features.slides.base import RgbArray

__all__ = ["TileCache"]


class TileCache:
    """Least recently used pixels under a limit of bytes, safe for threads.

    Two threads that want the same piece at once decode it once: the second waits for the first.

    Parameters
    ----------
    max_bytes
        Most bytes of finished pieces that are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._pieces: OrderedDict[Hashable, Future[RgbArray]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, decode: Callable[[], RgbArray]) -> RgbArray:
        """The piece of that key, decoded now if it is not there."""
        with self._lock:
            future = self._pieces.get(key)
            mine = future is None
            if future is None:
                future = self._pieces[key] = Future()
            else:
                self._pieces.move_to_end(key)
        if not mine:
            return future.result()
        try:
            pixels = decode()
        except BaseException as error:
            with self._lock:
                self._pieces.pop(key, None)
            future.set_exception(error)
            raise
        with self._lock:  # done and counted in one step, or it might be dropped in between
            future.set_result(pixels)
            self._n_bytes += pixels.nbytes
            self._shrink()
        return pixels

    def clear(self) -> None:
        """Forget all finished pieces."""
        with self._lock:
            for key in [key for key, future in self._pieces.items() if future.done()]:
                del self._pieces[key]
            self._n_bytes = 0

    def _shrink(self) -> None:
        """Drop the longest unused finished pieces until the rest fits."""
        while self._n_bytes > self._max_bytes:
            key = next((key for key, future in self._pieces.items() if future.done()), None)
            if key is None:
                return
            self._n_bytes -= self._pieces.pop(key).result().nbytes
