"""Comparison of two levels of a pyramid, of which the coarser may show something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import permutations

import numpy as np
import numpy.typing as npt

from features.errors import TileError
from features.slides.base import RgbArray

__all__ = ["AREA_PX", "shows_something_else"]

_CELL_PX = 6
"""Least side of what is compared, px of the coarser level: a shift of 1 px matters less."""
AREA_PX = 2 * _CELL_PX
"""Least side of an area that holds several cells wherever it begins, px of the coarser level."""
_MOST_DIFFERENCE = 24
"""Mean difference of an area that both levels show, grey levels; those of a scanner stay below 5,
glass and stained tissue differ by 50."""
_LEAST_CONTRAST = 3
"""Standard deviation of the cells of an area, grey levels, from which on they show structure."""
_LEAST_CORRELATION = 0.65
"""Correlation of the cells of such areas, about the mean of each: 0.80 or more where a level was
sampled, compressed, sharpened or is 2 px off, and 0.59 or less where it is mirrored or moved
(11 stained pictures, levels of a half to an eighth)."""
_LEAST_CELLS = 32
_SWAPPED_DIFFERENCE = 2
"""Mean difference from which on another order of the channels is looked at, of the quarter of the
areas that differ most: the others may be glass."""
_SWAPPED_FACTOR = 3
_Edges = npt.NDArray[np.float64]


def shows_something_else(
    areas: Iterable[tuple[float, float, float, float]],
    *,
    scale_xy: tuple[float, float],
    coarse_cells: Callable[[_Edges, _Edges], RgbArray],
    fine_cells: Callable[[_Edges, _Edges], RgbArray],
) -> bool:
    """Return whether a level differs in its colours from a finer one, in more than one area.

    A level whose channels are in another order differs as well, and one whose light and dark parts
    are elsewhere within areas of one colour.

    Parameters
    ----------
    areas
        Left, top, right and bottom of what is compared, px of the coarser level.
    scale_xy
        Px of the finer level per px of the coarser one, along x and y.
    coarse_cells, fine_cells
        Mean colours of cells of a level, shape (rows, columns, 3), uint8, between edges in px;
        TileError if they cannot be read.
    """
    differences: list[float] = []
    by_order: list[list[float]] = []
    greys: list[npt.NDArray[np.float64]] = []
    for left, top, right, bottom in areas:
        x0, y0, x1, y1 = math.ceil(left), math.ceil(top), int(right), int(bottom)
        n_cells = min(4, (x1 - x0) // _CELL_PX, (y1 - y0) // _CELL_PX)
        if n_cells < 1:
            continue
        rows, columns = np.linspace(y0, y1, n_cells + 1), np.linspace(x0, x1, n_cells + 1)
        with suppress(TileError):  # it is reported where it is read
            coarse = coarse_cells(rows, columns).astype(np.int64)
            fine = fine_cells(np.rint(rows * scale_xy[1]), np.rint(columns * scale_xy[0]))
            differences.append(np.abs(coarse - fine).mean())
            greys.append(np.stack([coarse.mean(axis=2).ravel(), fine.mean(axis=2).ravel()]))
            by_order.append(
                [np.abs(coarse[..., order] - fine).mean() for order in permutations(range(3))]
            )
    n_different = sum(difference > _MOST_DIFFERENCE for difference in differences)
    if n_different > len(differences) // 8 or not _are_correlated(greys):
        return True
    if not by_order:
        return False
    by_order.sort(reverse=True)
    as_stored, *otherwise = np.mean(by_order[: len(by_order) // 4 + 1], axis=0).tolist()
    return bool(as_stored > _SWAPPED_DIFFERENCE and min(otherwise) < as_stored / _SWAPPED_FACTOR)


def _are_correlated(greys: Sequence[npt.NDArray[np.float64]]) -> bool:
    """Whether both levels are light and dark in the same cells, as far as there is structure.

    ``greys`` has an array of each area, shape (2, cells), of the coarser and the finer level.
    """
    centred = [part - part.mean(axis=1, keepdims=True) for part in greys
               if part[1].std() > _LEAST_CONTRAST]  # fmt: skip
    if sum(part.shape[1] for part in centred) < _LEAST_CELLS:
        return True
    coarse, fine = np.concatenate(centred, axis=1)
    return bool(coarse @ fine > _LEAST_CORRELATION * np.sqrt(coarse @ coarse * (fine @ fine)))
