"""Tiles of many bags in few arrays: many small products take longer than a large one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats, Ints

__all__ = ["TILES_PER_BLOCK", "about_means", "bag_blocks", "joined_bags", "segment_sums"]

TILES_PER_BLOCK = 8192
"""Tiles at once, so that large bags and many bags need little memory."""


def joined_bags(bags: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor, Ints]]:
    """Yield consecutive bags joined, shape (tiles, ...): which, their tiles, where each begins.

    They have at most 8,192 tiles together; a larger bag is by itself. Many small bags at once take
    less time than one after the other.
    """
    for own in bag_blocks([len(bag) for bag in bags], TILES_PER_BLOCK):
        block = bags[own]
        starts = np.cumsum([0, *(len(bag) for bag in block[:-1])])
        yield own, block[0] if len(block) == 1 else torch.cat(list(block)), starts


def bag_blocks(n_tiles: Sequence[int], most: int) -> Iterator[slice]:
    """Yield slices of bags with at most ``most`` tiles together, or of one bag with more."""
    ends = np.cumsum(n_tiles)
    start, before = 0, 0
    while start < len(ends):
        end = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, end)
        start, before = end, int(ends[end - 1])


def segment_sums(rows: Floats, starts: Ints) -> Floats:
    """Return the sums of the rows of each bag, shape (bags, ...); a bag begins at each start."""
    return np.asarray(np.add.reduceat(rows, starts, axis=0), np.float64)


def about_means(tiles: Tensor, starts: Ints) -> Floats:
    """Return tiles less the mean of their bag, shape (tiles, ...), float64."""
    rows: Floats = tiles.double().cpu().numpy()
    lengths = np.diff(starts, append=len(rows))
    means = segment_sums(rows, starts) / lengths[:, None]
    return np.asarray(rows - np.repeat(means, lengths, axis=0), np.float64)
