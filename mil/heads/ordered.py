"""Gated attention over an ordered bag: for the slices of a scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mil.heads.attention import GatedAttentionHead
from mil.heads.base import HIDDEN, HeadOutput, register_head

__all__ = ["SequenceAttentionHead"]

_N_FREQUENCIES = 4


@register_head("ordered")
class SequenceAttentionHead(GatedAttentionHead):
    """Gated attention over instances with features of their neighbours and a position encoding.

    Linear maps of the preceding and the following instance, and of the relative position in the
    bag, 0 to 1, as sines and cosines of four frequencies (Vaswani et al., 2017), are added to an
    instance's hidden features. Then gated attention pools as in
    :class:`~mil.heads.attention.GatedAttentionHead`. The order of the bag is meaningful to it: for
    tiles of a slide another head is the better choice.
    """

    depends_on_order = True

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.previous = nn.Linear(HIDDEN, HIDDEN)
        self.next = nn.Linear(HIDDEN, HIDDEN)
        self.position = nn.Linear(2 * _N_FREQUENCIES, HIDDEN)

    def forward_components(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components``, shape (batch, tiles, n_components)."""
        hidden = self.embed(components) * mask[..., None]  # (batch, tiles, hidden)
        zeros = torch.zeros_like(hidden[:, :1])
        previous = self.previous(torch.cat([zeros, hidden[:, :-1]], dim=1))
        following = self.next(torch.cat([hidden[:, 1:], zeros], dim=1))
        position = self.position(_positional_encoding(mask))
        return self.pool(torch.relu(hidden + previous + following + position), mask)


def _positional_encoding(mask: Tensor) -> Tensor:
    """Return sines and cosines of relative positions, shape (batch, tiles, 2 × frequencies)."""
    steps = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32)
    last = (steps * mask).amax(dim=1, keepdim=True).clamp(min=1)  # (batch, 1)
    angles = [math.pi * 2**wave * steps / last for wave in range(_N_FREQUENCIES)]
    return torch.stack([f(angle) for f in (torch.sin, torch.cos) for angle in angles], dim=-1)
