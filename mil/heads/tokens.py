"""A compact transformer: a few learned questions are put to all tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mil.heads.base import (
    HIDDEN,
    Head,
    HeadOutput,
    instance_projection,
    masked_softmax,
    register_head,
)

__all__ = ["QueryTransformerHead"]

_N_TOKENS = 4


@register_head("tokens")
class QueryTransformerHead(Head):
    """A compact transformer over tiles, in the spirit of CCT (Hassani et al., 2021).

    Four learned tokens q attend to the tiles, ``softmax_t(q · K h_t / √d)``, as in the attention
    pooling of Lee et al. (2019), so the cost grows with the number of tiles and not with its
    square. Each token adds the attention-weighted mean of ``V h`` and a perceptron's answer to it,
    both after layer normalisation. CCT's sequence pooling, a softmax over tokens, weighs them into
    one vector for the classifier. Attention is that of the tokens under those weights.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.tokens = nn.Parameter(torch.randn(_N_TOKENS, HIDDEN))
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.think = nn.Sequential(
            nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)
        )
        self.settle = nn.LayerNorm(HIDDEN)
        self.weigh = nn.Linear(HIDDEN, 1)
        self.classify = nn.Linear(HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        hidden = self.embed(components)  # (batch, tiles, hidden)
        scores = torch.einsum("kh,bth->bkt", self.tokens, self.key(hidden)) / HIDDEN**0.5
        looks = masked_softmax(scores, mask[:, None])  # (batch, tokens, tiles)
        answers = self.tokens + torch.einsum("bkt,bth->bkh", looks, self.value(hidden))
        answers = self.settle(answers + self.think(answers))  # (batch, tokens, hidden)
        shares = torch.softmax(self.weigh(answers).squeeze(-1), dim=-1)  # (batch, tokens)
        pooled = torch.einsum("bk,bkh->bh", shares, answers)  # (batch, hidden)
        attention = torch.einsum("bk,bkt->bt", shares, looks)  # (batch, tiles)
        return HeadOutput(self.classify(pooled), attention)
