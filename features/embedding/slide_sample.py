"""Sample of a few slides, from which the tiles of all are estimated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.embedding.sources import SlideSource, known_sizes, warn_of_silence
from features.errors import MilError
from features.tiling.slide_tiles import SlideTiles

__all__ = ["SlideSample", "sample_slides"]

Floats = npt.NDArray[np.float64]

_MOST_SAMPLED = 12
_MOST_SECONDS = 1.0
"""After this time no further slide is opened; the first is opened however long it takes."""


@dataclass(frozen=True, kw_only=True)
class SlideSample:
    """Tiles of slides, estimated from some of them.

    Attributes
    ----------
    n_slides, n_sampled
        All slides, and those that were opened.
    n_tiles
        Tiles with enough tissue of all slides; exact if all were opened.
    open_s
        Mean time to open a slide and segment its tissue, seconds.
    failures
        Errors of slides that cannot be opened, by slide id.
    """

    n_slides: int
    n_sampled: int
    n_tiles: int
    open_s: float
    failures: Mapping[str, str]


def sample_slides(
    sources: Sequence[SlideSource],
    *,
    on_tiles: Callable[[SlideTiles], None] = lambda _: None,
    on_warning: Callable[[str], None],
) -> SlideSample:
    """Open a few slides of all sizes, and estimate the tiles of all.

    Slides are ordered by the size of all their files, which grows with their tissue, and sampled
    evenly until enough can be read. Between sampled ones, the tiles of others are interpolated by
    the logarithm of the size, which differs by compression too; beyond them they are proportional
    to it. That is exact where all are opened, as it is for a few small slides.

    Parameters
    ----------
    sources
        Slides with their settings, at least one.
    on_tiles
        Receives the open tiles of the first sampled slide that has any; its time is not counted.
    on_warning
        Receives the name of a slide at which reading stands still, from another thread.
    """
    sizes = _sizes(sources)
    order = np.argsort(sizes, kind="stable")
    counts: dict[int, int] = {}  # tiles by rank
    failures: dict[str, str] = {}
    open_s = 0.0
    for rank in _spread(len(sources)):
        if counts and (len(counts) - len(failures) >= _MOST_SAMPLED or open_s > _MOST_SECONDS):
            break
        source = sources[order[rank]]
        began = time.monotonic()
        counts[rank] = 0
        try:
            with warn_of_silence(source.path, on_warning), source.open() as tiles:
                open_s += time.monotonic() - began
                counts[rank] = tiles.n_tiles
                if tiles.n_tiles and sum(map(bool, counts.values())) == 1:
                    on_tiles(tiles)
        except MilError as error:
            open_s += time.monotonic() - began
            failures[source.bag_id] = str(error)
    return SlideSample(
        n_slides=len(sources),
        n_sampled=len(counts),
        n_tiles=round(_interpolate(sizes, sizes[order[list(counts)]], counts.values()).sum()),
        open_s=open_s / len(counts),
        failures=failures,
    )


def _interpolate(sizes: Floats, sampled: Floats, n_tiles: Iterable[int]) -> Floats:
    """Tiles of slides of these sizes, bytes, from those of sampled ones; both shape (n,)."""
    known, which = np.unique(sampled, return_inverse=True)
    means = np.bincount(which, weights=list(n_tiles)) / np.bincount(which)
    nearest = sizes.clip(known[0], known[-1])
    return np.asarray(np.interp(np.log(nearest), np.log(known), means) * sizes / nearest)


def _sizes(sources: Sequence[SlideSource]) -> Floats:
    """Sizes of slides, bytes, shape (n,); of unknown ones, the median of the others."""
    known = known_sizes(sources)
    usual = float(np.median(list(known.values()))) if known else 1.0
    return np.array([known.get(source.bag_id, usual) for source in sources])


def _spread(n: int) -> Iterator[int]:
    """Yield the numbers below ``n``, such that the first few are always spread evenly."""
    seen: set[int] = set()
    n_parts = 2
    while len(seen) < n:
        for part in range(1, n_parts, 2):
            number = part * n // n_parts
            if number not in seen:
                seen.add(number)
                yield number
        n_parts *= 2
        if n_parts > 4 * n:
            yield from (number for number in range(n) if number not in seen)
            return
