"""Bags changed at random while heads learn, so that they do not learn them by heart.

Nothing is drawn for what is switched off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from mil.data.bags import Batch
from mil.heads.random_streams import RandomStreams

__all__ = ["MixedBatch", "add_noise", "apply_instance_dropout", "mix_bags"]


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedBatch:
    """Bags of two patients each."""

    batch: Batch
    """Twice as wide as before: the patient's own tiles in the first half."""
    partners: Tensor
    """Shape (batch,), int64: from which patient of the batch the other tiles are."""
    shares: Tensor
    """Shape (batch,), float32, 0.5 to 1: of the patient's own label; the rest is the partner's."""


def apply_instance_dropout(batch: Batch, share: float, luck: RandomStreams) -> Batch:
    """The bags without each tile with probability ``share``; at least one tile of each stays.

    Parameters
    ----------
    batch
        Patients with at least one tile.
    share
        0 keeps everything and draws nothing.
    luck
        With a row for each patient.
    """
    if not share:
        return batch
    drawn = luck.uniform(*batch.mask.shape, device=batch.mask.device).masked_fill(~batch.mask, -1)
    kept = drawn >= share
    kept.scatter_(1, drawn.argmax(dim=1, keepdim=True), value=True)
    return Batch(batch.features * kept[..., None], kept)


def add_noise(batch: Batch, deviation: float, luck: RandomStreams) -> Batch:
    """The bags with normal noise of that standard deviation; 0 adds and draws nothing.

    Parameters
    ----------
    batch
        Patients.
    deviation
        In units of the bags' numbers.
    luck
        With a row for each patient.
    """
    if not deviation:
        return batch
    noise = deviation * luck.normal(batch.features)
    return batch._replace(features=batch.features + noise * batch.mask[..., None])


def mix_bags(batch: Batch, alpha: float, luck: RandomStreams, *, n_heads: int = 1) -> MixedBatch:
    """Mixup (Zhang et al., 2018) for bags: tiles of two patients together, labels shared alike.

    A share drawn from Beta(``alpha``, ``alpha``), or its rest if that is larger, of a patient's
    tiles stays; the partner, drawn from the patients of the same head, fills up with the
    complementary share of its tiles. Whole tiles are mixed and not their numbers, so every tile
    stays a real one and any head can learn from it.

    Parameters
    ----------
    batch
        As many patients for each head, one head after another; each with at least one tile.
    alpha
        Positive; the larger, the more even the mixtures.
    luck
        With a row for each patient.
    n_heads
        Heads that the patients are for.
    """
    features, mask = _shuffled(batch, luck)  # (batch, tiles, dim), (batch, tiles)
    n_patients, device = len(mask) // n_heads, mask.device
    ranks, places = luck.uniform(len(mask), 2, device=device).T  # (batch,) each
    drawn = torch.from_numpy(betaincinv(alpha, alpha, ranks.double().cpu().numpy()))
    shares = torch.maximum(drawn, 1 - drawn).float().to(device)  # (batch,)
    order = places.reshape(n_heads, -1).argsort(dim=1)  # (heads, patients)
    firsts = n_patients * torch.arange(n_heads, device=device)[:, None]  # (heads, 1)
    partners = (order + firsts).flatten()  # (batch,)
    counts = mask.sum(dim=1).double()  # (batch,)
    n_own = (shares * counts).round().clamp(min=1)
    n_other = ((1 - shares) * counts[partners]).round()
    steps = torch.arange(mask.shape[1], device=device)
    kept = torch.cat([steps < n_own[:, None], steps < n_other[:, None]], dim=1)  # (batch, 2 tiles)
    mixed = torch.cat([features, features[partners]], dim=1) * kept[..., None]
    return MixedBatch(batch=Batch(mixed, kept), partners=partners, shares=shares)


def _shuffled(batch: Batch, luck: RandomStreams) -> Batch:
    """The same bags in random order, real tiles first."""
    drawn = luck.uniform(*batch.mask.shape, device=batch.mask.device).masked_fill(~batch.mask, 2)
    order = drawn.argsort(dim=1)
    places = order[..., None].expand(-1, -1, batch.features.shape[2])
    return Batch(batch.features.gather(1, places), batch.mask.gather(1, order))
