"""Tiles of one slide through the backbone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from features.encoders import Encoder
from features.errors import TileError
from features.filter import TileJudge
from features.slides.protocol import RgbArray, Slide
from features.tiles import TileGrid, read_tile

__all__ = ["EmbeddedTiles", "embed_tiles", "read_tiles"]

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
    left_out: Mapping[int, str]
    """Rule that spoke against a tile, by its index into the grid."""


def embed_tiles(
    slide: Slide,
    grid: TileGrid,
    encoder: Encoder,
    *,
    batch_tiles: int,
    n_workers: int,
    judge: TileJudge,
    on_tiles: Callable[[int], None],
) -> EmbeddedTiles:
    """Embeddings of all tiles of a grid that nothing speaks against.

    Threads decode, resample and judge while the backbone works; at most a few batches of pixels are
    in memory at any time, whatever the size of the slide. A tile that cannot be decoded is left out
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
    judge
        Names the reason why a tile is left out.
    on_tiles
        Called with the number of tiles just dealt with.
    """
    kept: list[int] = []
    failures: list[str] = []
    left_out: dict[int, str] = {}
    parts: list[npt.NDArray[np.float32]] = []
    with ThreadPoolExecutor(n_workers, thread_name_prefix="decode") as pool:
        tiles = read_tiles(pool, slide, grid, judge, n_ahead=_BATCHES_AHEAD * batch_tiles)
        while batch := list(islice(tiles, batch_tiles)):
            failures += [str(tile) for _, tile in batch if isinstance(tile, TileError)]
            left_out |= {index: tile for index, tile in batch if isinstance(tile, str)}
            good = [(index, tile) for index, tile in batch if isinstance(tile, np.ndarray)]
            if good:
                parts.append(encoder.embed(np.stack([tile for _, tile in good])))
                kept += [index for index, _ in good]
            on_tiles(len(batch))
    return EmbeddedTiles(
        features=np.concatenate([np.empty((0, encoder.dim), np.float32), *parts]),
        kept=np.array(kept, np.int64),
        failures=tuple(failures),
        left_out=left_out,
    )


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

    def one(index: int) -> RgbArray | str | TileError:
        try:
            tile = read_tile(slide, grid, index)
        except TileError as error:
            return error
        return judge(tile) or tile

    waiting: deque[tuple[int, Future[RgbArray | str | TileError]]] = deque()
    for index in range(len(grid.coords_px0)):
        waiting.append((index, pool.submit(one, index)))
        if len(waiting) > n_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
