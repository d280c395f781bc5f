"""Gated attention that knows where an instance lies: for slices of a scan."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mil.heads.attention import GatedAttentionHead
from mil.heads.base import HIDDEN, HeadOutput, register_head

__all__ = ["SequenceAttentionHead"]

_N_WAVES = 4


@register_head("ordered")
class SequenceAttentionHead(GatedAttentionHead):
    """Gated attention over instances that see their neighbours and know their place.

    To what a head keeps of an instance, linear maps add what it keeps of the one before and of the
    one after, and the relative place in the bag, 0 to 1, as sines and cosines of four wavelengths
    (Vaswani et al., 2017). Then gated attention pools as in
    :class:`~mil.heads.attention.GatedAttentionHead`. It takes the order of the bag for meaningful:
    for tiles of a slide another head is the better choice.
    """

    depends_on_order = True

    def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
        super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
        self.before = nn.Linear(HIDDEN, HIDDEN)
        self.after = nn.Linear(HIDDEN, HIDDEN)
        self.locate = nn.Linear(2 * _N_WAVES, HIDDEN)

    def score(self, components: Tensor, mask: Tensor) -> HeadOutput:
        """Pool ``components`` (batch, tiles, n_components) under ``mask`` (batch, tiles)."""
        hidden = self.embed(components) * mask[..., None]  # (batch, tiles, hidden)
        nothing = torch.zeros_like(hidden[:, :1])
        earlier = torch.cat([nothing, hidden[:, :-1]], dim=1)
        later = torch.cat([hidden[:, 1:], nothing], dim=1)
        seen = (
            hidden
            + self.before(earlier)
            + self.after(later)
            + self.locate(_positional_encoding(mask))
        )
        return self.pool(torch.relu(seen), mask)


def _positional_encoding(mask: Tensor) -> Tensor:
    """Relative places as sines and cosines, shape (batch, tiles, 2 x waves)."""
    steps = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32)
    last = (steps * mask).amax(dim=1, keepdim=True).clamp(min=1)  # (batch, 1)
    angles = [math.pi * 2**wave * steps / last for wave in range(_N_WAVES)]
    return torch.stack([f(angle) for f in (torch.sin, torch.cos) for angle in angles], dim=-1)
