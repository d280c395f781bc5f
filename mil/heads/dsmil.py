"""DSMIL: attention to the tiles that resemble the critical tile of each class."""

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

_FIRST_STREAM_WEIGHT = 0.5


@register_head("dsmil")
class DsmilHead(Head):
    """Dual-stream pooling (Li, Li and Eliceiri, 2021).

    First stream: ``z_t = W h_t + b`` and its maximum over tiles per class; the tile of that maximum
    is the critical tile m of the class. Second stream: attention of a class is
    ``softmax_t(q_t · q_m / √d)`` with ``q = tanh(Q h)``, and the attention-weighted means of ``h``
    of all classes together are mapped to logits. The logits are the mean of both streams. In
    training, half the log loss of the first stream alone is added, so that it finds critical tiles
    early. The reported attention is the second stream's, averaged over the classes.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.classify_tiles = nn.Linear(HIDDEN, n_classes)
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.classify = nn.Linear(n_classes * HIDDEN, n_classes)

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        hidden = self.embed(components)  # (batch, tiles, hidden)
        tile_logits = self.classify_tiles(hidden)  # (batch, tiles, classes)
        queries = torch.tanh(self.query(hidden))  # (batch, tiles, hidden)
        lowest = torch.finfo(tile_logits.dtype).min
        critical = tile_logits.masked_fill(~mask[..., None], lowest).argmax(dim=1)
        indices = critical[..., None].expand(-1, -1, HIDDEN)  # (batch, classes, hidden)
        similarity = torch.einsum("bch,bth->bct", queries.gather(1, indices), queries)
        # (batch, classes, tiles)
        attention = masked_softmax(similarity / HIDDEN**0.5, mask[:, None])
        pooled = torch.einsum("bct,bth->bch", attention, hidden)  # (batch, classes, hidden)
        logits = (masked_max(tile_logits, mask) + self.classify(pooled.flatten(1))) / 2
        return HeadOutput(logits, attention.mean(dim=1), tile_logits=tile_logits)

    def auxiliary_loss(self, output: HeadOutput, mask: Tensor, target: Tensor) -> Tensor | None:
        """Return the weighted log loss of the first stream, shape (batch,)."""
        assert output.tile_logits is not None  # noqa: S101 - forward_components sets them
        first = masked_max(output.tile_logits, mask)
        return _FIRST_STREAM_WEIGHT * functional.cross_entropy(first, target, reduction="none")
