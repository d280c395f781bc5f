"""Buffers of pixels on their way to an encoder."""

from __future__ import annotations

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

    def take(self, shape: tuple[int, ...]) -> RgbArray:
        """Return a buffer of shape (n, height, width, 3) in px, with any pixels in it."""
        for index, buffer in enumerate(self._spare):
            if buffer.shape == shape:
                return self._spare.pop(index)
        return self._allocate(shape)

    def release(self, buffer: RgbArray) -> None:
        """Return a buffer to the pool once it is not read any more."""
        self._spare.append(buffer)

    def _allocate(self, shape: tuple[int, ...]) -> RgbArray:
        if not self._pinned:
            return np.empty(shape, np.uint8)
        import torch  # noqa: PLC0415 - heavy, and loaded already where there is a GPU

        return np.asarray(torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy())
