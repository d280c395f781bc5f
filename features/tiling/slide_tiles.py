"""Open slide with its resolution, tissue mask, tile grid and artefact rules."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from features.errors import TileError
from features.slides.base import RgbArray, Slide
from features.slides.reader import open_slide, slide_id_of
from features.slides.resolution import Resolution, resolve_mpp
from features.tiling.artifacts import ArtifactDetector, artifact_detector
from features.tiling.colours import colour_warnings
from features.tiling.grid import (
    TileGrid,
    TileSettings,
    make_tile_grid,
    read_window,
    subsample_tiles,
)
from features.tiling.lost_areas import fill_lost_areas
from features.tiling.tissue import TissueMask, TissueSettings, mask_downsample, segment_tissue
from features.utils.array_lock import ARRAY_LOCK
from features.utils.stage_times import STAGE_TIMES

__all__ = ["SlideTiles", "open_slide_tiles"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideTiles:
    """An open slide and its tiles of ``tile_px`` px, each of shape (tile_px, tile_px, 3), uint8.

    ``overview`` is the whole slide at the resolution of the mask, shape (height, width, 3) in px,
    uint8; ``n_tissue_tiles`` counts tiles with enough tissue, before subsampling to ``max_tiles``.
    """

    slide: Slide
    resolution: Resolution
    overview: RgbArray
    tissue: TissueMask
    grid: TileGrid
    n_tissue_tiles: int
    detect_artifact: ArtifactDetector
    chosen_scene: int | None = None
    warnings: tuple[str, ...] = ()
    """What is wrong with the file or its colours although it can be read, a sentence each."""

    @property
    def slide_id(self) -> str:
        """Id of the slide, with the number of its scene if one was chosen."""
        return slide_id_of(self.slide.path, self.chosen_scene)

    @property
    def n_tiles(self) -> int:
        """Number of tiles of ``tile_px`` px in the grid."""
        return len(self.grid.coords_px0)

    def read(self, index: int) -> RgbArray | str | TileError:
        """Read a tile, shape (side, side, 3) in px, uint8.

        Returns instead the name of the artefact rule that rejects the tile, or the error that says
        why its pixels cannot be decoded.
        """
        try:
            window = read_window(self.slide, self.grid, index)
        except TileError as error:
            return error
        with ARRAY_LOCK, STAGE_TIMES.timed("resample"):
            tile = window.scale()
            return self.detect_artifact(tile) or tile

    def end_reading(self) -> None:
        """Release the decoded blocks of the slide, of which the next one takes the memory."""
        self.slide.release_memory()

    def read_all(
        self, pool: ThreadPoolExecutor, *, n_ahead: int
    ) -> Iterator[tuple[int, RgbArray | str | TileError]]:
        """Read all tiles in order, with ``n_ahead`` of them being read in advance.

        Yields the index into the grid, and the result of :meth:`read`: pixels of shape (tile_px,
        tile_px, 3), a rule's name, or an error.
        """
        pending: deque[Future[RgbArray | str | TileError]] = deque()
        for index in range(self.n_tiles + n_ahead):
            if index < self.n_tiles:
                pending.append(pool.submit(self.read, index))
            if index >= n_ahead:
                yield index - n_ahead, pending.popleft().result()


@contextmanager
def open_slide_tiles(
    path: Path,
    *,
    tiles: TileSettings,
    tissue: TissueSettings,
    given_mpp: float | None,
    scene: int | None = None,
) -> Iterator[SlideTiles]:
    """Open a slide, and compute its tissue mask and its tiles of shape (tile_px, tile_px, 3).

    The slide is closed at the end. ``given_mpp`` are µm per level-0 px that replace the file's own;
    None to trust the file; ``scene`` is which of several scenes of the file is the slide, None for
    the largest. Raises SlideError if the slide cannot be opened, or none of it can be
    read; ResolutionError if ``given_mpp`` is implausible.
    """
    with STAGE_TIMES.timed("open"):
        slide = open_slide(path, scene=scene)
    with closing(slide):
        with STAGE_TIMES.timed("mask"):
            resolution = resolve_mpp(slide.stated_mpp, given_mpp=given_mpp, where=path)
            downsample = mask_downsample(resolution.mpp, tissue)
            overview = slide.overview(downsample=downsample)
            filled = fill_lost_areas(overview, slide.unreadable_px0, downsample=downsample)
            mask = segment_tissue(
                filled, downsample=downsample, mpp=resolution.mpp, settings=tissue
            )
            grid = make_tile_grid(
                mask,
                width_px0=slide.levels[0].width_px,
                height_px0=slide.levels[0].height_px,
                resolution=resolution,
                settings=tiles,
            )
            seed = zlib.crc32(slide_id_of(path, scene).encode())
            opened = SlideTiles(
                slide=slide,
                chosen_scene=scene,
                resolution=resolution,
                overview=overview,
                tissue=mask,
                grid=subsample_tiles(grid, tiles.max_tiles, seed=seed),
                n_tissue_tiles=len(grid.coords_px0),
                warnings=(*slide.warnings, *colour_warnings(filled, mask)),
                detect_artifact=artifact_detector(tiles.rules, glass_rgb=mask.background_rgb),
            )
        yield opened
