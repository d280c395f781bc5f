"""Tiles of one slide, read ahead by threads and judged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from features.errors import TileError
from features.rules import TileJudge
from features.slides.protocol import RgbArray, Slide
from features.tiles import TileGrid, read_tile

__all__ = ["read_tile_or_reason", "read_tiles"]


def read_tile_or_reason(
    slide: Slide, grid: TileGrid, judge: TileJudge, index: int
) -> RgbArray | str | TileError:
    """Pixels of a tile, or the name of the rule that leaves it out, or why it cannot be decoded."""
    try:
        tile = read_tile(slide, grid, index)
    except TileError as error:
        return error
    return judge(tile) or tile


def read_tiles(
    pool: ThreadPoolExecutor, slide: Slide, grid: TileGrid, judge: TileJudge, *, n_ahead: int
) -> Iterator[tuple[int, RgbArray | str | TileError]]:
    """Tiles in order, with ``n_ahead`` of them being read in advance.

    Yields
    ------
    tuple
        Index into the grid, and the pixels, or the name of the rule that leaves the tile out, or
        why it could not be decoded.
    """
    waiting: deque[tuple[int, Future[RgbArray | str | TileError]]] = deque()
    for index in range(len(grid.coords_px0)):
        waiting.append((index, pool.submit(read_tile_or_reason, slide, grid, judge, index)))
        if len(waiting) > n_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
