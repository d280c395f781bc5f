"""Attention pooling, plain and gated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mil.heads.base import (
    HIDDEN,
    Head,
    HeadOutput,
    fast_tanh,
    instance_projection,
    masked_softmax,
    register_head,
)

__all__ = ["AttentionHead", "GatedAttentionHead"]


@register_head("attention")
class AttentionHead(Head):
    """Attention pooling (Ilse et al., 2018, equation 8).

    ``attention = softmax(w · tanh(V h))`` over a patient's tiles; the logits are a linear map of
    the attention-weighted mean of ``h``. In our form ``h`` is a linear embedding of the whitened
    components followed by ReLU and dropout, much smaller than in the paper, for cohorts of tens to
    hundreds of patients.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.look = nn.Linear(HIDDEN, HIDDEN)
        self.weigh = nn.Linear(HIDDEN, 1)
        self.classify: nn.Module = nn.Linear(HIDDEN, n_classes)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        return self.pool(self.embed(components), mask)

    def pool(self, hidden: Tensor, mask: Tensor) -> HeadOutput:
        """Attend to ``hidden`` (batch, tiles, hidden) under ``mask`` (batch, tiles)."""
        scores = self.weigh(self.gaze(hidden)).squeeze(-1)  # (batch, tiles)
        attention = masked_softmax(scores, mask)  # (batch, tiles)
        return self.conclude(hidden, attention)

    def gaze(self, hidden: Tensor) -> Tensor:
        """What the attention looks at, shape (batch, tiles, hidden)."""
        return fast_tanh(self.look(hidden))

    def conclude(self, hidden: Tensor, attention: Tensor) -> HeadOutput:
        """Logits from ``hidden`` (batch, tiles, hidden) and ``attention`` (batch, tiles)."""
        pooled = torch.einsum("bt,bth->bh", attention, hidden)  # (batch, hidden)
        return HeadOutput(self.classify(pooled), attention)


@register_head("gated")
class GatedAttentionHead(AttentionHead):
    """Gated attention pooling (Ilse et al., 2018, equation 9): the default.

    As :class:`AttentionHead`, with ``tanh(V h)`` multiplied by the gate ``sigmoid(U h)``.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.gate = nn.Linear(HIDDEN, HIDDEN)

    def gaze(self, hidden: Tensor) -> Tensor:
        """What the attention looks at, shape (batch, tiles, hidden)."""
        looked: Tensor = _Gated.apply(self.look(hidden), self.gate(hidden))
        return looked


class _Gated(torch.autograd.Function):
    """``tanh(x) · sigmoid(y)``, whose gradient by hand takes half the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        bent, gate = fast_tanh(x), torch.sigmoid(y)
        ctx.save_for_backward(bent, gate)
        return bent * gate

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        bent, gate = ctx.saved_tensors
        let_through = slopes[0] * gate
        both = let_through * bent
        return (
            torch.addcmul(let_through, both, bent, value=-1),
            torch.addcmul(both, both, gate, value=-1),
        )
