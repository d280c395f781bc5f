"""Slides that are being looked at, open while somebody needs them and a little longer."""

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

_MOST_OPEN = 2  # each keeps an overview and what it decoded last, up to three quarters of a GiB


@dataclass(kw_only=True, eq=False)
class OpenSlide:
    """A slide on the shelf."""

    slide: Slide
    """Open slide."""
    zoom: DeepZoomReader
    """Its pyramid."""
    n_users: int = 0
    """Threads that read from it just now."""


class SlideCache:
    """Opens slides when they are asked for, and closes the longest unused of more than two.

    Safe for threads; a slide that somebody reads from is never closed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[Path, OpenSlide] = OrderedDict()
        self._most_open = _MOST_OPEN

    @contextmanager
    def lend(self, path: Path) -> Iterator[OpenSlide]:
        """A slide, open as long as the context.

        Raises
        ------
        SlideError
            If it cannot be opened.
        """
        with self._lock:
            lent = self._open.get(path)
            if lent is None:
                slide = open_slide(path)
                lent = self._open[path] = OpenSlide(slide=slide, zoom=DeepZoomReader(slide))
            self._open.move_to_end(path)
            lent.n_users += 1
            self._shrink()
        try:
            yield lent
        finally:
            with self._lock:
                lent.n_users -= 1
                self._shrink()

    def close(self) -> None:
        """Close all slides; those that somebody reads from as soon as they are given back."""
        with self._lock:
            self._most_open = 0
            self._shrink()

    def _shrink(self) -> None:
        idle = [path for path, lent in self._open.items() if not lent.n_users]
        for path in idle[: max(0, len(self._open) - self._most_open)]:
            self._open.pop(path).slide.close()
