"""Log-sum-exp pooling: between mean and max."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.heads.base import (
    HIDDEN,
    Head,
    HeadOutput,
    embed_tiles,
    masked_softmax,
    register_head,
)

__all__ = ["LogSumExpHead"]

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
        self.embed = embed_tiles(n_components)
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
