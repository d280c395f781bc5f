"""Additive attention pooling: the logits are the sum of the tiles' contributions."""

from __future__ import annotations

from torch import Tensor, nn

from mil.heads.attention import GatedAttentionHead
from mil.heads.base import HIDDEN, HeadOutput, register_head

__all__ = ["AdditiveHead"]


@register_head("additive")
class AdditiveHead(GatedAttentionHead):
    """Additive attention pooling (Javed et al., 2022).

    Gated attention ``a_t`` as in :class:`~mil.heads.attention.GatedAttentionHead`, but tiles are
    classified before they are summed: ``contribution_t = a_t ψ(h_t)`` with a small perceptron ψ,
    and the logits are the sum of the contributions. The paper has ``ψ(a_t h_t)``, which is the same
    for a ψ without biases; with biases, this form keeps the logits independent of the number of
    tiles.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.classify = nn.Sequential(
            nn.Linear(HIDDEN, HIDDEN // 2), nn.ReLU(), nn.Linear(HIDDEN // 2, n_classes)
        )

    def pooled_output(self, hidden: Tensor, attention: Tensor) -> HeadOutput:
        """Sum the contributions of tiles, ``attention`` of shape (batch, tiles)."""
        contributions = attention[..., None] * self.classify(hidden)  # (batch, tiles, classes)
        return HeadOutput(contributions.sum(dim=1), attention, contributions=contributions)
