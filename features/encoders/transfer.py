"""Asynchronous copies of pixels to a device and of embeddings back to the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from features.slides.base import RgbArray

__all__ = ["AsyncResult", "ConcatResult", "DeviceTransfer", "PinnedBufferPool"]


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
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        return np.stack(tiles, out=batch)

    def release(self, batch: RgbArray) -> None:
        """Return a batch to the pool once it is not read any more."""
        self._spare.append(batch)


@dataclass(frozen=True, eq=False)
class AsyncResult:
    """Embeddings, shape (n, dim), float32, that the device may still be computing.

    ``values`` are on the CPU and valid only after ``wait``; the CUDA event, None on the CPU, is
    recorded behind their copy.
    """

    values: Tensor
    event: torch.cuda.Event | None

    @property
    def is_ready(self) -> bool:
        """True if ``wait`` returns at once."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> npt.NDArray[np.float32]:
        """Wait for the embeddings, float32 of shape (n, dim)."""
        if self.event is not None:
            self.event.synchronize()
        return np.asarray(self.values.numpy(), np.float32)


@dataclass(frozen=True, eq=False)
class ConcatResult:
    """Concatenation of one or more asynchronous results, shape (n, dim), float32.

    The axis is 0 if the parts hold different tiles, 1 if they hold different encoders' embeddings.
    """

    parts: Sequence[AsyncResult | ConcatResult]
    axis: int

    @property
    def is_ready(self) -> bool:
        """True if ``wait`` returns at once."""
        return all(part.is_ready for part in self.parts)

    def wait(self) -> npt.NDArray[np.float32]:
        """Wait for all embeddings, float32 of shape (n, dim)."""
        return np.concatenate([part.wait() for part in self.parts], axis=self.axis)


class DeviceTransfer:
    """Copies of pixels to a device and of embeddings back.

    On CUDA, pixels are copied in a stream of their own while the previous batch is computed, and
    embeddings are fetched without blocking, so that the next batch can be sent at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tiles: RgbArray) -> Tensor:
        """Copy pixels, uint8 of any shape, to the device; pinned ones must not change meanwhile."""
        if min(tiles.strides, default=0) < 0:  # torch has none; a single reversed tile keeps it.
            tiles = tiles.copy()
        pixels = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
        if self._copies is None:
            return pixels.to(self._device)
        with torch.cuda.stream(self._copies):
            sent = pixels.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        sent.record_stream(computing)  # keeps its memory until the network has read it
        return sent

    def fetch(self, embeddings: Tensor) -> AsyncResult:
        """Start to copy embeddings, shape (n, dim), to the CPU as float32."""
        if self._copies is None:
            return AsyncResult(embeddings.float().cpu(), None)
        values = embeddings.float().to("cpu", non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return AsyncResult(values, event)
