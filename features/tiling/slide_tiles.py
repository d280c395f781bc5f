"""What there is to embed on a slide: its resolution, its tissue and its tiles."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features.errors import TileError
from features.slides.base import RgbArray, Slide
from features.slides.reader import open_slide, slide_id_of
from features.slides.resolution import Resolution, resolve_mpp
from features.tiling.artifacts import ArtifactDetector, artifact_detector
from features.tiling.grid import TileGrid, TileSettings, make_tile_grid, read_tile, subsample_tiles
from features.tiling.tissue import TissueMask, TissueSettings, mask_downsample, segment_tissue

__all__ = ["SlideTiles", "iter_tiles", "load_tile", "open_slide_tiles"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTiles:
    """An open slide and where to look on it."""

    slide: Slide
    """The slide, open as long as the survey."""
    resolution: Resolution
    """µm per level-0 px."""
    overview: RgbArray
    """The whole slide, small; of the shape of the mask."""
    tissue: TissueMask
    """Where the tissue is."""
    grid: TileGrid
    """Tiles to read."""
    n_found: int
    """Tiles with enough tissue, before some were drawn to keep within ``max_tiles``."""
    judge: ArtifactDetector
    """Says why a tile is left out once it has been read."""

    @property
    def n_tiles(self) -> int:
        """Tiles to read."""
        return len(self.grid.coords_px0)

    def read(self, index: int) -> RgbArray | str | TileError:
        """Pixels of a tile, or the rule that leaves it out, or why it cannot be decoded."""
        return load_tile(self.slide, self.grid, self.judge, index)


@contextmanager
def open_slide_tiles(
    path: Path, *, tiles: TileSettings, tissue: TissueSettings, given_mpp: float | None
) -> Iterator[SlideTiles]:
    """Open a slide and find its tissue and tiles; closes it in the end.

    Parameters
    ----------
    path
        The slide.
    tiles
        Size, resolution and choice of tiles.
    tissue
        How tissue is told from glass.
    given_mpp
        µm per level-0 px where the user knows better than the file; else None.

    Raises
    ------
    SlideError
        If the slide cannot be opened, or nothing of it can be read.
    ResolutionError
        If ``given_mpp`` is implausible.
    """
    slide = open_slide(path)
    try:
        resolution = resolve_mpp(slide.mpp_xy, given_mpp=given_mpp, where=path)
        downsample = mask_downsample(resolution.mpp, tissue)
        overview = slide.overview(downsample=downsample)
        found = segment_tissue(overview, downsample=downsample, mpp=resolution.mpp, settings=tissue)
        grid = make_tile_grid(
            found,
            width_px0=slide.levels[0].width_px,
            height_px0=slide.levels[0].height_px,
            resolution=resolution,
            settings=tiles,
        )
        yield SlideTiles(
            slide=slide,
            resolution=resolution,
            overview=overview,
            tissue=found,
            grid=subsample_tiles(
                grid, tiles.max_tiles, seed=zlib.crc32(slide_id_of(path).encode())
            ),
            n_found=len(grid.coords_px0),
            judge=artifact_detector(tiles.rules, glass_rgb=found.background_rgb),
        )
    finally:
        slide.close()


def load_tile(
    slide: Slide, grid: TileGrid, judge: ArtifactDetector, index: int
) -> RgbArray | str | TileError:
    """Pixels of a tile, or the name of the rule that leaves it out, or why it cannot be decoded."""
    try:
        tile = read_tile(slide, grid, index)
    except TileError as error:
        return error
    return judge(tile) or tile


def iter_tiles(
    pool: ThreadPoolExecutor, slide: Slide, grid: TileGrid, judge: ArtifactDetector, *, n_ahead: int
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
        waiting.append((index, pool.submit(load_tile, slide, grid, judge, index)))
        if len(waiting) > n_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
