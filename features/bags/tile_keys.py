"""Keys of tiles, by which copies of a slide are recognised whatever the order of its tiles."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.embeddings import fits_float16

__all__ = ["N_SKETCHED", "TileKeys", "hash_tiles", "make_tile_keys", "no_sketch", "sketch_tiles"]

TileKeys = npt.NDArray[np.uint64]

N_SKETCHED = 1024
"""Most keys of a slide that are kept: 8 kB, against 38 MB of embeddings of a large slide."""

_CHUNK_VALUES = 1 << 18
"""Values that are looked at together: they stay in the processor's cache."""


def make_tile_keys(features: npt.NDArray[np.floating[Any]]) -> TileKeys:
    """Return two keys per tile, shape (n_tiles, 2), for embeddings of shape (n_tiles, dim).

    Equal tiles have equal keys, in float32 as in the float16 they are stored as. What float16
    cannot hold is stored as float32, and told apart by all its digits.
    """
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(features, dtype="<f2")
    odd = half.shape[1] % 2
    keys = _hash_words((np.pad(half, ((0, 0), (0, 1))) if odd else half).view("<u4"))
    if features.dtype != np.float16:
        beyond = np.flatnonzero(~fits_float16(features))
        keys[beyond] = _hash_words(np.ascontiguousarray(features[beyond], dtype="<f4").view("<u4"))
    return keys


def _hash_words(words: npt.NDArray[np.uint32]) -> TileKeys:
    """Return two sums of products with random factors per row of words, shape (n, 2)."""
    keys = np.zeros((len(words), 2), np.uint64)
    factors = _random_words(2 * words.shape[1]).reshape(-1, 2)
    rows = max(1, _CHUNK_VALUES // max(1, words.shape[1]))
    for first in range(0, len(words), rows):
        part = words[first : first + rows].astype(np.uint64)
        keys[first : first + rows] = part @ factors
    return keys


def hash_tiles(keys: TileKeys, *, dim: int) -> str:
    """Return a hash of embeddings that does not depend on their order.

    ``keys`` have shape (n_tiles, 2), see :func:`make_tile_keys`. Copies of a slide have the hash in
    common whatever the order in which their tiles were written: reading order, the order of a
    mirrored or turned copy, or any other.
    """
    ordered = keys[np.lexsort(keys.T)]
    content = f"{(len(keys), dim)}".encode() + ordered.astype("<u8").tobytes()
    return hashlib.sha256(content).hexdigest()


def sketch_tiles(keys: TileKeys) -> TileKeys:
    """Return the smallest keys of a slide's tiles, distinct and sorted, shape (n_keys,).

    ``keys`` have shape (n_tiles, 2), and at most :data:`N_SKETCHED` are returned. As keys look
    random, slides that share tiles have a like share of their sketches in common (the bottom-k
    sketch of Broder, 1997), also where one has lost tiles of the other or gained some.
    """
    return np.unique(keys[:, 0])[:N_SKETCHED]


def no_sketch() -> TileKeys:
    """Return the sketch, shape (0,), of a slide whose tiles are not known."""
    return np.empty(0, np.uint64)


def _random_words(n: int) -> TileKeys:
    """Return numbers, shape (n,), that look random and are the same for ever (SplitMix64)."""
    words = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    return words ^ (words >> np.uint64(31))
