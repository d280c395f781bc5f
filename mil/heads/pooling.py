"""Mean pooling: the baseline that any attention must beat."""

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


@register_head("mean")
class MeanHead(Head):
    """A linear map of the mean of a patient's whitened tiles; every tile has the same attention."""

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.classify = nn.Linear(n_components, n_classes)
        # From zero every weight is learned; a random start would outlast the few steps taken.
        nn.init.zeros_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        attention = mask / mask.sum(dim=1, keepdim=True).clamp(min=1)  # (batch, tiles)
        pooled = torch.einsum("bt,btc->bc", attention, components)  # (batch, n_components)
        return HeadOutput(self.classify(pooled), attention)


@register_head("max")
class MaxHead(Head):
    """Max pooling of tile logits (the max operator of Ilse et al., 2018, section 2.3).

    ``logit_c = max_t z_tc`` with ``z_t = W h_t + b``: each class is judged by the one tile that
    speaks most for it. Attention is one-hot on that tile (shared equally between equal tiles),
    averaged over the classes.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.classify = nn.Linear(HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        tile_logits = self.classify(self.embed(components))  # (batch, tiles, classes)
        logits = masked_max(tile_logits, mask)  # (batch, classes)
        largest = (tile_logits == logits[:, None]) & mask[..., None]
        shares = largest / largest.sum(dim=1, keepdim=True).clamp(min=1)
        return HeadOutput(logits, shares.mean(dim=-1), tile_logits=tile_logits)


_SHARPNESS = 4.0


@register_head("lse")
class LogSumExpHead(Head):
    """Log-sum-exp pooling of tile logits (Ramon and De Raedt, 2000).

    ``logit_c = log(mean_t exp(r z_tc)) / r`` with ``z_t = W h_t + b``: the mean of the tile logits
    for small ``r``, their max for large ``r``; here ``r`` is 4. Attention is each tile's share in
    that sum, ``softmax_t(r z_tc)``, which is also the slope of the logit by the tile's, averaged
    over the classes.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.classify = nn.Linear(HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        tile_logits = self.classify(self.embed(components))  # (batch, tiles, classes)
        scaled = (_SHARPNESS * tile_logits).transpose(1, 2)  # (batch, classes, tiles)
        real = mask[:, None]  # (batch, 1, tiles)
        total = torch.logsumexp(
            scaled.masked_fill(~real, torch.finfo(scaled.dtype).min), dim=-1
        )  # (batch, classes)
        logits = (total - mask.sum(dim=1, keepdim=True).clamp(min=1).log()) / _SHARPNESS
        logits = logits.masked_fill(~mask.any(dim=1, keepdim=True), 0)
        attention = masked_softmax(scaled, real).mean(dim=1)  # (batch, tiles)
        return HeadOutput(logits, attention, tile_logits=tile_logits)
