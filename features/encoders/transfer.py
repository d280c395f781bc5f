"""Asynchronous copies of pixels to a device and of embeddings back to the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from features.encoders.base import AsyncResult
from features.slides.base import RgbArray

__all__ = ["DeviceTransfer"]


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
            return AsyncResult(embeddings.float().cpu().numpy(), None)
        values = embeddings.float().to("cpu", non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return AsyncResult(values.numpy(), event)
