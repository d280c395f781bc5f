"""Cache of open slides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from features.slides.base import Slide
from features.slides.reader import open_slide
from features.visualization.deepzoom import DeepZoomReader

__all__ = ["OpenSlide", "SlideCache"]

_MAX_OPEN = 2  # each slide caches an overview and decoded tiles of up to 0.75 GiB


@dataclass(kw_only=True, eq=False)
class OpenSlide:
    """An open slide with the reader of its Deep Zoom pyramid."""

    slide: Slide
    zoom: DeepZoomReader
    n_users: int = 0
    """Number of threads that are reading from it."""


class SlideCache:
    """Least recently used cache of up to two open slides.

    Safe for threads; a slide that is being read is never closed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[Path, OpenSlide] = OrderedDict()
        self._max_open = _MAX_OPEN

    @contextmanager
    def borrow(self, path: Path) -> Iterator[OpenSlide]:
        """Yield an open slide, which stays open as long as the context.

        Raises
        ------
        SlideError
            If it cannot be opened.
        """
        with self._lock:
            opened = self._open.get(path)
            if opened is None:
                slide = open_slide(path)
                opened = self._open[path] = OpenSlide(slide=slide, zoom=DeepZoomReader(slide))
            self._open.move_to_end(path)
            opened.n_users += 1
            self._shrink()
        try:
            yield opened
        finally:
            with self._lock:
                opened.n_users -= 1
                self._shrink()

    def close(self) -> None:
        """Close all slides; those being read as soon as their contexts end."""
        with self._lock:
            self._max_open = 0
            self._shrink()

    def _shrink(self) -> None:
        idle = [path for path, opened in self._open.items() if not opened.n_users]
        for path in idle[: max(0, len(self._open) - self._max_open)]:
            self._open.pop(path).slide.close()
