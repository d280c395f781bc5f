"""Pooled features of a patient's tiles: moments, extremes, and occupancy of tile clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats
from mil.base_learners.joined_bags import TILES_PER_BLOCK, joined_bags, segment_sums

__all__ = ["Codebook", "log_spread", "mean_and_extremes"]

_SPREAD_FLOOR = 0.3  # of whitened components, whose own standard deviation is at most 1


def mean_and_extremes(tiles: Tensor) -> Floats:
    """Return mean, maximum and minimum of embeddings (tiles, dim), shape (3, dim), float32."""
    features = tiles.float()
    return torch.stack([features.mean(0), features.amax(0), features.amin(0)]).cpu().numpy()


def log_spread(covariances: Floats) -> Floats:
    """Return log(SD + 0.3) of components, shape (..., n_components), from their covariances.

    ``covariances`` have shape (..., n_components, n_components).
    """
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    return np.asarray(np.log(np.sqrt(variances) + _SPREAD_FLOOR), np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Codebook:
    """Cluster centres of whitened tiles, of earlier stacks: a tile occupies those it is near to.

    Attributes
    ----------
    centres
        Shape (centres, n_components), float32, at most 150.
    squared_width
        Median squared distance of a training tile to its nearest centre; the occupancy of a centre
        at squared distance d is exp(-d / (2 · width)), a Gaussian kernel.
    """

    centres: Tensor
    squared_width: float

    def occupancy(self, components: Tensor) -> Tensor:
        """Return the occupancy of each centre by each tile, 0 to 1, shape (tiles, centres).

        ``components`` have shape (tiles, n_components).
        """
        distances = _squared_distances(components, self.centres.to(components.device))
        return (distances / (-2 * self.squared_width)).exp_()

    def mean_occupancies(self, bags: Sequence[Tensor]) -> Floats:
        """Return the mean of :meth:`occupancy` over the tiles of each bag, float64.

        ``bags`` have shape (tiles, n_components), at least one tile each; the result has shape
        (bags, centres).
        """
        means = np.empty((len(bags), len(self.centres)))
        for own, tiles, starts in joined_bags(bags):
            blocks = _blocks(tiles)  # several of a large bag, which is by itself
            sums = [segment_sums(self.occupancy(b).double().cpu().numpy(), starts) for b in blocks]
            means[own] = np.sum(sums, axis=0)
        means /= np.array([len(bag) for bag in bags])[:, None]
        return means


def _blocks(components: Tensor) -> Iterator[Tensor]:
    """Yield blocks of tiles, so that a large bag needs little memory."""
    for start in range(0, len(components), TILES_PER_BLOCK):
        yield components[start : start + TILES_PER_BLOCK]


def _squared_distances(components: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances, shape (tiles, centres), at least 0."""
    squares = components.square().sum(dim=1, keepdim=True) + centres.square().sum(dim=1)
    return torch.addmm(squares, components, centres.T, alpha=-2).clamp_(min=0)
