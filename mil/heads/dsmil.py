"""DSMIL: one stream finds the critical tile, the other attends to what resembles it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.base import (
    HIDDEN,
    Head,
    HeadOutput,
    instance_projection,
    masked_max,
    masked_softmax,
    register_head,
)

__all__ = ["DsmilHead"]

_WEIGHT = 0.5


@register_head("dsmil")
class DsmilHead(Head):
    """Dual-stream pooling (Li, Li and Eliceiri, 2021).

    First stream: ``z_t = W h_t + b`` and its max over tiles by class; the tile of that max is the
    critical tile m of the class. Second stream: attention of a class is
    ``softmax_t(q_t · q_m / √d)`` with ``q = tanh(Q h)``, and the attention-weighted means of ``h``
    of all classes together are mapped to logits. The logits are the mean of both streams. While it
    is trained, half the log loss of the first stream alone is added, so that critical tiles are
    found early. Attention is the second stream's, averaged over the classes.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.judge = nn.Linear(HIDDEN, n_classes)
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.classify = nn.Linear(n_classes * HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        hidden = self.embed(components)  # (batch, tiles, hidden)
        tile_logits = self.judge(hidden)  # (batch, tiles, classes)
        queries = torch.tanh(self.query(hidden))  # (batch, tiles, hidden)
        lowest = torch.finfo(tile_logits.dtype).min
        critical = tile_logits.masked_fill(~mask[..., None], lowest).argmax(dim=1)
        places = critical[..., None].expand(-1, -1, HIDDEN)  # (batch, classes, hidden)
        alike = torch.einsum("bch,bth->bct", queries.gather(1, places), queries)
        attention = masked_softmax(alike / HIDDEN**0.5, mask[:, None])  # (batch, classes, tiles)
        pooled = torch.einsum("bct,bth->bch", attention, hidden)  # (batch, classes, hidden)
        logits = (masked_max(tile_logits, mask) + self.classify(pooled.flatten(1))) / 2
        return HeadOutput(logits, attention.mean(dim=1), tile_logits=tile_logits)

    def auxiliary_loss(self, output: HeadOutput, mask: Tensor, truth: Tensor) -> Tensor | None:
        """Log loss of the first stream, shape (batch,)."""
        assert output.tile_logits is not None  # noqa: S101 - see score
        first = masked_max(output.tile_logits, mask)
        return _WEIGHT * functional.cross_entropy(first, truth, reduction="none")
