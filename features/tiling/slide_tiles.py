"""Open slide with its resolution, tissue mask, tile grid and artefact rules."""

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

__all__ = ["SlideTiles", "open_slide_tiles"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTiles:
    """An open slide and the tiles to read from it."""

    slide: Slide
    resolution: Resolution
    overview: RgbArray
    """The whole slide at the resolution of the mask, shape (height, width, 3), uint8."""
    tissue: TissueMask
    grid: TileGrid
    n_tissue_tiles: int
    """Tiles with enough tissue, before subsampling to ``max_tiles``."""
    detect_artifact: ArtifactDetector

    @property
    def n_tiles(self) -> int:
        """Tiles in the grid."""
        return len(self.grid.coords_px0)

    def read(self, index: int) -> RgbArray | str | TileError:
        """Read a tile, shape (tile_px, tile_px, 3), uint8.

        Returns
        -------
        RgbArray, str or TileError
            The pixels; or the name of the artefact rule that rejects the tile; or the error that
            says why it cannot be decoded.
        """
        try:
            tile = read_tile(self.slide, self.grid, index)
        except TileError as error:
            return error
        return self.detect_artifact(tile) or tile

    def read_all(
        self, pool: ThreadPoolExecutor, *, n_ahead: int
    ) -> Iterator[tuple[int, RgbArray | str | TileError]]:
        """Read all tiles in order, with ``n_ahead`` of them being read in advance.

        Yields
        ------
        tuple
            Index into the grid, and what :meth:`read` returns for it.
        """
        pending: deque[tuple[int, Future[RgbArray | str | TileError]]] = deque()
        for index in range(self.n_tiles):
            pending.append((index, pool.submit(self.read, index)))
            if len(pending) > n_ahead:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()


@contextmanager
def open_slide_tiles(
    path: Path, *, tiles: TileSettings, tissue: TissueSettings, given_mpp: float | None
) -> Iterator[SlideTiles]:
    """Open a slide, segment its tissue and lay its tile grid; close it at the end.

    Parameters
    ----------
    path
        The slide.
    tiles
        Size, resolution and choice of tiles.
    tissue
        Settings of the tissue segmentation.
    given_mpp
        µm per level-0 px that replaces the file's own; None to trust the file.

    Raises
    ------
    SlideError
        If the slide cannot be opened, or none of it can be read.
    ResolutionError
        If ``given_mpp`` is implausible.
    """
    slide = open_slide(path)
    try:
        resolution = resolve_mpp(slide.mpp_xy, given_mpp=given_mpp, where=path)
        downsample = mask_downsample(resolution.mpp, tissue)
        overview = slide.overview(downsample=downsample)
        mask = segment_tissue(overview, downsample=downsample, mpp=resolution.mpp, settings=tissue)
        grid = make_tile_grid(
            mask,
            width_px0=slide.levels[0].width_px,
            height_px0=slide.levels[0].height_px,
            resolution=resolution,
            settings=tiles,
        )
        yield SlideTiles(
            slide=slide,
            resolution=resolution,
            overview=overview,
            tissue=mask,
            grid=subsample_tiles(
                grid, tiles.max_tiles, seed=zlib.crc32(slide_id_of(path).encode())
            ),
            n_tissue_tiles=len(grid.coords_px0),
            detect_artifact=artifact_detector(tiles.rules, glass_rgb=mask.background_rgb),
        )
    finally:
        slide.close()
