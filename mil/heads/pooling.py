"""Pooling without learned attention: mean, max, log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.heads.base import (
    HIDDEN,
    Head,
    HeadOutput,
    instance_projection,
    masked_max,
    masked_softmax,
    register_head,
)

__all__ = ["LogSumExpHead", "MaxHead", "MeanHead"]

_SHARPNESS = 4.0


@register_head("mean")
class MeanHead(Head):
    """A linear map of the mean of a patient's whitened tiles: the baseline for attention.

    Every tile has the same attention.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.classify = nn.Linear(n_components, n_classes)
        # A random start would outlast the few steps of a training.
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        attention = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)  # (batch, tiles)
        pooled = torch.einsum("bt,btc->bc", attention, components)  # (batch, n_components)
        parts = None if self.training else attention[..., None] * self.classify(components)
        return HeadOutput(self.classify(pooled), attention, contributions=parts)


class _TileLogitHead(Head):
    """Base of heads that pool the logits of single tiles, ``z_t = W h_t + b``."""

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.classify = nn.Linear(HIDDEN, n_classes)


@register_head("max")
class MaxHead(_TileLogitHead):
    """Max pooling of tile logits (the max operator of Ilse et al., 2018, section 2.3).

    ``logit_c = max_t z_tc`` with ``z_t = W h_t + b``. Attention is one-hot on the tile of the
    maximum (shared equally between equal tiles), averaged over the classes.
    """

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        tile_logits = self.classify(self.embed(components))  # (batch, tiles, classes)
        logits = masked_max(tile_logits, mask)  # (batch, classes)
        largest = (tile_logits == logits[:, None]) & mask[..., None]
        shares = largest / largest.sum(dim=1, keepdim=True).clamp(min=1)
        return HeadOutput(logits, shares.mean(dim=-1), tile_logits=tile_logits)


@register_head("lse")
class LogSumExpHead(_TileLogitHead):
    """Log-sum-exp pooling of tile logits (Ramon and De Raedt, 2000).

    ``logit_c = log(mean_t exp(r z_tc)) / r`` with ``z_t = W h_t + b``: the mean of the tile logits
    for small ``r``, their maximum for large ``r``; here ``r`` is 4. Attention is the softmax
    ``softmax_t(r z_tc)``, which is the gradient of the logit with respect to the tile's, averaged
    over the classes.
    """

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        tile_logits = self.classify(self.embed(components))  # (batch, tiles, classes)
        scaled = (_SHARPNESS * tile_logits).transpose(1, 2)  # (batch, classes, tiles)
        real = mask[:, None]  # (batch, 1, tiles)
        lowest = torch.finfo(scaled.dtype).min
        total = torch.logsumexp(scaled.masked_fill(~real, lowest), dim=-1)  # (batch, classes)
        logits = (total - mask.sum(dim=1, keepdim=True).clamp(min=1).log()) / _SHARPNESS
        logits = logits.masked_fill(~mask.any(dim=1, keepdim=True), 0)
        attention = masked_softmax(scaled, real).mean(dim=1)  # (batch, tiles)
        return HeadOutput(logits, attention, tile_logits=tile_logits)
