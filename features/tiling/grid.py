"""The grid of tiles on a slide's tissue, and their pixels at one physical size."""

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

__all__ = ["TileGrid", "TileSettings", "make_tile_grid", "read_tile", "subsample_tiles"]

_LEAST_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True)
class TileSettings:
    """Size, resolution and choice of tiles."""

    tile_px: int = 224
    """Side of a tile, px."""
    target_mpp: float = 0.5
    """Resolution of a tile, µm/px."""
    overlap_px: int = 0
    """Overlap of neighbouring tiles, px."""
    min_tissue: float = 0.3
    """Least share of a tile that is tissue, 0 to 1."""
    rules: tuple[str, ...] = tuple(RULES)
    """Rules of :mod:`features.tiling.artifacts` that may leave a tile out."""
    max_tiles: int | None = None
    """Tiles of a slide at most, spread over its tissue; None for all."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_px < self.tile_px:
            raise MilError(
                "tiles", actual=f"an overlap of {self.overlap_px} px",
                expected=f"0 to {self.tile_px - 1} px",
            )  # fmt: skip
        if not 0 <= self.min_tissue <= 1:
            raise MilError(
                "tiles", actual=f"a least tissue share of {self.min_tissue:g}", expected="0 to 1"
            )
        if not self.target_mpp > 0:
            raise MilError(
                "tiles", actual=f"a resolution of {self.target_mpp:g} µm/px", expected="above 0"
            )
        if self.max_tiles is not None and self.max_tiles < 1:
            raise MilError("tiles", actual=f"at most {self.max_tiles} tiles", expected="1 or more")
        require_rules(self.rules)


@dataclass(frozen=True, kw_only=True, eq=False)
class TileGrid:
    """Tiles of one slide, in reading order: top to bottom, each row left to right."""

    coords_px0: npt.NDArray[np.int64]
    """Upper left corners, x then y, shape (n_tiles, 2), level-0 px."""
    tissue_fraction: npt.NDArray[np.float32]
    """Share of each tile that is tissue, shape (n_tiles,)."""
    span_x_px0: float
    """Width of a tile, level-0 px."""
    span_y_px0: float
    """Height of a tile, level-0 px."""
    tile_px: int
    """Side of a tile as it is read, px."""
    min_tissue_used: float
    """Least tissue share that was applied; below the setting where nothing reached that."""


def make_tile_grid(
    tissue: TissueMask,
    *,
    width_px0: int,
    height_px0: int,
    resolution: Resolution,
    settings: TileSettings,
) -> TileGrid:
    """Tiles that hold enough tissue.

    Tiles lie inside the slide; on a slide smaller than one tile, the single tile starts at 0 and
    reaches over the edge. Where there is tissue but no tile holds enough of it, the threshold is
    halved until one does; where all of it lies at the edges that no whole tile of the grid covers,
    the one tile flush with the edge that holds most of it is taken.

    Parameters
    ----------
    tissue
        Tissue of the slide.
    width_px0, height_px0
        Size of the slide in level-0 px.
    resolution
        µm per level-0 px.
    settings
        Size, resolution and choice of tiles.
    """
    span_x = settings.tile_px * settings.target_mpp / resolution.mpp_x
    span_y = settings.tile_px * settings.target_mpp / resolution.mpp_y
    kept_share = 1 - settings.overlap_px / settings.tile_px
    columns = _starts(width_px0, span=span_x, pitch=span_x * kept_share)
    rows = _starts(height_px0, span=span_y, pitch=span_y * kept_share)
    shares = _tissue_shares(tissue, columns, rows, span_x=span_x, span_y=span_y)
    if tissue.mask.any() and shares.max() <= _LEAST_SHARE:
        # All tissue lies beyond the last whole tile, at the right or lower edge.
        columns, rows = (
            _edge_aligned(columns, width_px0, span_x),
            _edge_aligned(rows, height_px0, span_y),
        )
        shares = _tissue_shares(tissue, columns, rows, span_x=span_x, span_y=span_y)
        shares[shares < shares.max()] = 0
    least = _threshold(shares, settings.min_tissue)
    row_index, column_index = np.nonzero(shares >= least)
    return TileGrid(
        coords_px0=np.stack([columns[column_index], rows[row_index]], axis=1).astype(np.int64),
        tissue_fraction=shares[row_index, column_index].astype(np.float32),
        span_x_px0=span_x,
        span_y_px0=span_y,
        tile_px=settings.tile_px,
        min_tissue_used=least,
    )


def subsample_tiles(grid: TileGrid, max_tiles: int | None, *, seed: int) -> TileGrid:
    """At most so many tiles of a grid, spread over its area, in reading order.

    The tiles are put in the order of a curve that keeps neighbours together (Morton, 1966), cut
    into ``max_tiles`` runs of the same length, and one tile is drawn of each.

    Parameters
    ----------
    grid
        All tiles.
    max_tiles
        Tiles to keep at most; None keeps all.
    seed
        Decides which tile of a run is drawn.
    """
    n_tiles = len(grid.coords_px0)
    if max_tiles is None or n_tiles <= max_tiles:
        return grid
    cells = (grid.coords_px0 / (grid.span_x_px0, grid.span_y_px0)).astype(np.int64)
    order = np.argsort(_interleaved(cells), kind="stable")
    borders = np.linspace(0, n_tiles, max_tiles + 1).astype(np.int64)
    kept = np.sort(order[np.random.default_rng(seed).integers(borders[:-1], borders[1:])])
    return replace(
        grid, coords_px0=grid.coords_px0[kept], tissue_fraction=grid.tissue_fraction[kept]
    )


def _interleaved(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bits of x and y of each cell, shape (n, 2), in turn: its place on the curve, shape (n,)."""
    places = np.zeros(len(cells), np.int64)
    for bit in range(31):
        for axis in range(2):
            places |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return places


def read_tile(slide: Slide, grid: TileGrid, index: int) -> RgbArray:
    """Pixels of one tile.

    They come from the coarsest level that is at least as fine as asked, are cut at the exact, often
    fractional window and scaled to ``tile_px``: by area averaging where they shrink, bicubic where
    a slide is coarser than asked. A tile covers the same µm whatever the scanner.

    Parameters
    ----------
    slide
        Open slide.
    grid
        Its tiles.
    index
        Which tile.

    Returns
    -------
    RgbArray
        Shape (tile_px, tile_px, 3), uint8.

    Raises
    ------
    TileError
        If it cannot be decoded.
    """
    level = nearest_level(slide.levels, min(grid.span_x_px0, grid.span_y_px0) / grid.tile_px)
    downsample = slide.levels[level].downsample
    left, top = grid.coords_px0[index] / downsample
    right, bottom = left + grid.span_x_px0 / downsample, top + grid.span_y_px0 / downsample
    x_px, y_px = math.floor(left + 1e-6), math.floor(top + 1e-6)
    pixels = slide.read(
        level=level,
        x_px=x_px,
        y_px=y_px,
        width_px=math.ceil(right - 1e-6) - x_px,
        height_px=math.ceil(bottom - 1e-6) - y_px,
    )
    columns = (left - x_px, right - x_px)
    rows = (top - y_px, bottom - y_px)
    if min(right - left, bottom - top) >= grid.tile_px * (1 - 1e-6):
        return resize_area(
            pixels, rows=rows, columns=columns, height_px=grid.tile_px, width_px=grid.tile_px
        )
    box = (max(0.0, columns[0]), max(0.0, rows[0]),
           min(columns[1], pixels.shape[1]), min(rows[1], pixels.shape[0]))  # fmt: skip
    size = (grid.tile_px, grid.tile_px)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box))


def _starts(length_px0: int, *, span: float, pitch: float) -> npt.NDArray[np.int64]:
    """First pixels of tiles along one axis; at least one tile."""
    n_tiles = max(1, int((length_px0 - span) / pitch + 1 + 1e-9))
    starts: npt.NDArray[np.int64] = np.floor(np.arange(n_tiles) * pitch + 0.5).astype(np.int64)
    # Rounding the corner may push the last tile over the edge by half a pixel.
    return np.asarray(starts[(starts + span <= length_px0 + 1e-6) | (starts == 0)])


def _edge_aligned(
    starts: npt.NDArray[np.int64], length_px0: int, span: float
) -> npt.NDArray[np.int64]:
    """Tiles along one axis, and one more that ends at the edge."""
    return np.unique(np.append(starts, max(0, int(length_px0 - span))))


def _tissue_shares(
    tissue: TissueMask,
    columns: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    *,
    span_x: float,
    span_y: float,
) -> npt.NDArray[np.float64]:
    """Share of every tile that is tissue, shape (rows, columns), by an integral image."""
    sums = np.zeros((tissue.mask.shape[0] + 1, tissue.mask.shape[1] + 1))
    np.cumsum(np.cumsum(tissue.mask, axis=0), axis=1, out=sums[1:, 1:])
    x_edges = np.stack([columns, columns + span_x]) / tissue.downsample
    y_edges = np.stack([rows, rows + span_y]) / tissue.downsample
    by_rows = _interpolate(sums, y_edges[1]) - _interpolate(sums, y_edges[0])
    areas = _interpolate(by_rows.T, x_edges[1]) - _interpolate(by_rows.T, x_edges[0])
    share = areas.T / (span_x * span_y / tissue.downsample**2)
    return np.clip(share, 0.0, 1.0)


def _interpolate(
    table: npt.NDArray[np.float64], places: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Rows of a table at fractional places, kept inside it."""
    places = np.clip(places, 0, len(table) - 1)
    low = np.minimum(places.astype(np.int64), len(table) - 2)
    part = (places - low)[:, None]
    return np.asarray(table[low] * (1 - part) + table[low + 1] * part)


def _threshold(shares: npt.NDArray[np.float64], wanted: float) -> float:
    """The least share to apply: as wanted, halved until one tile reaches it."""
    most = float(shares.max())
    if most <= _LEAST_SHARE:
        return max(wanted, _LEAST_SHARE)
    least = max(wanted, _LEAST_SHARE)
    while most < least:
        least /= 2
    return least
