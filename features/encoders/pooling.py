"""Pooling of the tokens of a vision transformer into one vector per tile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TokenPooling"]


class TokenPooling(nn.Module):
    """Vision transformer of timm with its class token, mean of patch tokens, or both as output.

    Class and register tokens, ``num_prefix_tokens`` of them, are left out of the mean. Takes images
    of shape (batch, 3, side, side) in px, returns shape (batch, dim) or (batch, 2 * dim).
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled tokens of images, shape (batch, 3, side, side) in px."""
        model: Any = self.model
        tokens = model.forward_features(images)  # (batch, tokens, dim), normalised
        if self.pooling == "token":
            pooled: Tensor = tokens[:, 0]
            return pooled
        mean = tokens[:, model.num_prefix_tokens :].mean(dim=1)
        return mean if self.pooling == "mean" else torch.cat([tokens[:, 0], mean], dim=1)
