"""Tiles of one slide through the backbone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from features.encoders import Encoder
from features.errors import TileError
from features.slides.protocol import RgbArray, Slide
from features.tiles import TileGrid, read_tile

__all__ = ["EmbeddedTiles", "embed_tiles"]

_BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedTiles:
    """Embeddings of the tiles that could be decoded."""

    features: npt.NDArray[np.float32]
    """Shape (n_embedded, dim), in the order of the grid."""
    kept: npt.NDArray[np.int64]
    """Index into the grid of each embedding, shape (n_embedded,)."""
    failures: tuple[str, ...]
    """One message for each tile that could not be decoded."""


def embed_tiles(
    slide: Slide,
    grid: TileGrid,
    encoder: Encoder,
    *,
    batch_tiles: int,
    n_workers: int,
    on_tiles: Callable[[int], None],
) -> EmbeddedTiles:
    """Embeddings of all tiles of a grid.

    Threads decode and resample while the backbone works; at most a few batches of pixels are in
    memory at any time, whatever the size of the slide. A tile that cannot be decoded is left out
    and told, never replaced by white.

    Parameters
    ----------
    slide
        Open slide.
    grid
        Its tiles.
    encoder
        The backbone.
    batch_tiles
        Tiles that go through the backbone together.
    n_workers
        Threads that decode.
    on_tiles
        Called with the number of tiles just dealt with.
    """
    kept: list[int] = []
    failures: list[str] = []
    parts: list[npt.NDArray[np.float32]] = []
    with ThreadPoolExecutor(n_workers, thread_name_prefix="decode") as pool:
        tiles = _read_ahead(pool, slide, grid, n_ahead=_BATCHES_AHEAD * batch_tiles)
        while batch := list(islice(tiles, batch_tiles)):
            failures += [str(tile) for _, tile in batch if isinstance(tile, TileError)]
            good = [(index, tile) for index, tile in batch if not isinstance(tile, TileError)]
            if good:
                parts.append(encoder.embed(np.stack([tile for _, tile in good])))
                kept += [index for index, _ in good]
            on_tiles(len(batch))
    return EmbeddedTiles(
        features=np.concatenate([np.empty((0, encoder.dim), np.float32), *parts]),
        kept=np.array(kept, np.int64),
        failures=tuple(failures),
    )


def _read_ahead(
    pool: ThreadPoolExecutor, slide: Slide, grid: TileGrid, *, n_ahead: int
) -> Iterator[tuple[int, RgbArray | TileError]]:
    """Tiles in order, with ``n_ahead`` of them being read in advance."""
    waiting: deque[tuple[int, Future[RgbArray | TileError]]] = deque()
    for index in range(len(grid.coords_px0)):
        waiting.append((index, pool.submit(_read_or_error, slide, grid, index)))
        if len(waiting) > n_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _read_or_error(slide: Slide, grid: TileGrid, index: int) -> RgbArray | TileError:
    try:
        return read_tile(slide, grid, index)
    except TileError as error:
        return error
