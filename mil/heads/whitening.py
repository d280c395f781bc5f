"""PCA whitening of embeddings: the module, and its fit without labels."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from features.errors import BagError
from mil.data.features import Features
from mil.heads.tile_moments import TileMoments
from mil.threads import map_single_threaded

__all__ = ["MomentsKey", "Whitening", "fit_pca_whitening", "fit_pca_whitenings"]

_TOTAL_TILES = 4096
_TILES_PER_PATIENT = (16, 256)
_MOST_MOMENT_BYTES = 2**28  # of all parts of training sets together
_TILES_PER_BLOCK = 65_536
_LEAST_VARIANCE = 1e-12  # of the mean square
_SMALLEST = 1e-36  # whose root a float32 number can be divided by

MomentsKey = tuple[int, tuple[str, ...]]
"""Tiles per patient at most, and patients."""


class Whitening(nn.Module):
    """Affine map of embeddings to a few uncorrelated components.

    ``mean``, shape (dim,), is subtracted; then ``matrix``, shape (dim, n_components), multiplies.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int, n_components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim, n_components))

    def forward(self, features: Tensor) -> Tensor:
        """Map embeddings, shape (..., dim), to components, shape (..., n_components)."""
        # Centred tiles are a copy of all of them, 5 GB of a million.
        blocks = torch.split(features, _TILES_PER_BLOCK, dim=-2)
        parts = [torch.matmul(block - self.mean, self.matrix) for block in blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def fit_pca_whitening(
    bags: Mapping[str, Features],
    names: Sequence[str],
    n_components: int,
    *,
    device: torch.device | None = None,
) -> Whitening:
    """Fit principal components of tiles, shape (tiles, dim) per patient of equal weight.

    Components are divided by their standard deviation with a floor (the mean variance of the kept
    ones is added), so that the smallest, mostly noise, are not scaled to the size of the first.
    About 4,096 evenly spaced tiles are used, 16 to 256 per patient. Each bag is read once.

    Each of the patients ``names`` has at least one tile. At most dim components are kept. The
    result is on the device of the computation, the CPU by default.

    Raises
    ------
    BagError
        If embeddings are too large for their squares to be float32 numbers.
    """
    return fit_pca_whitenings(bags, [names], n_components, device=device)[0][0]


def fit_pca_whitenings(
    bags: Mapping[str, Features],
    training_sets: Sequence[Sequence[str]],
    *n_components: int,
    device: torch.device | None = None,
    known: MutableMapping[MomentsKey, TileMoments] | None = None,
) -> list[tuple[Whitening, ...]]:
    """Fit the whitenings of each training set of patients, one for each number of components.

    Each is that of :func:`fit_pca_whitening`. The moments of patients who are in the same sets are
    computed once and added up for each set, so that nothing of a patient reaches a set that it is
    not in. ``known`` are moments of the same bags to read and to add to, 268 MB at most.
    """
    known = {} if known is None else known
    n_tiles = [_tiles_per_patient(len(names)) for names in training_sets]
    parts = _parts(training_sets, n_tiles)
    if len(training_sets) > 1:
        dim = bags[training_sets[0][0]].shape[1]
        if 8 * dim**2 * len(parts) > _MOST_MOMENT_BYTES:
            return [
                fit_pca_whitenings(bags, [own], *n_components, device=device, known=known)[0]
                for own in training_sets
            ]
    moments_of: list[list[TileMoments]] = [[] for _ in training_sets]
    for (number, sets), names in parts.items():
        key = number, tuple(names)
        moments = known.get(key) or TileMoments.of(bags, names, number, device=device)
        if 8 * len(moments.first) ** 2 * (1 + len(known)) <= _MOST_MOMENT_BYTES:
            known[key] = moments
        for index in sets:
            moments_of[index].append(moments)
    return map_single_threaded(lambda own: _from_moments(own, n_components), moments_of)


def _tiles_per_patient(n_patients: int) -> int:
    least, most = _TILES_PER_PATIENT
    return min(max(_TOTAL_TILES // n_patients, least), most)


def _parts(
    training_sets: Sequence[Sequence[str]], n_tiles: Sequence[int]
) -> dict[tuple[int, tuple[int, ...]], list[str]]:
    """Return patients by their number of tiles and the sets in which they have that many."""
    sets_of: dict[tuple[str, int], list[int]] = {}
    for index, names in enumerate(training_sets):
        for name in names:
            sets_of.setdefault((name, n_tiles[index]), []).append(index)
    parts: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for (name, number), sets in sets_of.items():
        parts.setdefault((number, tuple(sets)), []).append(name)
    return parts


def _from_moments(
    parts: Sequence[TileMoments], n_components: Sequence[int]
) -> tuple[Whitening, ...]:
    mean, covariance = TileMoments.mean_and_covariance(parts)
    if not torch.isfinite(covariance).all():
        raise BagError(
            "embeddings", actual="numbers whose squares are beyond float32",
            expected="numbers up to about 1e18", hint="Scale them down before training.",
        )  # fmt: skip
    dim = len(mean)
    kept = [min(n, dim) for n in n_components]
    values, vectors = _top_eigenvectors(covariance, max(kept))
    return tuple(_scaled(mean, values[:n], vectors[:, :n]) for n in kept)


def _scaled(mean: Tensor, values: Tensor, vectors: Tensor) -> Whitening:
    rounding = _LEAST_VARIANCE * (float(mean.square().mean()) + float(values.mean()))
    scale = (values + values.mean() + rounding).clamp(min=_SMALLEST).rsqrt()
    whitening = Whitening(len(mean), len(values)).to(mean.device)
    whitening.mean = mean.float()
    whitening.matrix = (vectors * scale).float().to(mean.device)
    return whitening


def _top_eigenvectors(moments: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, descending, shape (n_kept,), and eigenvectors, shape (dim, n_kept).

    Single precision suffices: its error is far below the floor of the scale.
    """
    dim = len(moments)
    values, vectors = scipy.linalg.eigh(
        moments.float().cpu().numpy(), lower=False, subset_by_index=(dim - n_kept, dim - 1)
    )
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # The sign of an eigenvector is arbitrary; a fixed one makes runs comparable.
    largest = vectors[np.abs(vectors).argmax(axis=0), range(n_kept)]
    vectors = vectors * np.where(largest < 0, -1, 1)
    return torch.from_numpy(values.astype(np.float64)), torch.from_numpy(vectors)
