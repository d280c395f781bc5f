"""A compact transformer: a few learned queries attend to all tiles."""

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

_N_QUERIES = 4


@register_head("tokens")
class QueryTransformerHead(Head):
    """A compact transformer over tiles, in the spirit of CCT (Hassani et al., 2021).

    Four learned tokens q attend to the tiles, ``softmax_t(q · K h_t / √d)``, as in the attention
    pooling of Lee et al. (2019), so the cost grows with the number of tiles and not with its
    square. Each token adds the attention-weighted mean of ``V h`` and then the output of a
    perceptron, both after layer normalisation. CCT's sequence pooling, a softmax over tokens,
    averages them into one vector for the classifier. The reported attention is that of the tokens
    under those weights.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.tokens = nn.Parameter(torch.randn(_N_QUERIES, HIDDEN))
        self.key = nn.Linear(HIDDEN, HIDDEN)
        self.value = nn.Linear(HIDDEN, HIDDEN)
        self.mlp = nn.Sequential(
            nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)
        )
        self.norm = nn.LayerNorm(HIDDEN)
        self.fc_w = nn.Linear(HIDDEN, 1)
        self.classify = nn.Linear(HIDDEN, n_classes)

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        hidden = self.embed(components)  # (batch, tiles, hidden)
        scores = torch.einsum("kh,bth->bkt", self.tokens, self.key(hidden)) / HIDDEN**0.5
        token_attention = masked_softmax(scores, mask[:, None])  # (batch, tokens, tiles)
        pooled = torch.einsum("bkt,bth->bkh", token_attention, self.value(hidden))
        tokens = self.tokens + pooled  # (batch, tokens, hidden)
        tokens = self.norm(tokens + self.mlp(tokens))
        weights = torch.softmax(self.fc_w(tokens).squeeze(-1), dim=-1)  # (batch, tokens)
        sequence = torch.einsum("bk,bkh->bh", weights, tokens)  # (batch, hidden)
        attention = torch.einsum("bk,bkt->bt", weights, token_attention)  # (batch, tiles)
        return HeadOutput(self.classify(sequence), attention)
