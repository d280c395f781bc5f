"""Bags changed at random while heads learn, so that they do not learn them by heart.

All numbers are drawn from torch's global stream; nothing is drawn for what is switched off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mixture", "add_noise", "drop_tiles", "mix_bags"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Bags of two patients each."""

    bags: Sequence[Tensor]
    """Each of shape (tiles, dim), the patient's own tiles first."""
    partners: Tensor
    """Shape (batch,), int64: from which patient of the batch the other tiles are."""
    shares: Tensor
    """Shape (batch,), float32, 0.5 to 1: of the patient's own label; the rest is the partner's."""


def drop_tiles(bag: Tensor, share: float) -> Tensor:
    """The bag without each tile with probability ``share``; at least one tile stays.

    Parameters
    ----------
    bag
        Shape (tiles, dim), at least one tile.
    share
        0 keeps everything and draws nothing.
    """
    if not share:
        return bag
    luck = torch.rand(len(bag))
    kept = luck >= share
    kept[luck.argmax()] = True
    return bag[kept.to(bag.device)]


def add_noise(bag: Tensor, deviation: float) -> Tensor:
    """The bag with normal noise of that standard deviation; 0 adds and draws nothing.

    Parameters
    ----------
    bag
        Shape (tiles, dim).
    deviation
        In units of the bag's numbers.
    """
    if not deviation:
        return bag
    return bag + deviation * torch.randn(bag.shape).to(bag.device)


def mix_bags(bags: Sequence[Tensor], alpha: float) -> Mixture:
    """Mixup (Zhang et al., 2018) for bags: tiles of two patients together, labels shared alike.

    A share drawn from Beta(``alpha``, ``alpha``), or its rest if that is larger, of a patient's
    tiles stays; the partner, drawn from the same batch, fills up with the complementary share of
    its tiles. Whole tiles are mixed and not their numbers, so every tile stays a real one and any
    head can learn from it.

    Parameters
    ----------
    bags
        Each of shape (tiles, dim), at least one tile.
    alpha
        Positive; the larger, the more even the mixtures.
    """
    drawn = torch.distributions.Beta(alpha, alpha).sample((len(bags),))
    shares = torch.maximum(drawn, 1 - drawn)
    partners = torch.randperm(len(bags))
    mixed = []
    for bag, partner, share in zip(bags, partners.tolist(), shares.tolist(), strict=True):
        own = _some(bag, max(1, round(share * len(bag))))
        other = _some(bags[partner], round((1 - share) * len(bags[partner])))
        mixed.append(torch.cat([own, other]))
    device = bags[0].device
    return Mixture(bags=mixed, partners=partners.to(device), shares=shares.to(device))


def _some(bag: Tensor, n_tiles: int) -> Tensor:
    return bag[torch.randperm(len(bag))[:n_tiles].to(bag.device)]
