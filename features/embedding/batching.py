"""Batches of tiles for the encoder, which span the borders between slides."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from features.encoders.encoder import Encoder
from features.encoders.transfer import ConcatResult, PinnedBufferPool
from features.errors import SlideError, TileError
from features.filters.classifier import REASON, TileFilter
from features.slides.base import RgbArray
from features.tiling.transforms import TileTransform

__all__ = ["Instances", "SlideBuffer", "encode_slides"]

_BATCHES_AHEAD = 6
_BATCHES_ON_DEVICE = 2
_POLL_S = 0.2
_NICENESS = 3
"""Enough to yield to the encoder; more delays threads that hold the interpreter lock."""


class Instances(Protocol):
    """Inputs of one bag: the tiles of a slide, or the images of a series."""

    @property
    def n_tiles(self) -> int:
        """Number of tiles, or images."""
        ...

    def read(self, index: int) -> RgbArray | str | TileError:
        """Return the pixels of one, the rule that rejects it, or its decoding error.

        Pixels have shape (height_px, width_px, 3), uint8, the same for all; thread-safe.
        """
        ...


S = TypeVar("S", bound=Instances)


class SlideBuffer(Generic[S]):
    """Embeddings of a slide or series while they are computed.

    Parameters
    ----------
    instances
        The open slide and its tiles, or the images of a series.
    dim
        Length of an embedding.
    transform
        Makes the encoder's inputs of each tile; None for the tile alone.
    tile_filter
        Rejects tiles by their embeddings; None keeps all.

    Attributes
    ----------
    failures
        Decoding error by index into the grid.
    rejected
        Name of the rejecting rule, or ``filter``, by index into the grid.
    error
        Error of the slide as a whole; None without.
    n_views
        Inputs per tile: the plain tile and its augmented views.
    """

    def __init__(
        self,
        instances: S,
        *,
        dim: int,
        transform: TileTransform | None = None,
        tile_filter: TileFilter | None = None,
    ) -> None:
        self.instances = instances
        self._transform = transform
        self.n_views = 1 if transform is None else transform.n_views
        self._filter = tile_filter
        self.failures: dict[int, str] = {}
        self.rejected: dict[int, str] = {}
        self.error: Exception | None = None
        n_tiles = instances.n_tiles
        self._features = np.empty((n_tiles, self.n_views, dim), np.float32)
        self._embedded = np.zeros(n_tiles, bool)
        self._n_pending = n_tiles * self.n_views

    @property
    def is_done(self) -> bool:
        """Whether every tile is embedded, rejected or failed."""
        return self._n_pending == 0

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Index into the grid of each embedding, shape (n_embedded,)."""
        return np.flatnonzero(self._embedded)

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """Embeddings of plain tiles in grid order, shape (n_embedded, dim)."""
        return np.asarray(self._features[self._embedded, 0])

    @property
    def views(self) -> npt.NDArray[np.float32] | None:
        """Embeddings of augmented views, shape (n_embedded, n_views - 1, dim); None without."""
        return self._features[self._embedded, 1:] if self.n_views > 1 else None

    def read(self, index: int) -> RgbArray | str | TileError:
        """Return the encoder's inputs of a tile, the plain one first.

        Returns
        -------
        RgbArray, str or TileError
            Shape (n_views, height_px, width_px, 3), uint8; or as :meth:`Instances.read`.
        """
        tile = self.instances.read(index)
        if not isinstance(tile, np.ndarray):
            return tile
        return tile[None] if self._transform is None else self._transform(tile, index)

    def store(self, index: int, view: int, embedding: npt.NDArray[np.float32]) -> None:
        """Store the embedding of a view, shape (dim,); view 0, the plain tile, comes first.

        The filter is applied to the plain tile.
        """
        self._n_pending -= 1
        if view == 0:
            if self._filter is not None and self._filter.predict_drop(embedding[None])[0]:
                self.rejected[index] = REASON
            self._embedded[index] = index not in self.rejected
        self._features[index, view] = embedding

    def reject(self, index: int, reason: str | Exception) -> None:
        """Record that a tile has no embedding: the rejecting rule, or an error."""
        if isinstance(reason, str):
            self.rejected[index] = reason
        elif isinstance(reason, TileError):
            self.failures[index] = str(reason)
        else:
            self.error = reason
        self._n_pending -= self.n_views

    def fail(self, error: Exception) -> None:
        """Record that the encoder failed on a view."""
        self.error = error
        self._n_pending -= 1

    def check_failures(
        self, where: object, n_tiles: int, *, unit: str, verb: str, max_failed: float, again: str
    ) -> None:
        """Raise the error of the slide, or one if too many of its tiles failed.

        Parameters
        ----------
        where
            The slide or series, for the message.
        n_tiles
            Number of tiles that were tried.
        unit, verb, again
            Words of the message: ``tiles`` that cannot be ``decoded``, and the advice.
        max_failed
            Maximum share of failed tiles, 0 to 1.

        Raises
        ------
        SlideError
            If more tiles failed.
        """
        if self.error is not None:
            raise self.error
        if (n_failed := len(self.failures)) > max_failed * n_tiles:
            raise SlideError(
                where,
                actual=f"{n_failed} of {n_tiles} {unit} cannot be {verb}, "
                f"first: {next(iter(self.failures.values()))}",
                expected=f"at most {max_failed:.0%}",
                hint=f"{again} again, or allow more with --max-failed.",
            )


class _TileRef(NamedTuple):
    """Destination of an embedding."""

    buffer: SlideBuffer[Any]
    position: int
    """Index into the grid."""
    view: int


class _PendingBatch(NamedTuple):
    """A batch in the encoder."""

    refs: list[_TileRef]
    pixels: RgbArray
    result: Future[ConcatResult]

    @property
    def is_ready(self) -> bool:
        """Whether its embeddings, or its error, are available without waiting."""
        return self.result.done() and (
            self.result.exception() is not None or self.result.result().is_ready
        )


class _TileFuture(NamedTuple):
    """A tile that is being read; ``tile`` is None in the item that announces a slide."""

    buffer: SlideBuffer[Any]
    position: int
    """Index into the grid."""
    tile: Future[RgbArray | str | TileError] | None


def encode_slides(
    buffers: Iterable[SlideBuffer[S]],
    encoder: Encoder,
    *,
    batch_tiles: int,
    n_workers: int,
    on_tiles: Callable[[int], None],
) -> Iterator[SlideBuffer[S]]:
    """Embed the tiles of slides one slide after the other, and yield each finished slide.

    One thread takes slides from ``buffers`` and submits their tiles to the threads that decode and
    resample them and apply the artefact rules; the caller's thread collects batches across slides;
    another thread feeds the encoder. A few batches of pixels are in memory at any time. A tile that
    cannot be decoded is recorded as failed, never replaced by white.

    Parameters
    ----------
    buffers
        Slides to embed; taken when needed, in the reading thread.
    encoder
        Computes the embeddings.
    batch_tiles
        Tiles per batch.
    n_workers
        Decoding threads.
    on_tiles
        Called with the number of tiles just finished.

    Yields
    ------
    SlideBuffer
        Each slide once all its tiles are embedded, rejected or failed.
    """
    ahead = _BATCHES_AHEAD * batch_tiles
    on_cpu = encoder.device.type == "cpu"
    with (
        ThreadPoolExecutor(1, thread_name_prefix="encoder") as device,
        _Reader(buffers, n_ahead=ahead, n_workers=n_workers, low_priority=on_cpu) as items,
    ):
        queue = _EncoderQueue(device, encoder, on_tiles)
        batch: list[tuple[_TileRef, RgbArray]] = []
        for buffer, index, tile in items:
            if tile is None:
                if buffer.is_done:  # The slide has no tiles.
                    yield buffer
                continue
            pixels = _result(tile)
            if isinstance(pixels, np.ndarray):
                batch += [(_TileRef(buffer, index, view), p) for view, p in enumerate(pixels)]
            else:
                buffer.reject(index, pixels)
                on_tiles(1)
                if buffer.is_done:
                    yield buffer
            while len(batch) >= batch_tiles:
                queue.send(batch[:batch_tiles])
                batch = batch[batch_tiles:]
            yield from queue.collect(max_pending=_BATCHES_ON_DEVICE)
        if batch:
            queue.send(batch)
        yield from queue.collect(max_pending=0)


class _EncoderQueue:
    """Batches in the encoder, which a thread of its own feeds."""

    def __init__(
        self, device: ThreadPoolExecutor, encoder: Encoder, on_tiles: Callable[[int], None]
    ) -> None:
        self._device = device
        self._encoder = encoder
        self._on_tiles = on_tiles
        self._memory = PinnedBufferPool(pinned=encoder.device.type == "cuda")
        self._pending: deque[_PendingBatch] = deque()

    def send(self, batch: list[tuple[_TileRef, RgbArray]]) -> None:
        pixels = self._memory.stack([tile for _, tile in batch])
        result = self._device.submit(self._encoder.embed_async, pixels)
        self._pending.append(_PendingBatch([ref for ref, _ in batch], pixels, result))

    def collect(self, *, max_pending: int) -> Iterator[SlideBuffer[Any]]:
        """Store embeddings that are ready, and wait while more batches are pending.

        Yields finished slides.
        """
        while len(self._pending) > max_pending or (self._pending and self._pending[0].is_ready):
            batch = self._pending.popleft()
            yield from _scatter(batch)
            self._memory.release(batch.pixels)
            self._on_tiles(sum(ref.view == 0 for ref in batch.refs))


def _scatter(batch: _PendingBatch) -> Iterator[SlideBuffer[Any]]:
    """Store the embeddings of a batch in their buffers; yields finished slides."""
    try:
        embeddings = batch.result.result().wait()
    except Exception as error:  # noqa: BLE001 - it must stop these slides only
        for ref in batch.refs:
            ref.buffer.fail(error)
            if ref.buffer.is_done:
                yield ref.buffer
        return
    for (buffer, index, view), embedding in zip(batch.refs, embeddings, strict=True):
        buffer.store(index, view, embedding)
        if buffer.is_done:
            yield buffer


def _result(tile: Future[RgbArray | str | TileError]) -> RgbArray | str | Exception:
    try:
        return tile.result()
    except Exception as error:  # noqa: BLE001 - it must stop this slide only
        return error


class _Reader:
    """Threads that read the tiles of all slides in order, some in advance.

    If the encoder runs on the CPU, they have a lower priority: the encoder's threads wait for each
    other after every layer, so that a delay of one delays all.
    """

    def __init__(
        self,
        buffers: Iterable[SlideBuffer[Any]],
        *,
        n_ahead: int,
        n_workers: int,
        low_priority: bool,
    ) -> None:
        self._buffers = buffers
        self._n_workers = n_workers
        self._initializer = _lower_priority if low_priority else None
        self._queue: Queue[_TileFuture | BaseException | None] = Queue(n_ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            with suppress(Empty):
                self._queue.get_nowait()
            self._thread.join(_POLL_S)

    def __iter__(self) -> Iterator[_TileFuture]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(
                self._n_workers, thread_name_prefix="decode", initializer=self._initializer
            ) as pool:
                for buffer in self._buffers:
                    self._put(_TileFuture(buffer, -1, None))
                    for index in range(buffer.instances.n_tiles):
                        if self._closed.is_set():
                            return
                        self._put(_TileFuture(buffer, index, pool.submit(buffer.read, index)))
                    if self._closed.is_set():
                        return
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: _TileFuture | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except Full:
                continue
            return


def _lower_priority() -> None:
    """Lower the priority of this thread; Linux counts niceness per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
