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
    """Reusable batch buffers; the kernel would clear new pages for each new allocation.

    Parameters
    ----------
    pinned
        Page-lock the buffers, so that a GPU copies them while it computes.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._spare: list[RgbArray] = []

    def stack(self, tiles: Sequence[RgbArray]) -> RgbArray:
        """Stack tiles, each uint8 of shape (height_px, width_px, 3), along a new first axis."""
        shape = (len(tiles), *tiles[0].shape)
        fits = next((batch for batch in self._spare if batch.shape == shape), None)
        if fits is None:
            fits = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        else:
            self._spare = [batch for batch in self._spare if batch is not fits]
        return np.stack(tiles, out=fits)

    def release(self, batch: RgbArray) -> None:
        """Return a batch to the pool once no one reads it."""
        self._spare.append(batch)


@dataclass(frozen=True, eq=False)
class AsyncResult:
    """Embeddings that the device may still be computing."""

    values: Tensor
    """Shape (n, dim), float32, on the CPU; valid only after ``wait``."""
    event: torch.cuda.Event | None
    """CUDA event recorded behind the copy; None on the CPU."""

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
    """Concatenation of several asynchronous results."""

    parts: Sequence[AsyncResult | ConcatResult]
    """At least one result, in order."""
    axis: int
    """0 if the parts hold different tiles, 1 if they hold different encoders' embeddings."""

    @property
    def is_ready(self) -> bool:
        """True if ``wait`` returns at once."""
        return all(part.is_ready for part in self.parts)

    def wait(self) -> npt.NDArray[np.float32]:
        """Wait for all embeddings, float32 of shape (n, dim)."""
        return np.concatenate([part.wait() for part in self.parts], axis=self.axis)


class DeviceTransfer:
    """Copies of pixels to a device and of embeddings back, overlapped with computation on a GPU.

    On CUDA, pixels are copied in a stream of their own while the previous batch is computed, and
    embeddings are fetched without blocking, so that the next batch can be sent at once.

    Parameters
    ----------
    device
        Device of the encoder.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tiles: RgbArray) -> Tensor:
        """Copy uint8 pixels to the device; pinned ones must not change before the result."""
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
