"""Buffers of pixels on their way to an encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.slides.base import RgbArray

__all__ = ["PinnedBufferPool"]


class PinnedBufferPool:
    """Reusable buffers of batches, shape (n, height, width, 3) in px, uint8.

    The kernel would clear new pages for each new allocation. Pinned buffers are page-locked, so
    that a GPU copies them while it computes.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._spare: list[RgbArray] = []

    def stack(self, tiles: Sequence[RgbArray]) -> RgbArray:
        """Stack tiles, each uint8 of shape (height, width, 3) in px, along a new first axis."""
        shape = (len(tiles), *tiles[0].shape)
        for index, batch in enumerate(self._spare):
            if batch.shape == shape:
                return np.stack(tiles, out=self._spare.pop(index))
        return np.stack(tiles, out=self._allocate(shape))

    def release(self, batch: RgbArray) -> None:
        """Return a batch to the pool once it is not read any more."""
        self._spare.append(batch)

    def _allocate(self, shape: tuple[int, ...]) -> RgbArray:
        if not self._pinned:
            return np.empty(shape, np.uint8)
        import torch  # noqa: PLC0415 - heavy, and loaded already where there is a GPU

        return np.asarray(torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy())
