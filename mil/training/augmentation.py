"""Augmentation of bags against overfitting: instance dropout, feature noise, mixup.

An augmentation that is switched off uses no random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from mil.data.features import Batch
from mil.heads.random_streams import RandomStreams

__all__ = ["MixedBatch", "add_noise", "apply_instance_dropout", "mix_bags"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedBatch:
    """Bags of shape (batch, 2 × tiles, dim) that mix two patients each, the own tiles first.

    ``partners`` are indices of the patients in the second half, shape (batch,), int64; ``shares``
    are weights of the own labels, shape (batch,), float32, 0.5 to 1.
    """

    batch: Batch
    partners: Tensor
    shares: Tensor


def apply_instance_dropout(batch: Batch, p: float, rng: RandomStreams) -> Batch:
    """Drop each tile of bags of shape (batch, tiles, dim) with probability ``p``.

    At least one tile of each bag stays; 0 uses no random numbers.
    """
    if not p:
        return batch
    drawn = rng.uniform(*batch.mask.shape, device=batch.mask.device).masked_fill(~batch.mask, -1)
    kept = drawn >= p
    kept.scatter_(1, drawn.argmax(dim=1, keepdim=True), value=True)
    return Batch(batch.features * kept[..., None], kept)


def add_noise(batch: Batch, std: float, rng: RandomStreams) -> Batch:
    """Add normal noise to the features of real tiles, shape (batch, tiles, dim).

    ``std`` is the standard deviation in units of the features; 0 uses no random numbers.
    """
    if not std:
        return batch
    noise = std * rng.normal(batch.features)
    return batch._replace(features=batch.features + noise * batch.mask[..., None])


def mix_bags(batch: Batch, alpha: float, rng: RandomStreams, *, n_heads: int = 1) -> MixedBatch:
    """Mix pairs of bags and their labels: mixup (Zhang et al., 2018) on whole tiles.

    A share λ drawn from Beta(``alpha``, ``alpha``), or 1 - λ if that is larger, of a patient's
    tiles stays; a random partner among the patients of the same head adds the complementary share
    of its tiles. Features are not interpolated, so every tile is a real one, and any head can be
    trained on it. The larger ``alpha``, the closer the shares are to one half. ``batch`` has shape
    (batch, tiles, dim): equally many patients per head, consecutive, each with at least one tile.
    """
    features, mask = _shuffled(batch, rng)  # (batch, tiles, dim), (batch, tiles)
    n_patients, device = len(mask) // n_heads, mask.device
    quantiles, positions = rng.uniform(len(mask), 2, device=device).T  # (batch,) each
    drawn = torch.from_numpy(betaincinv(alpha, alpha, quantiles.double().cpu().numpy()))
    shares = torch.maximum(drawn, 1 - drawn).float().to(device)  # (batch,)
    order = positions.reshape(n_heads, -1).argsort(dim=1)  # (heads, patients)
    firsts = n_patients * torch.arange(n_heads, device=device)[:, None]  # (heads, 1)
    partners = (order + firsts).flatten()  # (batch,)
    counts = mask.sum(dim=1).double()  # (batch,)
    n_own = (shares * counts).round().clamp(min=1)
    n_other = ((1 - shares) * counts[partners]).round()
    steps = torch.arange(mask.shape[1], device=device)
    kept = torch.cat([steps < n_own[:, None], steps < n_other[:, None]], dim=1)  # (batch, 2 tiles)
    mixed = torch.cat([features, features[partners]], dim=1) * kept[..., None]
    return MixedBatch(batch=Batch(mixed, kept), partners=partners, shares=shares)


def _shuffled(batch: Batch, rng: RandomStreams) -> Batch:
    """Return the bags with their tiles in random order, real ones first."""
    drawn = rng.uniform(*batch.mask.shape, device=batch.mask.device).masked_fill(~batch.mask, 2)
    order = drawn.argsort(dim=1)
    indices = order[..., None].expand(-1, -1, batch.features.shape[2])
    return Batch(batch.features.gather(1, indices), batch.mask.gather(1, order))
