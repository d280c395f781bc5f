"""Attention pooling, plain and gated (Ilse et al., 2018)."""

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

    ``attention = softmax(wᵀ tanh(V h))`` over a patient's tiles; the logits are a linear map of
    the attention-weighted mean of ``h``. Here ``h`` is a linear embedding of the whitened
    components followed by ReLU and dropout, much smaller than in the paper, for cohorts of tens to
    hundreds of patients. ``V`` and ``w`` have biases.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components)
        self.embed = instance_projection(n_components)
        self.fc_v = nn.Linear(HIDDEN, HIDDEN)
        self.fc_w = nn.Linear(HIDDEN, 1)
        self.classify: nn.Module = nn.Linear(HIDDEN, n_classes)

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        return self.pool(self.embed(components), mask)

    def pool(self, hidden: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``hidden``, shape (batch, tiles, hidden), under ``mask``, shape (batch, tiles)."""
        scores = self.fc_w(self.attention_features(hidden)).squeeze(-1)  # (batch, tiles)
        return self.pooled_output(hidden, masked_softmax(scores, mask))

    def attention_features(self, hidden: Tensor) -> Tensor:
        """Return the features that ``w`` scores, shape (batch, tiles, hidden)."""
        return fast_tanh(self.fc_v(hidden))

    def pooled_output(self, hidden: Tensor, attention: Tensor) -> HeadOutput:
        """Classify the mean of ``hidden`` weighted by ``attention``, shape (batch, tiles).

        The classifier is linear and attention sums to 1, so a tile's contribution is its attention
        times its own logits; training does not need them.
        """
        pooled = torch.einsum("bt,bth->bh", attention, hidden)  # (batch, hidden)
        parts = None if self.training else attention[..., None] * self.classify(hidden)
        return HeadOutput(self.classify(pooled), attention, contributions=parts)


@register_head("gated")
class GatedAttentionHead(AttentionHead):
    """Gated attention pooling (Ilse et al., 2018, equation 9): the default.

    As :class:`AttentionHead`, with ``tanh(V h)`` multiplied by the gate ``sigmoid(U h)``.
    """

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.fc_u = nn.Linear(HIDDEN, HIDDEN)

    def attention_features(self, hidden: Tensor) -> Tensor:
        """Return the gated features that ``w`` scores, shape (batch, tiles, hidden)."""
        gated: Tensor = _GatedTanh.apply(self.fc_v(hidden), self.fc_u(hidden))
        return gated


class _GatedTanh(torch.autograd.Function):
    """``tanh(x) · sigmoid(y)``; the explicit gradient takes half the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        tanh, gate = fast_tanh(x), torch.sigmoid(y)
        ctx.save_for_backward(tanh, gate)
        return tanh * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        tanh, gate = ctx.saved_tensors
        grad_tanh = grad_outputs[0] * gate
        product = grad_tanh * tanh
        return (
            torch.addcmul(grad_tanh, product, tanh, value=-1),
            torch.addcmul(product, product, gate, value=-1),
        )
