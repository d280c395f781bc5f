"""Mean pooling: the baseline that any attention must beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.heads.base import Head, HeadOutput, register_head

__all__ = ["MeanHead"]


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
