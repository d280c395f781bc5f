"""Distances of a patient's tiles and of their mean to stored ones of other patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from mil.arrays import Bools, Float32s, Floats, Ints

__all__ = ["CoreTiles", "MeanTiles"]

_SMALLEST_SQUARE = 1e-5  # below it, distances are errors of rounding to float16 and of sums
_VALUES_PER_BLOCK = 2**22  # 16 MiB of distances at a time, however many core tiles there are


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanTiles:
    """Mean of the finite projected tiles of each patient, with the spread around it.

    Attributes
    ----------
    means
        Shape (patients, components), float32; 0 for a patient without finite tiles.
    squares
        Sum of the squared distances of a patient's tiles to their mean, shape (patients,).
    counts
        Number of those tiles, shape (patients,).
    """

    means: Float32s
    squares: Floats
    counts: Ints

    def __post_init__(self) -> None:
        finite = np.isfinite(self.means).all() and np.isfinite(self.squares).all()
        if not finite or {len(self.means), len(self.squares)} != {len(self.counts)}:
            raise ValueError("mean tiles that are not finite, or of some patients only")

    @classmethod
    def of(cls, patients: Sequence[Float32s]) -> Self:
        """Return the means of patients from their projected tiles, shape (tiles, components)."""
        finite = [tiles[np.isfinite(tiles).all(axis=1)] for tiles in patients]
        means = [tiles.mean(axis=0) if len(tiles) else np.zeros(tiles.shape[1]) for tiles in finite]
        pairs = zip(finite, means, strict=True)
        return cls(
            means=np.stack(means).astype(np.float16).astype(np.float32),  # as they are stored
            squares=np.array([np.square(tiles - mean).sum() for tiles, mean in pairs], np.float64),
            counts=np.array([len(tiles) for tiles in finite], np.int64),
        )

    def distances(self, other: MeanTiles) -> Floats:
        """Return the distances to the means of others, shape (patients, others), float64.

        Squared distances are less the part that chance alone gives means of so few tiles, with the
        pooled variance of both patients, so that patients with few tiles are not far for that. They
        are infinite where one has no finite tile.
        """
        own, others = np.square(self.means).sum(axis=1), np.square(other.means).sum(axis=1)
        squares = (own[:, None] + others - 2 * self.means @ other.means.T).astype(np.float64)
        squares[squares < _SMALLEST_SQUARE] = 0
        n_own, n_other = self.counts[:, None], other.counts[None]
        pooled = (self.squares[:, None] + other.squares) / np.maximum(n_own + n_other - 2, 1)
        squares -= pooled * (1 / np.maximum(n_own, 1) + 1 / np.maximum(n_other, 1))
        distances = np.sqrt(np.maximum(squares, 0))
        distances[(n_own == 0) | (n_other == 0)] = np.inf
        return np.asarray(distances, np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class CoreTiles:
    """Projected tiles of patients, to measure distances to.

    ``tiles`` has shape (core tiles, components), finite, in the order of the patients, who have
    ``counts`` of them, shape (patients,); a patient without finite tiles has none.
    """

    tiles: Float32s
    counts: Ints

    def __post_init__(self) -> None:
        if self.counts.sum() != len(self.tiles) or (self.counts < 0).any():
            raise ValueError(f"{len(self.tiles)} core tiles, and not {self.counts.sum()}")
        if not np.isfinite(self.tiles).all():
            raise ValueError("core tiles that are not finite")

    def nearest_by_patient(self, projected: Float32s) -> Float32s:
        """Return the distance of tiles to the nearest core tile of each patient.

        ``projected`` has shape (tiles, components), the result (tiles, patients), float32: infinite
        for patients without core tiles and for tiles that are not finite.
        """
        nearest = np.full((len(projected), len(self.counts)), np.inf, np.float32)
        present = np.flatnonzero(self.counts)
        if len(present):
            starts = np.cumsum(self.counts[present]) - self.counts[present]
            for rows, relative, own in _relative_squares(projected, self._augmented):
                least = np.minimum.reduceat(relative, starts, axis=1)
                nearest[rows, present] = _roots(least + own[:, None])
        return nearest

    def nearest(self, projected: Float32s, *, without: Bools) -> Float32s:
        """Return the distance of tiles to the nearest core tile of any patient but some.

        ``projected`` has shape (tiles, components) and ``without``, shape (patients,), says who is
        left out; the result has shape (tiles,), float32.
        """
        kept = np.repeat(~without, self.counts)
        result = np.full(len(projected), np.inf, np.float32)
        if kept.any():
            core = self._augmented if kept.all() else self._augmented[:, kept]
            for rows, relative, own in _relative_squares(projected, core):
                result[rows] = _roots(relative.min(axis=1) + own)
        return result

    @cached_property
    def _augmented(self) -> Float32s:
        """Tiles times -2, and below them their squared lengths, shape (components + 1, tiles)."""
        squares = np.square(self.tiles).sum(axis=1, keepdims=True)
        return np.ascontiguousarray(np.concatenate([-2 * self.tiles, squares], axis=1).T)


def _relative_squares(
    projected: Float32s, augmented: Float32s
) -> Iterator[tuple[slice, Float32s, Float32s]]:
    """Yield rows, their squared distances less their own squared length, and that length.

    The distances have shape (rows, core tiles), the lengths (rows,). What is least among them is
    least with the length too, which is added afterwards, to one number in place of thousands.
    """
    n_rows = max(1, _VALUES_PER_BLOCK // augmented.shape[1])
    for at in range(0, len(projected), n_rows):
        tiles = projected[at : at + n_rows]
        ones = np.ones((len(tiles), 1), np.float32)
        relative = np.concatenate([tiles, ones], axis=1) @ augmented
        yield slice(at, at + n_rows), relative, np.square(tiles).sum(axis=1)


def _roots(squares: Float32s) -> Float32s:
    """Return the roots of squared distances; infinite for tiles of NaN."""
    squares[squares < _SMALLEST_SQUARE] = 0
    squares[np.isnan(squares)] = np.inf
    return np.sqrt(squares)
