"""Tile grid on a slide's tissue, and the pixels of its tiles at one physical size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from features.errors import MilError
from features.slides.base import RgbArray, Slide
from features.slides.resampling import nearest_level, resize_area
from features.slides.resolution import Resolution
from features.tiling.artifacts import RULES, require_rules
from features.tiling.tissue import TissueMask
from features.utils.array_lock import ARRAY_LOCK
from features.utils.stage_times import STAGE_TIMES

__all__ = [
    "TileGrid",
    "TileSettings",
    "TileWindow",
    "make_tile_grid",
    "read_tile",
    "read_window",
    "subsample_tiles",
]

_MIN_FRACTION = 1e-6


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """Size, resolution and choice of tiles of shape (tile_px, tile_px, 3).

    Attributes
    ----------
    target_mpp
        Resolution of a tile, µm/px.
    overlap_px
        Overlap of neighbouring tiles, px.
    min_tissue
        Least share of a tile that is tissue, 0 to 1.
    rules
        Rules of :mod:`features.tiling.artifacts` to apply.
    max_tiles
        Limit per slide, spread over its tissue; None for all.
    """

    tile_px: int = 224
    target_mpp: float = 0.5
    overlap_px: int = 0
    min_tissue: float = 0.3
    rules: tuple[str, ...] = tuple(RULES)
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        for is_valid, actual, expected in (
            (
                0 <= self.overlap_px < self.tile_px,
                f"an overlap of {self.overlap_px} px",
                f"0 to {self.tile_px - 1} px",
            ),
            (0 <= self.min_tissue <= 1, f"a least tissue share of {self.min_tissue:g}", "0 to 1"),
            (self.target_mpp > 0, f"a resolution of {self.target_mpp:g} µm/px", "above 0"),
            (
                self.max_tiles is None or self.max_tiles > 0,
                f"at most {self.max_tiles} tiles",
                "1 or more",
            ),
        ):
            if not is_valid:
                raise MilError("tiles", actual=actual, expected=expected)
        require_rules(self.rules)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileGrid:
    """Tiles of one slide, in reading order: top to bottom, each row from left to right.

    ``coords_px0`` are upper left corners, x then y, of shape (tiles, 2), level-0 px;
    ``tissue_fraction``, shape (tiles,), is the share of each tile that is tissue. A tile is read
    with a side of ``tile_px``. ``min_tissue_used`` is the least tissue share applied, below the
    setting where no tile reached that.
    """

    coords_px0: npt.NDArray[np.int64]
    tissue_fraction: npt.NDArray[np.float32]
    tile_width_px0: float
    tile_height_px0: float
    tile_px: int
    min_tissue_used: float


def make_tile_grid(
    tissue: TissueMask,
    *,
    width_px0: int,
    height_px0: int,
    resolution: Resolution,
    settings: TileSettings,
) -> TileGrid:
    """Return the grid of tiles that hold enough tissue, shape (tiles, 2), level-0 px.

    Tiles do not reach over the edge of the slide; a slide smaller than one tile has a single tile
    from 0 on. Where no tile holds enough tissue, the threshold is halved until one does; where all
    tissue is in the strips at the edges that no whole tile covers, the one edge-aligned tile with
    most of it is taken.
    """
    width = settings.tile_px * settings.target_mpp / resolution.mpp_x
    height = settings.tile_px * settings.target_mpp / resolution.mpp_y
    step = 1 - settings.overlap_px / settings.tile_px
    columns = _starts(width_px0, tile_px0=width, pitch_px0=width * step)
    rows = _starts(height_px0, tile_px0=height, pitch_px0=height * step)
    fractions = _tissue_fractions(tissue, columns, rows, tile_px0=(width, height))
    if tissue.mask.any() and fractions.max() <= _MIN_FRACTION:
        columns = _with_edge_aligned(columns, width_px0, width)
        rows = _with_edge_aligned(rows, height_px0, height)
        fractions = _tissue_fractions(tissue, columns, rows, tile_px0=(width, height))
        fractions[fractions < fractions.max()] = 0
    threshold = _threshold(fractions, settings.min_tissue)
    row_index, column_index = np.nonzero(fractions >= threshold)
    return TileGrid(
        coords_px0=np.stack([columns[column_index], rows[row_index]], axis=1).astype(np.int64),
        tissue_fraction=fractions[row_index, column_index].astype(np.float32),
        tile_width_px0=width,
        tile_height_px0=height,
        tile_px=settings.tile_px,
        min_tissue_used=threshold,
    )


def subsample_tiles(grid: TileGrid, max_tiles: int | None, *, seed: int) -> TileGrid:
    """Return at most ``max_tiles`` tiles of a grid, shape (tiles, 2), level-0 px, in their order.

    To be spread over its area, the tiles are sorted along a Z-order curve (Morton, 1966), cut into
    ``max_tiles`` runs of the same length, and one tile is drawn from each. None keeps all.
    """
    n_tiles = len(grid.coords_px0)
    if max_tiles is None or n_tiles <= max_tiles:
        return grid
    cells = (grid.coords_px0 / (grid.tile_width_px0, grid.tile_height_px0)).astype(np.int64)
    order = np.argsort(_morton_codes(cells), kind="stable")
    bounds = np.linspace(0, n_tiles, max_tiles + 1).astype(np.int64)
    kept = np.sort(order[np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])])
    return replace(
        grid, coords_px0=grid.coords_px0[kept], tissue_fraction=grid.tissue_fraction[kept]
    )


def _morton_codes(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Interleaved bits of x and y of cells, shape (n, 2): their order on the curve, shape (n,)."""
    codes = np.zeros(len(cells), np.int64)
    for bit in range(31):
        for axis in range(2):
            codes |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return codes


@dataclass(frozen=True, eq=False)
class TileWindow:
    """Pixels of a level around a tile, shape (height, width, 3), uint8, and its place in them.

    ``rows`` and ``columns`` are where the tile starts and ends, in px of the level.
    """

    pixels: RgbArray
    rows: tuple[float, float]
    columns: tuple[float, float]
    tile_px: int

    def scale(self) -> RgbArray:
        """Return the tile, shape (tile_px, tile_px, 3), uint8."""
        height, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        if min(width, height) >= self.tile_px * (1 - 1e-6):
            return resize_area(
                self.pixels, rows=self.rows, columns=self.columns, height_px=self.tile_px,
                width_px=self.tile_px,
            )  # fmt: skip
        box = (max(0.0, self.columns[0]), max(0.0, self.rows[0]),
               min(self.columns[1], self.pixels.shape[1]),
               min(self.rows[1], self.pixels.shape[0]))  # fmt: skip
        size = (self.tile_px, self.tile_px)
        image = Image.fromarray(self.pixels)
        return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def read_window(slide: Slide, grid: TileGrid, index: int) -> TileWindow:
    """Read the pixels around one tile, shape (height, width, 3), uint8, not scaled yet.

    They come from the coarsest level that is fine enough. Raises TileError if they cannot be
    decoded.
    """
    level = nearest_level(
        slide.levels, min(grid.tile_width_px0, grid.tile_height_px0) / grid.tile_px
    )
    downsample = slide.levels[level].downsample
    left, top = grid.coords_px0[index] / downsample
    right, bottom = left + grid.tile_width_px0 / downsample, top + grid.tile_height_px0 / downsample
    x_px, y_px = math.floor(left + 1e-6), math.floor(top + 1e-6)
    with STAGE_TIMES.timed("decode"):
        pixels = slide.read(
            level=level,
            x_px=x_px,
            y_px=y_px,
            width_px=math.ceil(right - 1e-6) - x_px,
            height_px=math.ceil(bottom - 1e-6) - y_px,
        )
    return TileWindow(
        pixels, rows=(top - y_px, bottom - y_px), columns=(left - x_px, right - x_px),
        tile_px=grid.tile_px,
    )  # fmt: skip


def read_tile(slide: Slide, grid: TileGrid, index: int) -> RgbArray:
    """Read the pixels of one tile, shape (tile_px, tile_px, 3), uint8.

    They come from the coarsest level that is fine enough, are cut at the exact, often fractional
    window and scaled to ``tile_px``: by area averaging where they shrink, bicubic where the slide
    is coarser than the target. A tile covers the same µm whatever the scanner. Raises TileError if
    the tile cannot be decoded.
    """
    window = read_window(slide, grid, index)
    with ARRAY_LOCK, STAGE_TIMES.timed("resample"):
        return window.scale()


def _starts(length_px0: int, *, tile_px0: float, pitch_px0: float) -> npt.NDArray[np.int64]:
    """Return the first px of tiles along one axis, shape (tiles,); at least one tile."""
    n_tiles = max(1, int((length_px0 - tile_px0) / pitch_px0 + 1 + 1e-9))
    starts: npt.NDArray[np.int64] = np.floor(np.arange(n_tiles) * pitch_px0 + 0.5).astype(np.int64)
    # Rounding the corner may push the last tile over the edge by half a pixel.
    return np.asarray(starts[(starts + tile_px0 <= length_px0 + 1e-6) | (starts == 0)])


def _with_edge_aligned(
    starts: npt.NDArray[np.int64], length_px0: int, tile_px0: float
) -> npt.NDArray[np.int64]:
    """Tiles along one axis, and one more that ends at the edge."""
    return np.unique(np.append(starts, max(0, int(length_px0 - tile_px0))))


def _tissue_fractions(
    tissue: TissueMask,
    columns: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    *,
    tile_px0: tuple[float, float],
) -> npt.NDArray[np.float64]:
    """Share of every tile that is tissue, shape (rows, columns), by an integral image."""
    sums = np.zeros((tissue.mask.shape[0] + 1, tissue.mask.shape[1] + 1))
    np.cumsum(np.cumsum(tissue.mask, axis=0), axis=1, out=sums[1:, 1:])
    x_edges = np.stack([columns, columns + tile_px0[0]]) / tissue.downsample
    y_edges = np.stack([rows, rows + tile_px0[1]]) / tissue.downsample
    by_rows = _interpolate(sums, y_edges[1]) - _interpolate(sums, y_edges[0])
    areas = _interpolate(by_rows.T, x_edges[1]) - _interpolate(by_rows.T, x_edges[0])
    return np.clip(areas.T / (math.prod(tile_px0) / tissue.downsample**2), 0.0, 1.0)


def _interpolate(
    table: npt.NDArray[np.float64], positions: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Rows of a table at fractional positions, clipped to it."""
    positions = np.clip(positions, 0, len(table) - 1)
    low = np.minimum(positions.astype(np.int64), len(table) - 2)
    weight = (positions - low)[:, None]
    return np.asarray(table[low] * (1 - weight) + table[low + 1] * weight)


def _threshold(fractions: npt.NDArray[np.float64], min_tissue: float) -> float:
    """The setting, halved until one tile reaches it."""
    highest = float(fractions.max())
    threshold = max(min_tissue, _MIN_FRACTION)
    while _MIN_FRACTION < highest < threshold:
        threshold /= 2
    return threshold
