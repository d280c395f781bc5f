"""Fixed projection of embeddings to directions in few dimensions, fitted on nothing."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch

from mil.arrays import Float32s, Ints
from mil.data.features import Features

__all__ = ["N_COMPONENTS", "project_tiles", "spread_indices"]

N_COMPONENTS = 64
"""Components of a projected tile; fewer where an embedding has fewer numbers."""

_LEAST_SQUARE = 1e-20  # of a length; beyond it and its inverse float32 loses digits of products


def project_tiles(tiles: Features) -> Float32s:
    """Return the directions of embeddings, shape (tiles, dim), in few dimensions.

    Each embedding is scaled to length 1, so that distances depend on angles alone, and multiplied
    by a fixed matrix of random signs, which nearly keeps distances (Johnson and Lindenstrauss,
    1984; Achlioptas, 2003). Nothing is learned from any patient. The result has shape (tiles,
    components), float32; rows of embeddings with a NaN or an infinity are NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        # NumPy takes longer to convert float16 than all the rest takes; torch does not.
        values = torch.from_numpy(np.asarray(tiles)).float().numpy()
        squares = np.einsum("td,td->t", values, values)
        is_extreme = ~((squares > _LEAST_SQUARE) & (squares < 1 / _LEAST_SQUARE))
        if is_extreme.any():
            # Dividing by the largest number first keeps squares within float32.
            values = values.copy()
            largest = np.abs(values[is_extreme]).max(axis=1, keepdims=True, initial=0.0)
            values[is_extreme] /= np.where(largest > 0, largest, 1)
            squares = np.einsum("td,td->t", values, values)
        dim = values.shape[1]
        projected = values.copy() if dim <= N_COMPONENTS else values @ _signs(dim)
        projected /= np.sqrt(np.where(squares > 0, squares, 1))[:, None]
    projected[~np.isfinite(projected).all(axis=1)] = np.nan
    return np.asarray(projected, np.float32)


def spread_indices(n_tiles: int, n_kept: int) -> Ints:
    """Return the indices of at most ``n_kept`` evenly spaced tiles, shape (kept,)."""
    spread = np.linspace(0, max(n_tiles - 1, 0), min(n_tiles, n_kept))
    return np.asarray(spread.astype(np.int64))


@lru_cache(maxsize=4)
def _signs(dim: int) -> Float32s:
    """Return random signs over the root of the number of components, (dim, components).

    They are the bits of a hash, which no version of a library changes, so they need not be stored.
    """
    digest = hashlib.shake_256(b"mil typicality").digest(dim * N_COMPONENTS // 8)
    bits = np.unpackbits(np.frombuffer(digest, np.uint8)).reshape(dim, N_COMPONENTS)
    return (bits.astype(np.float32) * 2 - 1) / np.float32(np.sqrt(N_COMPONENTS))
