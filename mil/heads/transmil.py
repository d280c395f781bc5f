"""TransMIL: tiles attend to each other before a class token attends to them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.base import (
    HIDDEN,
    Head,
    HeadOutput,
    instance_projection,
    masked_softmax,
    register_head,
)

__all__ = ["MOST_TILES", "TransMilHead"]

MOST_TILES = 2048
"""Tiles of a patient that attend to each other at most."""
_N_PARTS = 4


@register_head("transmil")
class TransMilHead(Head):
    """A transformer over tiles with a class token (TransMIL; Shao et al., 2021).

    Two layers ``x + attention(norm(x))``, four attention parts each: in the first, the class token
    and all tiles attend to each other, in the second only the class token's answer is needed; the
    classifier reads it. Attention is the class token's in the second layer, averaged over the
    parts, its share on itself left out.

    Two things differ from the paper. Its positional encoding (PPEG) is left out: it needs tiles on
    a grid, and a bag is a set. Its Nyström approximation is left out too: attention is exact, on at
    most 2,048 tiles of a patient. Where there are more, they are sorted along the first whitened
    component and evenly spaced ones are taken, whatever order they came in; the others have no
    attention.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.token = nn.Parameter(0.02 * torch.randn(HIDDEN))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(3))
        self.mixes = nn.ModuleList(nn.Linear(HIDDEN, 3 * HIDDEN, bias=False) for _ in range(2))
        self.joins = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.classify = nn.Linear(HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        if mask.shape[1] <= MOST_TILES:
            return self._transform(components, mask)
        places, kept = _subsample(components[..., 0], mask)
        picked = components.gather(1, places[..., None].expand(-1, -1, components.shape[2]))
        output = self._transform(picked, kept)
        attention = torch.zeros_like(mask, dtype=output.attention.dtype)
        return output._replace(attention=attention.scatter_add(1, places, output.attention))

    def _transform(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """As :meth:`score`, with every tile."""
        hidden = self.embed(components)  # (batch, tiles, hidden)
        tokens = torch.cat([self.token.expand(len(hidden), 1, -1), hidden], dim=1)
        real = functional.pad(mask, (1, 0), value=True)  # (batch, 1 + tiles)
        query, key, value = self._qkv(0, tokens)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=real[:, None, None]
        )
        tokens = tokens + self.joins[0](mixed.transpose(1, 2).flatten(2))
        query, key, value = self._qkv(1, tokens)
        scores = torch.einsum("bph,bpth->bpt", query[:, :, 0], key) / query.shape[-1] ** 0.5
        looks = masked_softmax(scores, real[:, None])  # (batch, parts, 1 + tiles)
        mixed = torch.einsum("bpt,bpth->bph", looks, value).flatten(1)  # (batch, hidden)
        answer = self.norms[2](tokens[:, 0] + self.joins[1](mixed))
        # Normalised in each part, so that one that looks at itself only gives no 0 / 0.
        attention = masked_softmax(scores[..., 1:], mask[:, None]).mean(dim=1)
        return HeadOutput(self.classify(answer), attention)

    def _qkv(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each of shape (batch, parts, tokens, hidden / parts)."""
        mixed = self.mixes[layer](self.norms[layer](tokens)).unflatten(2, (3, _N_PARTS, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        return query, key, value


def _subsample(line: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """At most ``MOST_TILES`` tiles of each patient, evenly spaced along ``line``.

    Parameters
    ----------
    line
        Shape (batch, tiles): what tiles are sorted by.
    mask
        Shape (batch, tiles), bool.

    Returns
    -------
    tuple
        Places of the tiles and which places count, each of shape (batch, MOST_TILES).
    """
    order = line.masked_fill(~mask, float("inf")).argsort(dim=1, stable=True)
    counts = mask.sum(dim=1, keepdim=True)
    steps = torch.arange(MOST_TILES, device=mask.device)[None]
    kept = steps < counts
    ranks = torch.where(counts > MOST_TILES, steps * counts // MOST_TILES, steps)
    return order.gather(1, ranks), kept
