"""TransMIL: self-attention between tiles, then attention of a class token to the tiles."""

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

__all__ = ["MAX_TILES", "TransMilHead"]

MAX_TILES = 2048
"""Maximum number of tiles per patient in self-attention."""
_N_ATTENTION_HEADS = 4


@register_head("transmil")
class TransMilHead(Head):
    """A transformer over tiles with a class token (TransMIL; Shao et al., 2021).

    Two layers ``x + attention(norm(x))`` with four attention heads each: in the first, the class
    token and all tiles attend to each other; in the second only the class token is updated, and the
    classifier reads it. The reported attention is the class token's in the second layer, averaged
    over the attention heads, without its attention to itself.

    Two things differ from the paper. Its positional encoding (PPEG) is left out: it needs tiles on
    a grid, and a bag is a set. Its Nyström approximation is left out too: attention is exact, on at
    most 2,048 tiles per patient. Where there are more, they are sorted along the first whitened
    component and evenly spaced ones are used, independent of their order in the bag; the others
    have an attention of 0.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.token = nn.Parameter(0.02 * torch.randn(HIDDEN))
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(HIDDEN, 3 * HIDDEN, bias=False) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(2))
        self.classify = nn.Linear(HIDDEN, n_classes)

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        if mask.shape[1] <= MAX_TILES:
            return self._transform(components, mask)
        indices, kept = _subsample(components[..., 0], mask)
        selected = components.gather(1, indices[..., None].expand(-1, -1, components.shape[2]))
        output = self._transform(selected, kept)
        attention = torch.zeros_like(mask, dtype=output.attention.dtype)
        return output._replace(attention=attention.scatter_add(1, indices, output.attention))

    def _transform(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool every tile of ``components``, shape (batch, tiles, n_components)."""
        hidden = self.embed(components)  # (batch, tiles, hidden)
        tokens = torch.cat([self.token.expand(len(hidden), 1, -1), hidden], dim=1)
        real = functional.pad(mask, (1, 0), value=True)  # (batch, 1 + tiles)
        query, key, value = self._qkv(0, tokens)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=real[:, None, None]
        )
        tokens = tokens + self.proj[0](mixed.transpose(1, 2).flatten(2))
        query, key, value = self._qkv(1, tokens)
        scores = torch.einsum("bph,bpth->bpt", query[:, :, 0], key) / query.shape[-1] ** 0.5
        weights = masked_softmax(scores, real[:, None])  # (batch, attention heads, 1 + tiles)
        mixed = torch.einsum("bpt,bpth->bph", weights, value).flatten(1)  # (batch, hidden)
        token = self.norms[2](tokens[:, 0] + self.proj[1](mixed))
        # Another softmax over tiles: dividing by their share of the attention would give 0 / 0
        # where all of it is on the class token.
        attention = masked_softmax(scores[..., 1:], mask[:, None]).mean(dim=1)
        return HeadOutput(self.classify(token), attention)

    def _qkv(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, shape (batch, attention heads, tokens, width)."""
        projected = self.qkv[layer](self.norms[layer](tokens))
        split = projected.unflatten(2, (3, _N_ATTENTION_HEADS, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return query, key, value


def _subsample(line: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Select at most ``MAX_TILES`` tiles of each patient, evenly spaced along ``line``.

    Parameters
    ----------
    line
        Shape (batch, tiles): values that tiles are sorted by.
    mask
        Shape (batch, tiles), bool.

    Returns
    -------
    tuple
        Indices of tiles, int64, and their mask, bool, each of shape (batch, MAX_TILES).
    """
    order = line.masked_fill(~mask, float("inf")).argsort(dim=1, stable=True)
    counts = mask.sum(dim=1, keepdim=True)
    steps = torch.arange(MAX_TILES, device=mask.device)[None]
    kept = steps < counts
    ranks = torch.where(counts > MAX_TILES, steps * counts // MAX_TILES, steps)
    return order.gather(1, ranks), kept
