"""Max pooling: a patient is as its most telling tile."""

from __future__ import annotations

from torch import Tensor, nn

from mil.heads.base import HIDDEN, Head, HeadOutput, embed_tiles, masked_max, register_head

__all__ = ["MaxHead"]


@register_head("max")
class MaxHead(Head):
    """Max pooling of tile logits (the max operator of Ilse et al., 2018, section 2.3).

    ``logit_c = max_t z_tc`` with ``z_t = W h_t + b``: each class is judged by the one tile that
    speaks most for it. Attention is one-hot on that tile (shared equally between equal tiles),
    averaged over the classes.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = embed_tiles(n_components)
        self.classify = nn.Linear(HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        tile_logits = self.classify(self.embed(components))  # (batch, tiles, classes)
        logits = masked_max(tile_logits, mask)  # (batch, classes)
        largest = (tile_logits == logits[:, None]) & mask[..., None]
        shares = largest / largest.sum(dim=1, keepdim=True).clamp(min=1)
        return HeadOutput(logits, shares.mean(dim=-1), tile_logits=tile_logits)
