"""What all encoders have in common: tiles in, embeddings out, perhaps later; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from features.encoders.preprocessing import ConcatPreprocessing, Preprocessing
from features.encoders.stored_choice import StoredChoice
from features.slides.base import RgbArray

__all__ = ["AsyncResult", "CompletionEvent", "ConcatResult", "Device", "Encoder"]


class Device(Protocol):
    """Device of an encoder, such as a ``torch.device``; its text is e.g. ``cuda:0``."""

    @property
    def type(self) -> str:
        """Kind of the device, e.g. ``cpu`` or ``cuda``."""
        ...


class CompletionEvent(Protocol):
    """Event on a device, such as a ``torch.cuda.Event``, behind the work it was recorded after."""

    def query(self) -> bool:
        """Return whether all that work is done."""
        ...

    def synchronize(self) -> None:
        """Wait for it."""


@dataclass(frozen=True, eq=False)
class AsyncResult:
    """Embeddings, shape (n, dim), float32, that the device may still be computing.

    ``values`` are on the CPU and valid only after ``wait``; the CUDA event, None on the CPU, is
    recorded behind their copy.
    """

    values: npt.NDArray[np.float32]
    event: CompletionEvent | None

    @property
    def is_ready(self) -> bool:
        """True if ``wait`` returns at once."""
        return self.event is None or self.event.query()

    def wait(self) -> npt.NDArray[np.float32]:
        """Wait for the embeddings, float32 of shape (n, dim)."""
        if self.event is not None:
            self.event.synchronize()
        return np.asarray(self.values, np.float32)


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


class Encoder(Protocol):
    """One frozen encoder, or several whose embeddings are concatenated.

    ``name`` is that of timm, ``weights_sha256`` a hash over names, shapes and values of all
    weights; of several encoders both are joined by ``+``. ``dim`` is the length of an embedding,
    ``preprocessing_source`` says where mean and standard deviation of the channels come from.
    """

    name: str
    weights_sha256: str
    preprocessing: Preprocessing | ConcatPreprocessing
    preprocessing_source: str
    dim: int
    device: Device

    @property
    def execution(self) -> str:
        """Runtime and batch size, e.g. ``onnx float32 batch 64``; several are joined by ``+``."""
        ...

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Start to embed tiles, shape (n, height, width, 3) in px, uint8.

        The tiles must not change until the result, shape (n, dim), float32, is ready.
        """
        ...

    def stored_choice(self, batch_tiles: int) -> StoredChoice | None:  # noqa: ARG002 - of others
        """Return the runtime that the cache knows for batches of this size, or None."""
        return None

    def has_export(self, batch_tiles: int) -> bool:  # noqa: ARG002 - of others
        """Return whether the cache has the export to ONNX for batches of this size."""
        return False

    def embed(self, tiles: RgbArray) -> npt.NDArray[np.float32]:
        """Embed tiles, shape (n, height, width, 3) in px, uint8, as float32 of shape (n, dim)."""
        return self.embed_async(tiles).wait()
