"""First and second moments of tiles, every patient counting alike, that add up over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mil.data.features import Features

__all__ = ["TileMoments"]

_BAGS_PER_BLOCK = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class TileMoments:
    """Sums over patients of the means of their tiles, and of the tiles' squares, about a centre.

    Attributes
    ----------
    n_patients
        Number of patients.
    centre
        Shape (dim,), float64: the mean of one of their bags, near all tiles.
    first
        Shape (dim,), float64: sum over patients of the mean of ``tile - centre``.
    second
        Shape (dim, dim), float64: the same of its outer product with itself.
    """

    n_patients: int
    centre: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def of(
        cls,
        bags: Mapping[str, Features],
        names: Sequence[str],
        n_tiles: int,
        *,
        device: torch.device | None,
    ) -> Self:
        """Return the moments of at most ``n_tiles`` evenly spaced tiles of each patient.

        ``bags`` have shape (tiles, dim), at least one for each of ``names``, and are read once.
        """
        centre = _subsample(bags[names[0]], n_tiles, device).mean(dim=0)
        dim = len(centre)
        second = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        first = torch.zeros(dim, dtype=torch.float64, device=device)
        for start in range(0, len(names), _BAGS_PER_BLOCK):
            # Tiles are centred first, so that float32 suffices for the product. Rows are weighted
            # so that the product is a sum over patients of means over their tiles.
            block = names[start : start + _BAGS_PER_BLOCK]
            samples = [_subsample(bags[name], n_tiles, device) - centre for name in block]
            first += torch.stack([tiles.mean(dim=0) for tiles in samples]).double().sum(dim=0)
            rows = torch.cat([tiles / len(tiles) ** 0.5 for tiles in samples])
            second += rows.T @ rows
        return cls(n_patients=len(names), centre=centre.double(), first=first, second=second)

    @staticmethod
    def mean_and_covariance(parts: Sequence[TileMoments]) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of the patients of all parts, shapes (dim,) and (dim, dim)."""
        n_patients = sum(part.n_patients for part in parts)
        centre = parts[0].centre
        moves = [part.centre - centre for part in parts]
        firsts = [
            part.first + part.n_patients * move for part, move in zip(parts, moves, strict=True)
        ]
        mean = torch.stack(firsts).sum(dim=0) / n_patients
        total = parts[0].second.clone()
        for part in parts[1:]:
            total += part.second
        # Moved to one centre, a part gains move ⊗ first + first ⊗ move - n · move ⊗ move.
        halves = [
            first - part.n_patients / 2 * move
            for part, first, move in zip(parts, firsts, moves, strict=True)
        ]
        left = torch.stack([*moves, *halves, -n_patients * mean], dim=1)
        right = torch.stack([*halves, *moves, mean], dim=1)
        return centre + mean, total.addmm_(left, right.T) / n_patients


def _subsample(bag: Features, n_tiles: int, device: torch.device | None) -> Tensor:
    """Return at most ``n_tiles`` evenly spaced tiles of a bag, shape (tiles, dim), float32."""
    indices = np.linspace(0, len(bag) - 1, min(len(bag), n_tiles)).astype(np.int64)
    return torch.from_numpy(bag[indices]).to(device).float()
