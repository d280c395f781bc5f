"""Padded batches of patients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mil.data.features import Batch

__all__ = ["pad"]


def pad(bags: Sequence[Tensor]) -> Batch:
    """Pad bags to one length.

    Parameters
    ----------
    bags
        Each of shape (tiles, dim), float32, with the same dim.
    """
    features = torch.nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    lengths = torch.tensor([len(bag) for bag in bags], device=features.device)
    indices = torch.arange(features.shape[1], device=features.device)
    return Batch(features, indices[None] < lengths[:, None])
