"""CLAM: gated attention that also learns what the most and least attended tiles are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.heads.attention import GatedAttentionHead
from mil.heads.base import HIDDEN, HeadOutput, register_head

__all__ = ["ClamHead"]

_MOST_TILES = 8
_WEIGHT = 0.3 / 0.7  # of the instance loss beside the bag's, as in the paper


@register_head("clam")
class ClamHead(GatedAttentionHead):
    """CLAM with a single attention branch (Lu et al., 2021).

    Gated attention pooling, as :class:`~mil.heads.attention.GatedAttentionHead`. While it is
    trained, a linear tile classifier a class learns from the attention itself: the k most attended
    tiles are taken for tiles of the patient's class and of no other, the k least attended ones for
    tiles that are not of it. k is 8, less where a patient has fewer than 16 tiles. The instance
    loss has 3/7 of the weight of the bag's. The paper's smooth hinge loss is here a log loss.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.judge = nn.Linear(HIDDEN, n_classes)

    def conclude(self, hidden: Tensor, attention: Tensor) -> HeadOutput:
        """Logits from ``hidden`` (batch, tiles, hidden) and ``attention`` (batch, tiles)."""
        return super().conclude(hidden, attention)._replace(tile_logits=self.judge(hidden))

    def auxiliary_loss(self, output: HeadOutput, mask: Tensor, truth: Tensor) -> Tensor | None:
        """Instance loss on the most and least attended tiles, shape (batch,)."""
        assert output.tile_logits is not None  # noqa: S101 - see conclude
        n_classes = output.logits.shape[1]
        most, least = _extremes(output.attention.detach(), mask)  # (batch, tiles)
        own = functional.one_hot(truth, n_classes)[:, None].to(output.logits.dtype)
        targets = most[..., None] * own  # (batch, tiles, classes)
        # The most attended tiles teach every class, the least attended ones only the patient's
        # own, which is taught by twice as many tiles and so counts half.
        weights = torch.where(own > 0, (most | least)[..., None] / 2, most[..., None])
        losses = functional.binary_cross_entropy_with_logits(
            output.tile_logits, targets, reduction="none"
        )
        total: Tensor = (losses * weights).sum(dim=(1, 2))
        counts = most.sum(dim=1).clamp(min=1) * n_classes
        return _WEIGHT * total / counts


def _extremes(attention: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The k most and the k least attended of the real tiles, shape (batch, tiles), bool."""
    counts = mask.sum(dim=1, keepdim=True)
    k = (counts // 2).clamp(max=_MOST_TILES)
    order = attention.masked_fill(~mask, -1).argsort(dim=1, descending=True, stable=True)
    ranks = order.argsort(dim=1)
    return ranks < k, (ranks >= counts - k) & (ranks < counts)
