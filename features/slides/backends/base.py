"""Base classes of the readers: padding outside the slide, and reading block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.errors import SlideError, TileError
from features.slides.base import Level, RgbArray, Scene, StatedMpp
from features.slides.cache import TileCache
from features.slides.pixels import filled_image
from features.slides.resampling import overview_level, thumbnail_accumulator
from features.utils.hardware import CPU_COUNT

__all__ = ["MAX_SIDE_PX", "BlockGrid", "BlockReader", "RegionReader"]

MAX_SIDE_PX = 4_000_000
"""Longest side of a level; a larger one is taken for damage."""

_CACHE_BYTES = 320 << 20
_AHEAD_BYTES = 64 << 20


class RegionReader(ABC):
    """Base of the readers of regions, shape (height, width, 3) in px, that are inside a level."""

    path: Path
    levels: tuple[Level, ...]
    background_rgb: tuple[int, int, int] = (255, 255, 255)
    stated_mpp: StatedMpp | None = None
    warnings: tuple[str, ...] = ()

    @property
    def mpp_xy(self) -> tuple[float, float] | None:
        """µm per level-0 px along x and y that the file states, plausible or not."""
        stated = self.stated_mpp
        return None if stated is None else (stated.x, stated.y)

    scene: int = 1
    other_scenes: tuple[Scene, ...] = ()
    associated_images: tuple[str, ...] = ()

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Read a rectangle of one level, shape (height, width, 3) in px, uint8.

        Pixels outside the slide have the background colour; see
        :meth:`features.slides.base.Slide.read`.
        """
        size = self.levels[level]
        left, top = max(x_px, 0), max(y_px, 0)
        width = min(x_px + width_px, size.width_px) - left
        height = min(y_px + height_px, size.height_px) - top
        image = filled_image(height_px, width_px, self.background_rgb)
        if width > 0 and height > 0:
            row, column = top - y_px, left - x_px
            inside = image[row : row + height, column : column + width]
            self._read_inside(level, left, top, out=inside)
        return image

    @abstractmethod
    def _read_inside(self, level: int, x_px: int, y_px: int, *, out: RgbArray) -> None:
        """Fill ``out`` with the pixels of a region that is wholly inside the level."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockGrid:
    """Division of a level into blocks, each of shape (block_height_px, block_width_px), px.

    Blocks are TIFF tiles, TIFF strips or zarr chunks; the last row and column may be cut.
    """

    width_px: int
    height_px: int
    block_width_px: int
    block_height_px: int

    @property
    def rows(self) -> int:
        """Number of rows in the grid's shape (rows, columns)."""
        return -(-self.height_px // self.block_height_px)

    @property
    def columns(self) -> int:
        """Number of columns in the grid's shape (rows, columns)."""
        return -(-self.width_px // self.block_width_px)


class BlockReader(RegionReader):
    """Slide decoded block by block, each of shape (height, width, 3), uint8.

    A block is decoded at most once while the cache of 320 MiB holds it.
    """

    _grids: Sequence[BlockGrid]
    _where: object
    """File or URL, for messages."""
    _block_noun: str
    """Name of a block in messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._where = path
        self._cache = TileCache(_CACHE_BYTES)

    def overview(self, *, downsample: int) -> RgbArray:
        """Read the whole slide downsampled, shape (height, width, 3) in px, uint8.

        Damaged blocks have the background colour; see :meth:`features.slides.base.Slide.overview`.
        """
        level = overview_level(self.levels, downsample)
        grid = self._grids[level]
        means = thumbnail_accumulator(self.levels, level, downsample)
        indices, fill_rgb = self._nonempty_blocks(level)
        errors: list[TileError] = []
        for row, column, block in self._read_blocks(level, indices):
            if isinstance(block, TileError):
                errors.append(block)
            else:
                means.add(block, x_px=column * grid.block_width_px, y_px=row * grid.block_height_px)
        if errors and len(errors) == len(indices):
            raise SlideError(
                self._where,
                actual=f"none of {len(errors)} {self._block_noun}s of level {level} can be "
                f"decoded, first: {errors[0].actual}",
                expected="pixels",
                hint="Copy it again.",
            ) from errors[0]
        return means.mean_image(fill_rgb=fill_rgb)

    def close(self) -> None:
        """Release files and cached blocks."""
        self._cache.clear()

    @abstractmethod
    def _decode(self, level: int, row: int, column: int) -> RgbArray:
        """One block, cut at the border of the level; TileError if it cannot be decoded."""

    def _nonempty_blocks(self, level: int) -> tuple[npt.NDArray[np.int64], tuple[int, int, int]]:
        """Indices of the blocks that may show more than glass, and the colour of all others."""
        grid = self._grids[level]
        return np.arange(grid.rows * grid.columns), self.background_rgb

    def _make_levels(self) -> tuple[Level, ...]:
        first = self._grids[0]
        return tuple(
            Level(
                width_px=grid.width_px,
                height_px=grid.height_px,
                downsample=(first.width_px / grid.width_px + first.height_px / grid.height_px) / 2,
            )
            for grid in self._grids
        )

    def _block(self, level: int, row: int, column: int) -> RgbArray:
        return self._cache.get((level, row, column), lambda: self._decode(level, row, column))

    def _read_inside(self, level: int, x_px: int, y_px: int, *, out: RgbArray) -> None:
        grid = self._grids[level]
        step_x, step_y = grid.block_width_px, grid.block_height_px
        right, bottom = x_px + out.shape[1], y_px + out.shape[0]
        for row in range(y_px // step_y, (bottom - 1) // step_y + 1):
            for column in range(x_px // step_x, (right - 1) // step_x + 1):
                block = self._block(level, row, column)
                left, top = column * step_x, row * step_y
                x0, x1 = max(x_px, left), min(right, left + block.shape[1])
                y0, y1 = max(y_px, top), min(bottom, top + block.shape[0])
                out[y0 - y_px : y1 - y_px, x0 - x_px : x1 - x_px] = block[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]

    def _read_blocks(
        self, level: int, indices: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, int, RgbArray | TileError]]:
        """Row, column and pixels of blocks in order, decoded by all cores, 64 MiB ahead."""
        grid = self._grids[level]

        def read(index: int) -> tuple[int, int, RgbArray | TileError]:
            row, column = divmod(index, grid.columns)
            try:
                return row, column, self._block(level, row, column)
            except TileError as error:
                return row, column, error

        n_ahead = max(8, _AHEAD_BYTES // (grid.block_height_px * grid.block_width_px * 3))
        remaining = iter(indices.tolist())
        with ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="overview") as pool:
            while batch := list(islice(remaining, n_ahead)):
                yield from pool.map(read, batch)
