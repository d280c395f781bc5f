"""PCA whitening of embeddings: the module, and its fit without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from features.errors import BagError
from mil.data.features import Features

__all__ = ["Whitening", "fit_pca_whitening"]

_TOTAL_TILES = 4096
_TILES_PER_PATIENT = (16, 256)
_BAGS_PER_BLOCK = 64
_TILES_PER_BLOCK = 65_536


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
    least, most = _TILES_PER_PATIENT
    n_tiles = min(max(_TOTAL_TILES // len(names), least), most)
    centre = _subsample(bags[names[0]], n_tiles, device).mean(dim=0)
    dim = len(centre)
    moments = torch.zeros(dim, dim, dtype=torch.float64, device=device)
    means = torch.zeros(dim, dtype=torch.float64, device=device)
    for start in range(0, len(names), _BAGS_PER_BLOCK):
        # Tiles are centred first, so that float32 suffices for the product. Rows are weighted so
        # that the product is a sum over patients of means over their tiles.
        block = names[start : start + _BAGS_PER_BLOCK]
        samples = [_subsample(bags[name], n_tiles, device) - centre for name in block]
        means += torch.stack([tiles.mean(dim=0) for tiles in samples]).double().sum(dim=0)
        rows = torch.cat([tiles / len(tiles) ** 0.5 for tiles in samples])
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
    """Return eigenvalues, descending, shape (n_kept,), and eigenvectors, shape (dim, n_kept).

    Single precision suffices: its error is far below the floor of the scale.
    """
    dim = len(moments)
    values, vectors = scipy.linalg.eigh(
        moments.float().cpu().numpy(), subset_by_index=(dim - n_kept, dim - 1)
    )
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # The sign of an eigenvector is arbitrary; a fixed one makes runs comparable.
    largest = vectors[np.abs(vectors).argmax(axis=0), range(n_kept)]
    vectors = vectors * np.where(largest < 0, -1, 1)
    return torch.from_numpy(values.astype(np.float64)), torch.from_numpy(vectors)


def _subsample(bag: Features, n_tiles: int, device: torch.device | None) -> Tensor:
    """Return at most ``n_tiles`` evenly spaced tiles of a bag, shape (tiles, dim), float32."""
    indices = np.linspace(0, len(bag) - 1, min(len(bag), n_tiles)).astype(np.int64)
    return torch.from_numpy(bag[indices]).to(device).float()
