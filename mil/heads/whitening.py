"""Embeddings to a few uncorrelated components, learned without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from features.errors import BagError
from mil.data.bags import Features
from mil.heads import Whitening

__all__ = ["fit_pca_whitening"]

_TILES_LOOKED_AT = 4096
_TILES_OF_A_PATIENT = (16, 256)  # of those, at least and at most
_BAGS_AT_ONCE = 64


def fit_pca_whitening(
    bags: Mapping[str, Features],
    names: Sequence[str],
    n_components: int,
    *,
    device: torch.device | None = None,
) -> Whitening:
    """Principal components of the tiles, every patient with the same weight.

    Components are scaled by their standard deviation with a floor (the mean variance of the kept
    ones is added), so that the smallest, mostly noise, are not blown up to the size of the first.
    Some 4,096 tiles are looked at, evenly spaced, 16 to 256 of a patient. Each bag is read once.

    Parameters
    ----------
    bags
        By patient id, shape (tiles, dim).
    names
        Patients to learn from, each with a tile.
    n_components
        Components to keep; ``dim`` at most.
    device
        Where it is computed, and where the whitening is left; the CPU by default.

    Raises
    ------
    BagError
        If embeddings are too large for their squares to be float32 numbers.
    """
    few, many = _TILES_OF_A_PATIENT
    n_tiles = min(max(_TILES_LOOKED_AT // len(names), few), many)
    centre = _subsample(bags[names[0]], n_tiles, device).mean(dim=0)
    dim = len(centre)
    moments = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    means = torch.zeros(dim, dtype=torch.float64, device=device)
    for start in range(0, len(names), _BAGS_AT_ONCE):
        # Moved near 0 first, so that float32 suffices for the product. Rows are weighed so that
        # the product of all with themselves is a sum over patients of means over their tiles.
        block = names[start : start + _BAGS_AT_ONCE]
        drawn = [_subsample(bags[name], n_tiles, device) - centre for name in block]
        means += torch.stack([tiles.mean(dim=0) for tiles in drawn]).double().sum(dim=0)
        rows = torch.cat([tiles / len(tiles) ** 0.5 for tiles in drawn])
        moments += rows.T @ rows
    means /= len(names)
    moments = moments / len(names) - torch.outer(means, means)
    if not torch.isfinite(moments).all():
        raise BagError(
            "embeddings", actual="numbers whose squares are beyond float32",
            expected="numbers up to about 1e18", hint="Scale them down before training.",
        )  # fmt: skip
    values, vectors = _top_eigenvectors(moments, min(n_components, dim))
    scale = (values + values.mean() + 1e-12).rsqrt()
    whitening = Whitening(dim, len(values)).to(device)
    whitening.mean = (centre + means).float()
    whitening.matrix = (vectors * scale).float().to(device)
    return whitening


def _top_eigenvectors(moments: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues, falling, shape (n_kept,), and their vectors, shape (dim, n_kept).

    In single precision: an error is far below the floor under the scale.
    """
    dim = len(moments)
    values, vectors = scipy.linalg.eigh(
        moments.float().cpu().numpy(), subset_by_index=(dim - n_kept, dim - 1)
    )
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # The sign of an eigenvector is arbitrary; fixing it makes runs comparable.
    largest = vectors[np.abs(vectors).argmax(axis=0), range(n_kept)]
    vectors = vectors * np.where(largest < 0, -1, 1)
    return torch.from_numpy(values.astype(np.float64)), torch.from_numpy(vectors)


def _subsample(bag: Features, n_tiles: int, device: torch.device | None) -> Tensor:
    """At most so many tiles of a bag, shape (tiles, dim), float32."""
    places = np.linspace(0, len(bag) - 1, min(len(bag), n_tiles)).astype(np.int64)
    return torch.from_numpy(bag[places]).to(device).float()
