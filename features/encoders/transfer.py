"""Pixels on their way to a device, and embeddings on their way back."""

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
    """Memory of batches, used again and again: the kernel would clear new pages for each.

    Parameters
    ----------
    pinned
        Whether a GPU shall copy from it: memory that stays in place is copied while the GPU
        computes, other memory is not.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._spare: list[RgbArray] = []

    def stack(self, tiles: Sequence[RgbArray]) -> RgbArray:
        """Tiles of one shape, (height_px, width_px, 3), as a batch, shape (n, height, width, 3)."""
        shape = (len(tiles), *tiles[0].shape)
        fits = next((batch for batch in self._spare if batch.shape == shape), None)
        if fits is None:
            fits = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned).numpy()
        else:
            self._spare = [batch for batch in self._spare if batch is not fits]
        return np.stack(tiles, out=fits)

    def give_back(self, batch: RgbArray) -> None:
        """Take a batch back that nobody reads any more."""
        self._spare.append(batch)


@dataclass(frozen=True, eq=False)
class AsyncResult:
    """Embeddings that a device may still be at work on."""

    values: Tensor
    """Shape (n, dim), float32, on the CPU; not to be read before ``wait``."""
    event: torch.cuda.Event | None
    """What the GPU reports when they are there; None if they are."""

    @property
    def is_here(self) -> bool:
        """Whether they can be had without waiting."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> npt.NDArray[np.float32]:
        """The embeddings, shape (n, dim), once they are there."""
        if self.event is not None:
            self.event.synchronize()
        return np.asarray(self.values.numpy(), np.float32)


@dataclass(frozen=True, eq=False)
class ConcatResult:
    """Embeddings that arrive in parts."""

    parts: Sequence[AsyncResult | ConcatResult]
    """In their order, at least one."""
    axis: int
    """0 for parts that are of other tiles, 1 for such as are of other backbones."""

    @property
    def is_here(self) -> bool:
        """Whether all can be had without waiting."""
        return all(part.is_here for part in self.parts)

    def wait(self) -> npt.NDArray[np.float32]:
        """All embeddings, shape (n, dim), once they are there."""
        return np.concatenate([part.wait() for part in self.parts], axis=self.axis)


class DeviceTransfer:
    """Brings pixels to a device and embeddings back.

    A GPU copies in a stream of its own while it computes on what came before, and nobody waits for
    embeddings that are on their way: the next batch is sent behind them.

    Parameters
    ----------
    device
        Where the backbone runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, tiles: RgbArray) -> Tensor:
        """Pixels on the device, uint8; pinned memory must not change until embeddings are back."""
        pixels = torch.from_numpy(np.require(tiles, requirements=["C", "W"]))
        if self._copies is None:
            return pixels.to(self._device)
        with torch.cuda.stream(self._copies):
            sent = pixels.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        sent.record_stream(computing)  # its memory is not given away before the network has read it
        return sent

    def fetch(self, embeddings: Tensor) -> AsyncResult:
        """Embeddings, shape (n, dim), on their way back as float32."""
        if self._copies is None:
            return AsyncResult(embeddings.float().cpu(), None)
        values = embeddings.float().to("cpu", non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return AsyncResult(values, event)
