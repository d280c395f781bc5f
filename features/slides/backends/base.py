"""Base classes of the readers: padding outside the slide, and reading block by block."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.errors import SlideError, TileError
from features.slides.backends.level_content import AREA_PX, shows_something_else
from features.slides.backends.unstored import UnstoredBlocks
from features.slides.base import Level, RgbArray, Slide
from features.slides.cache import TileCache
from features.slides.pixels import filled_image
from features.slides.resampling import AreaAccumulator, overview_level, thumbnail_accumulator
from features.utils.hardware import CPU_COUNT

__all__ = [
    "GOLDEN_RATIO",
    "MAX_SIDE_PX",
    "BlockGrid",
    "BlockReader",
    "RegionReader",
    "StoredGrid",
    "whole_grid",
]

MAX_SIDE_PX = 4_000_000
"""Longest side of a level; a larger one is taken for damage."""

_CACHE_BYTES = 320 << 20
_AHEAD_BYTES = 64 << 20
_TOGETHER_BYTES = 1 << 20
"""Pixels that a thread decodes at a time: handing over a single small block costs as much."""
_N_COMPARED = 12
"""Areas of a level whose colours are compared with those of the next coarser one."""
_MAX_AREA_PX, _MAX_COMPARED_PX = 1 << 23, 1 << 25
"""Most that is decoded for it: of one area, and of all."""
GOLDEN_RATIO = 0.618
"""Step that spreads columns evenly, however many rows there are."""
_USUAL_BLOCK_PX = 512


class RegionReader(Slide, ABC):
    """Base of the readers of regions, shape (height, width, 3) in px, that are inside a level."""

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

    def release_memory(self) -> None:
        """Do nothing, unless a reader keeps pixels that it can decode again."""

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


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredGrid(BlockGrid):
    """Blocks of one level, sizes in px, and row and column of those that the file has.

    ``stored`` is None if it has all.
    """

    stored: frozenset[tuple[int, int]] | None


def whole_grid(width_px: int, height_px: int) -> StoredGrid:
    """Return a level of that size, px, of which nothing is missing as far as is known."""
    return StoredGrid(
        width_px=width_px, height_px=height_px, block_width_px=min(width_px, _USUAL_BLOCK_PX),
        block_height_px=min(height_px, _USUAL_BLOCK_PX), stored=None,
    )  # fmt: skip


class BlockReader(RegionReader):
    """Slide decoded block by block, each of shape (height, width, 3), uint8.

    A block is decoded at most once while the cache of 320 MiB holds it. One that is damaged or not
    stored is computed from the next finer level; on the finest, it is an error unless it is glass.
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

        Lost blocks have the background colour, and are listed in ``unreadable_px0``; see
        :meth:`features.slides.base.Slide.overview`.
        """
        level = overview_level(self.levels, downsample)
        grid = self._grids[level]
        means = thumbnail_accumulator(self.levels, level, downsample)
        indices, fill_rgb = self._nonempty_blocks(level)
        if level == 0:  # Backwards, so that the cache ends with the blocks that tiles begin with.
            indices = indices[::-1]
        errors: dict[tuple[int, int], TileError] = {}
        for row, column, block in self._read_blocks(level, indices):
            if isinstance(block, TileError):
                errors[row, column] = block
            else:
                means.add(block, x_px=column * grid.block_width_px, y_px=row * grid.block_height_px)
        lost = sorted(errors)
        if errors and len(errors) == len(indices):
            first = errors[lost[0]]
            raise SlideError(
                self._where,
                actual=f"none of {len(errors)} {self._block_noun}s of level {level} can be "
                f"decoded, first: {first.actual}",
                expected="pixels",
                hint="Copy it again.",
            ) from first
        self.unreadable_px0 = tuple(self._box_px0(level, row, column) for row, column in lost)
        return means.mean_image(fill_rgb=fill_rgb)

    def release_memory(self) -> None:
        """Release the bytes of cached blocks."""
        self._cache.clear()

    def close(self) -> None:
        """Release files and the bytes of cached blocks."""
        self.release_memory()

    @abstractmethod
    def _decode(self, level: int, row: int, column: int) -> RgbArray | None:
        """One block, cut at the border of the level; None if the file stores no pixels for it.

        TileError if it cannot be decoded.
        """

    @abstractmethod
    def _is_stored(self, level: int, row: int, column: int) -> bool:
        """Whether the file stores pixels for a block, damaged or not."""

    def _fill_rgb(self, level: int) -> tuple[int, int, int]:  # noqa: ARG002 - readers differ
        """Colour of empty blocks that a level leaves out."""
        return self.background_rgb

    def _nonempty_blocks(self, level: int) -> tuple[npt.NDArray[np.int64], tuple[int, int, int]]:
        """Indices of the blocks that may show more than glass, and the colour of all others."""
        grid = self._grids[level]
        return np.arange(grid.rows * grid.columns), self.background_rgb

    def _compared_blocks(self, n_blocks: int) -> Iterator[tuple[int, int]]:
        """Row and column of so many blocks of the finest level, spread over the slide."""
        grid = self._grids[0]
        for number in range(n_blocks):
            across = number * GOLDEN_RATIO % 1.0
            yield int((number + 0.5) / n_blocks * grid.rows), int(across * grid.columns)

    def _make_levels(self) -> tuple[Level, ...]:
        """Levels of the grids, without those that do not show the whole slide, or another one."""
        first = self._grids[0]
        kept = []
        for number, grid in enumerate(self._grids):
            if _is_proportional(first, grid):
                kept.append(grid)
            else:
                size, whole = (f"{g.width_px:,} × {g.height_px:,} px" for g in (grid, first))
                text = f"level {number} of {size} is set aside: it does not show all of {whole}"
                self.warnings += (text,)
        self._grids = kept[:1]
        for grid in kept[1:]:
            finer = self._grids
            self._grids = [*finer, grid]
            if self._last_shows_something_else():
                self._grids = finer
                size = f"{grid.width_px:,} × {grid.height_px:,} px"
                text = f"level of {size} is set aside: it does not show what the finer level shows"
                self.warnings += (text,)
            vars(self).pop("_unstored", None)  # it has been told of other levels
        return tuple(
            Level(
                width_px=grid.width_px,
                height_px=grid.height_px,
                downsample=(first.width_px / grid.width_px + first.height_px / grid.height_px) / 2,
            )
            for grid in self._grids
        )

    def _last_shows_something_else(self) -> bool:
        """Whether the last level differs in its colours from the one before."""
        level = len(self._grids) - 1
        first, fine, coarse = self._grids[0], self._grids[level - 1], self._grids[level]
        scale_x, scale_y = fine.width_px / coarse.width_px, fine.height_px / coarse.height_px
        # So many blocks that the coarser level has several px of them.
        across = math.ceil(AREA_PX * scale_x / fine.block_width_px)
        down = math.ceil(AREA_PX * scale_y / fine.block_height_px)
        area_px = across * down * fine.block_width_px * fine.block_height_px
        if area_px > _MAX_AREA_PX:
            return False
        n_areas = min(_N_COMPARED, first.rows * first.columns, _MAX_COMPARED_PX // area_px)
        corners: dict[tuple[int, int], None] = {}
        for row, column in self._compared_blocks(n_areas):
            left, top, _, _ = self._box_in(level - 1, 0, row, column)
            corner = (int(top) // fine.block_height_px, int(left) // fine.block_width_px)
            corners[max(0, min(corner[0], fine.rows - down)),
                    max(0, min(corner[1], fine.columns - across))] = None  # fmt: skip
        areas = []
        for row, column in corners:
            left, top, _, _ = self._box_in(level, level - 1, row, column)
            last = min(fine.rows, row + down) - 1, min(fine.columns, column + across) - 1
            areas.append((left, top, *self._box_in(level, level - 1, *last)[2:]))
        return shows_something_else(
            areas, scale_xy=(scale_x, scale_y), coarse_cells=partial(self._mean_cells, level),
            fine_cells=partial(self._mean_cells, level - 1),
        )  # fmt: skip

    def _block(self, level: int, row: int, column: int) -> RgbArray:
        key = self._grids[level], row, column  # a level may be set aside, and numbers change
        return self._cache.get(key, lambda: self._whole_block(level, row, column))

    def _whole_block(self, level: int, row: int, column: int) -> RgbArray:
        """A block as it is stored, else from the finer level, else glass; TileError if lost."""
        error = None
        try:
            block = self._decode(level, row, column)
            if block is not None:
                return block
        except TileError as caught:
            error = caught
        if level and self._has_pixels(level - 1, self._box_in(level - 1, level, row, column)):
            with suppress(TileError):
                return self._block_from_finer(level, row, column)
        if error is None:
            rgb = self._unstored.glass_colour(level, row, column, fill_rgb=self._fill_rgb(level))
            if rgb is not None:
                left, top, right, bottom = self._box_in(level, level, row, column)
                return filled_image(round(bottom - top), round(right - left), rgb)
        raise error or TileError(
            self._where,
            actual=f"{self._name_block(level, row, column)} is not stored, and it is not glass "
            "that surrounds it",
            expected="pixels",
            hint="Copy or export the slide again.",
        )

    @cached_property
    def _unstored(self) -> UnstoredBlocks:
        sizes = [
            (grid.width_px, grid.height_px, grid.block_width_px, grid.block_height_px)
            for grid in self._grids
        ]
        return UnstoredBlocks(sizes, is_stored=self._is_stored, decode=self._decode)

    def _box_in(
        self, other: int, level: int, row: int, column: int
    ) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a block, in px of another level."""
        grid, size = self._grids[level], self._grids[other]
        scale_x, scale_y = size.width_px / grid.width_px, size.height_px / grid.height_px
        right = min(grid.width_px, (column + 1) * grid.block_width_px)
        bottom = min(grid.height_px, (row + 1) * grid.block_height_px)
        return (
            column * grid.block_width_px * scale_x, row * grid.block_height_px * scale_y,
            right * scale_x, bottom * scale_y,
        )  # fmt: skip

    def _name_block(self, level: int, row: int, column: int) -> str:
        """Which block it is, and the level-0 px of its upper left corner, for messages."""
        place = self._box_px0(level, row, column)[:2]
        return f"{self._block_noun} in row {row}, column {column} of level {level} at {place} px0"

    def _box_px0(self, level: int, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a block in level-0 px."""
        left, top, right, bottom = self._box_in(0, level, row, column)
        return round(left), round(top), round(right) - round(left), round(bottom) - round(top)

    def _blocks_in(
        self, level: int, box: tuple[float, float, float, float]
    ) -> Iterator[tuple[int, int]]:
        """Row and column of each block that a box touches; it is left, top, right, bottom, px."""
        grid, (left, top, right, bottom) = self._grids[level], box
        last_row = min(grid.rows, math.ceil(bottom / grid.block_height_px))
        last_column = min(grid.columns, math.ceil(right / grid.block_width_px))
        for row in range(int(top) // grid.block_height_px, last_row):
            for column in range(int(left) // grid.block_width_px, last_column):
                yield row, column

    def _has_pixels(self, level: int, box: tuple[float, float, float, float]) -> bool:
        """Whether a level, or one that is finer, stores pixels of an area given in px."""
        return any(
            self._is_stored(level, row, column)
            or (
                level > 0
                and self._has_pixels(level - 1, self._box_in(level - 1, level, row, column))
            )
            for row, column in self._blocks_in(level, box)
        )

    def _block_from_finer(self, level: int, row: int, column: int) -> RgbArray:
        """A block averaged from the next finer level; TileError if that lacks any of it."""
        finer = self._grids[level - 1]
        left, top, right, bottom = self._box_in(level - 1, level, row, column)
        own_left, own_top, own_right, own_bottom = self._box_in(level, level, row, column)
        rows = np.linspace(top, bottom, round(own_bottom - own_top) + 1)
        columns = np.linspace(left, right, round(own_right - own_left) + 1)
        for edges, end in ((rows, finer.height_px), (columns, finer.width_px)):
            edges[0], edges[-1] = math.floor(edges[0]), min(end, math.ceil(edges[-1]))
        return self._mean_cells(level - 1, rows, columns)

    def _mean_cells(
        self, level: int, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
    ) -> RgbArray:
        """Mean colours of cells of a level, shape (rows, columns, 3), uint8, between edges in px.

        The outermost edges are whole px. TileError if any block that a cell touches is lost.
        """
        grid = self._grids[level]
        means = AreaAccumulator(rows=rows, columns=columns)
        x0, y0, x1, y1 = (int(value) for value in (columns[0], rows[0], columns[-1], rows[-1]))
        for r, c in self._blocks_in(level, (x0, y0, x1, y1)):
            block = self._block(level, r, c)
            y, x = r * grid.block_height_px, c * grid.block_width_px
            part = block[max(0, y0 - y) : y1 - y, max(0, x0 - x) : x1 - x]
            means.add(part, x_px=max(x, x0), y_px=max(y, y0))
        return means.mean_image(fill_rgb=self.background_rgb)

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

        def read(part: Sequence[int]) -> list[tuple[int, int, RgbArray | TileError]]:
            return [self._try_block(level, *divmod(index, grid.columns)) for index in part]

        block_bytes = grid.block_height_px * grid.block_width_px * 3
        together = max(1, _TOGETHER_BYTES // block_bytes)
        n_ahead = max(8, _AHEAD_BYTES // block_bytes // together)
        parts = (indices[at : at + together].tolist() for at in range(0, len(indices), together))
        with ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="overview") as pool:
            pending = deque(pool.submit(read, part) for part in islice(parts, n_ahead))
            while pending:
                yield from pending.popleft().result()
                pending.extend(pool.submit(read, part) for part in islice(parts, 1))

    def _try_block(
        self, level: int, row: int, column: int
    ) -> tuple[int, int, RgbArray | TileError]:
        try:
            return row, column, self._block(level, row, column)
        except TileError as error:
            return row, column, error


def _is_proportional(first: BlockGrid, grid: BlockGrid) -> bool:
    """Whether a level has the proportions of the finest, within 2 px or 1 %; else it was cut."""
    lowest, highest = [], []
    for whole, side in ((first.width_px, grid.width_px), (first.height_px, grid.height_px)):
        slack = max(2.0, 0.01 * side)
        lowest.append(whole / (side + slack))
        highest.append(whole / max(side - slack, 1e-9))
    return max(lowest) <= min(highest)
