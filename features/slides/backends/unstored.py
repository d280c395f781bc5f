"""Blocks that a file does not store: empty glass that a writer left out, or lost pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from features.errors import TileError
from features.slides.base import RgbArray
from features.slides.resampling import mean_cells

__all__ = ["PLAIN_RANGE", "UnstoredBlocks", "plain_colour"]

PLAIN_RANGE = 16
"""Most that the means of an area's parts differ where it shows nothing, grey levels."""

_BRIGHT = 150
"""Least of a plain colour's channels if it is glass: tinted and aged glass is brighter, and no
stain leaves as much of every colour over so wide an area without structure."""
_BLACK = 16
"""Most of a plain colour's channels if it is a scanner's black fill."""
_EDGE_PX = 16
"""Width of the strip beside a missing block that shows whether tissue is cut off."""
_MAX_GROUP = 1024
"""Most missing blocks side by side that are looked at together."""

_Key = tuple[int, int, int]
_Rgb = tuple[int, int, int]


def plain_colour(pixels: RgbArray) -> npt.NDArray[np.float64] | None:
    """Return the mean colour of an area that shows nothing, shape (3,); None if it shows anything.

    ``pixels`` has shape (height, width, 3), uint8; the means of its 64 parts are compared.
    """
    height, width = pixels.shape[:2]
    cell = max(1, min(height, width) // 8)
    cells = mean_cells(pixels, cell).reshape(-1, 3).astype(np.float64)
    if np.ptp(cells, axis=0).max() > PLAIN_RANGE:
        return None
    return np.asarray(cells.mean(axis=0))


class UnstoredBlocks:
    """Test of blocks without pixels, shape (height, width) in px, for glass or lost tissue.

    A sparse file leaves out empty glass; a damaged one lacks tissue. A coarser level that stores
    the area decides. Without one, what borders on the missing block does: where tissue is cut off
    at its edge, the block is lost, and so is a group of missing blocks that tissue surrounds.

    Parameters
    ----------
    sizes
        Width and height of each level and of its blocks, px.
    is_stored
        Whether the file has pixels for a block, given level, row and column.
    decode
        Pixels of a stored block, shape (height, width, 3), uint8; TileError if it is damaged.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int, int, int]],
        *,
        is_stored: Callable[[int, int, int], bool],
        decode: Callable[[int, int, int], RgbArray | None],
    ) -> None:
        self._sizes, self._is_stored, self._decode = sizes, is_stored, decode
        self._surrounded: dict[_Key, bool] = {}

    def glass_colour(self, level: int, row: int, column: int, *, fill_rgb: _Rgb) -> _Rgb | None:
        """Return the colour of a missing block's pixels, else ``fill_rgb``; None if lost."""
        for coarser in range(level + 1, len(self._sizes)):
            area = self._read_area(coarser, level, row, column)
            if area is not None:
                colour = plain_colour(area)
                if colour is None or not _is_empty(colour):
                    return None
                red, green, blue = np.rint(colour).astype(int).tolist()
                return red, green, blue
        if not all(self._edges(level, row, column)) or self._is_surrounded(level, row, column):
            return None
        return fill_rgb

    def _read_area(self, coarser: int, level: int, row: int, column: int) -> RgbArray | None:
        """The area of a block in a coarser level; None if that does not store all of it."""
        width, height, block_width, block_height = self._sizes[level]
        coarse_width, coarse_height, step_x, step_y = self._sizes[coarser]
        x0 = column * block_width * coarse_width // width
        y0 = row * block_height * coarse_height // height
        x1 = min(coarse_width, -(-(column + 1) * block_width * coarse_width // width))
        y1 = min(coarse_height, -(-(row + 1) * block_height * coarse_height // height))
        area = np.empty((max(1, y1 - y0), max(1, x1 - x0), 3), np.uint8)
        for r in range(y0 // step_y, (y0 + len(area) - 1) // step_y + 1):
            for c in range(x0 // step_x, (x0 + area.shape[1] - 1) // step_x + 1):
                block = self._stored(coarser, r, c)
                if block is None:
                    return None
                top, left = r * step_y, c * step_x
                part = block[max(0, y0 - top) :, max(0, x0 - left) :]
                into = area[max(0, top - y0) :, max(0, left - x0) :]
                rows, columns = min(len(part), len(into)), min(part.shape[1], into.shape[1])
                into[:rows, :columns] = part[:rows, :columns]
        return area

    def _edges(self, level: int, row: int, column: int) -> list[bool]:
        """Whether each stored neighbour ends in empty glass where it meets the missing block."""
        facing = {
            (row - 1, column): np.s_[-_EDGE_PX:, :],
            (row + 1, column): np.s_[:_EDGE_PX, :],
            (row, column - 1): np.s_[:, -_EDGE_PX:],
            (row, column + 1): np.s_[:, :_EDGE_PX],
        }
        found = []
        for (r, c), strip in facing.items():
            if self._is_inside(level, r, c) and self._is_stored(level, r, c):
                block = self._stored(level, r, c)
                colour = None if block is None else plain_colour(block[strip])
                found.append(colour is not None and _is_empty(colour))
        return found

    def _is_surrounded(self, level: int, row: int, column: int) -> bool:
        """Whether tissue borders on most of the group of missing blocks that this one is in."""
        known = self._surrounded.get((level, row, column))
        if known is not None:
            return known
        group, waiting = {(row, column)}, deque([(row, column)])
        while waiting and len(group) <= _MAX_GROUP:
            r, c = waiting.popleft()
            for near in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if (
                    near not in group
                    and self._is_inside(level, *near)
                    and not self._is_stored(level, *near)
                ):
                    group.add(near)
                    waiting.append(near)
        is_lost = False
        if len(group) <= _MAX_GROUP:
            edges = [edge for place in group for edge in self._edges(level, *place)]
            is_lost = sum(edges) < len(edges) / 2
        for place in group:
            self._surrounded[level, *place] = is_lost
        return is_lost

    def _is_inside(self, level: int, row: int, column: int) -> bool:
        width, height, block_width, block_height = self._sizes[level]
        return 0 <= row * block_height < height and 0 <= column * block_width < width

    def _stored(self, level: int, row: int, column: int) -> RgbArray | None:
        """Pixels as they are stored; None without any, or for a damaged block."""
        try:
            return self._decode(level, row, column) if self._is_stored(level, row, column) else None
        except TileError:
            return None


def _is_empty(colour: npt.NDArray[np.float64]) -> bool:
    return bool(colour.min() >= _BRIGHT or colour.max() <= _BLACK)
