"""CLAM: gated attention with an instance loss on the most and least attended tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.attention import GatedAttentionHead
from mil.heads.base import HIDDEN, HeadOutput, register_head

__all__ = ["ClamHead"]

_MAX_INSTANCES = 8
_INSTANCE_WEIGHT = 0.3 / 0.7  # relative to the bag loss, as in the paper


@register_head("clam")
class ClamHead(GatedAttentionHead):
    """CLAM with a single attention branch (Lu et al., 2021).

    Gated attention pooling, as :class:`~mil.heads.attention.GatedAttentionHead`. In training, one
    linear tile classifier per class learns from pseudo-labels of the attention: the k most attended
    tiles are positive for the patient's class and negative for the others, the k least attended
    ones are negative for the patient's class. k is 8, less where a patient has fewer than 16 tiles.
    The instance loss has 3/7 of the weight of the bag loss. The paper's smooth hinge loss is a log
    loss here.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.classify_tiles = nn.Linear(HIDDEN, n_classes)

    def pooled_output(self, hidden: Tensor, attention: Tensor) -> HeadOutput:
        """Add tile logits to the output of gated attention, shape (batch, tiles, classes)."""
        output = super().pooled_output(hidden, attention)
        return output._replace(tile_logits=self.classify_tiles(hidden))

    def auxiliary_loss(self, output: HeadOutput, mask: Tensor, target: Tensor) -> Tensor | None:
        """Return the instance loss on the most and least attended tiles, shape (batch,)."""
        assert output.tile_logits is not None  # noqa: S101 - pooled_output sets them
        n_classes = output.logits.shape[1]
        top, bottom = _top_and_bottom(output.attention.detach(), mask)  # (batch, tiles)
        one_hot = functional.one_hot(target, n_classes)[:, None].to(output.logits.dtype)
        tile_targets = top[..., None] * one_hot  # (batch, tiles, classes)
        # The top tiles are examples for every class, the bottom tiles only for the patient's own,
        # which therefore has twice as many examples and half the weight on each.
        weights = torch.where(one_hot > 0, (top | bottom)[..., None] / 2, top[..., None])
        losses = functional.binary_cross_entropy_with_logits(
            output.tile_logits, tile_targets, reduction="none"
        )
        total: Tensor = (losses * weights).sum(dim=(1, 2))
        counts = top.sum(dim=1).clamp(min=1) * n_classes
        return _INSTANCE_WEIGHT * total / counts


def _top_and_bottom(attention: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks of the k most and the k least attended real tiles, shape (batch, tiles)."""
    counts = mask.sum(dim=1, keepdim=True)
    k = (counts // 2).clamp(max=_MAX_INSTANCES)
    order = attention.masked_fill(~mask, -1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)
    return ranks < k, (ranks >= counts - k) & (ranks < counts)
