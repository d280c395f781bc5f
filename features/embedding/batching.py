"""Batches of tiles for the encoder, which span the borders between slides."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from features.encoders.base import ConcatResult, Encoder
from features.encoders.buffers import PinnedBufferPool
from features.encoders.timing import TimedEncoder
from features.errors import SlideError, TileError
from features.filters.classifier import REASON, TileFilter
from features.slides.base import RgbArray
from features.tiling.transforms import TileTransform
from features.utils.stage_times import STAGE_TIMES

__all__ = ["Instances", "SlideBuffer", "decoding_pool", "encode_slides"]

_BATCHES_AHEAD = 6
_BATCHES_ON_DEVICE = 2
_TILES_TOGETHER = 4
"""Tiles that a thread reads at a time: more threads share a slide with fewer, but each hand-over
takes others the interpreter."""
_POLL_S = 0.2
_IDLE_S = 5.0
"""Time without a tile after which those that are read are embedded in a smaller batch."""
_NICENESS = 3
"""Enough to yield to the encoder; more delays threads that hold the interpreter lock."""


class Instances(Protocol):
    """Inputs of one bag: the tiles of a slide, or the images of a series."""

    @property
    def n_tiles(self) -> int:
        """Number of tiles, or images."""

    def read(self, index: int) -> RgbArray | str | TileError:
        """Return the pixels of one, the rule that rejects it, or its decoding error; thread-safe.

        Pixels have shape (height_px, width_px, 3), uint8, the same for all.
        """

    def end_reading(self) -> None:
        """Release what only reading needs: all have been read."""


S = TypeVar("S", bound=Instances)


class SlideBuffer(Generic[S]):
    """Embeddings of a slide or series while they are computed, shape (n_tiles, n_views, dim).

    The transform makes the encoder's inputs of each tile, the plain tile and its augmented views;
    without one there is a single view. The filter rejects tiles by their embeddings.

    Attributes
    ----------
    failures
        Decoding error by index into the grid.
    rejected
        Name of the rejecting rule, or ``filter``, by index into the grid.
    error
        Error of the slide as a whole; None without.
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
        self._first_failure: TileError | None = None
        self.rejected: dict[int, str] = {}
        self.error: Exception | None = None
        n_tiles = instances.n_tiles
        self._features = np.empty((n_tiles, self.n_views, dim), np.float32)
        self._embedded = np.zeros(n_tiles, bool)
        self._n_pending = n_tiles * self.n_views

    @property
    def is_done(self) -> bool:
        """True once every tile is embedded, rejected or failed."""
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
        """Return the views of a tile, shape (n_views, height, width, 3) in px, uint8.

        The plain tile comes first. Rejected and failed tiles are returned as by
        :meth:`Instances.read`.
        """
        tile = self.instances.read(index)
        if not isinstance(tile, np.ndarray):
            return tile
        if self._transform is None:
            return tile[None]
        with STAGE_TIMES.timed("resample"):
            return self._transform(tile, index)

    def read_part(self, indices: range) -> list[RgbArray | str | Exception]:
        """Read several tiles, each as by :meth:`read`; an unforeseen error is returned as well."""
        tiles: list[RgbArray | str | Exception] = []
        for index in indices:
            try:
                tiles.append(self.read(index))
            except Exception as error:  # noqa: BLE001 - it must stop this slide only
                tiles.append(error)
        return tiles

    def store(self, index: int, view: int, embedding: npt.NDArray[np.float32]) -> None:
        """Store the embedding of a view, shape (dim,); the filter is applied to view 0."""
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
            self._first_failure = self._first_failure or reason
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
        """Raise the error of the slide, or SlideError if too many of ``n_tiles`` failed.

        ``where``, ``unit``, ``verb`` and ``again`` are words of the message: the slide or series,
        ``tiles`` that cannot be ``decoded``, and the advice.
        """
        if self.error is not None:
            raise self.error
        first, n_failed = self._first_failure, len(self.failures)
        if first is not None and n_failed > max_failed * n_tiles:
            expected = f" (expected {first.expected})" if first.expected else ""
            what_to_do = first.hint.removesuffix(".") or f"{again} again"
            raise SlideError(
                where,
                actual=f"{n_failed} of {n_tiles} {unit} cannot be {verb}, "
                f"first: {first.where}: {first.actual}{expected}",
                expected=f"at most {max_failed:.0%}",
                hint=f"{what_to_do}, or allow more with --max-failed.",
            )


class _TileRef(NamedTuple):
    """Destination of an embedding: its index into the grid, and its view."""

    buffer: SlideBuffer[Any]
    tile_index: int
    view: int


class _PendingBatch(NamedTuple):
    """A batch in the encoder; ``pixels`` may have room for more tiles than it has."""

    refs: list[_TileRef]
    pixels: RgbArray
    result: Future[ConcatResult]

    @property
    def is_ready(self) -> bool:
        """True if its embeddings, or its error, are available without waiting."""
        return self.result.done() and (
            self.result.exception() is not None or self.result.result().is_ready
        )


class _TileFuture(NamedTuple):
    """Tiles that are being read, from an index on; None in the item that announces a slide."""

    buffer: SlideBuffer[Any]
    first: int
    tiles: Future[list[RgbArray | str | Exception]] | None


def decoding_pool(encoder: Encoder, n_threads: int) -> ThreadPoolExecutor:
    """Return the threads that open slides and read their tiles.

    If the encoder runs on the CPU, they have a lower priority: the encoder's threads wait for each
    other after every layer, so that a delay of one delays all.
    """
    return ThreadPoolExecutor(
        n_threads, thread_name_prefix="decode",
        initializer=_lower_priority if encoder.device.type == "cpu" else None,
    )  # fmt: skip


def encode_slides(
    buffers: Iterable[SlideBuffer[S]],
    encoder: Encoder,
    *,
    batch_tiles: int,
    pool: ThreadPoolExecutor,
    on_tiles: Callable[[int], None],
) -> Iterator[SlideBuffer[S]]:
    """Embed the tiles of slides one slide after the other, and yield each finished slide.

    One thread takes slides from ``buffers``, when needed, and submits their tiles to the threads of
    ``pool``, which decode and resample them and apply the artefact rules; the caller's collects
    batches of shape (batch_tiles, height_px, width_px, 3) across slides; another thread feeds the
    encoder. A few batches of pixels are in memory at any time. A tile that cannot be decoded is
    recorded as failed, never replaced by white. Where no tile follows for five seconds, a batch is
    smaller. ``on_tiles`` is called with the number of tiles just finished.
    """
    ahead = -(-_BATCHES_AHEAD * batch_tiles // _TILES_TOGETHER)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="encoder") as device,
        _Reader(buffers, pool, n_ahead=ahead) as items,
    ):
        queue = _EncoderQueue(device, encoder, on_tiles, batch_tiles=batch_tiles)
        for item in items:
            if item is None:  # Tiles that are read must not wait for a slide that hangs.
                queue.send()
                yield from queue.collect(max_pending=0)
                continue
            buffer, first, tiles = item
            if tiles is None:
                if buffer.is_done:  # The slide has no tiles.
                    yield buffer
                continue
            part = tiles.result()
            if first + len(part) == buffer.instances.n_tiles:
                buffer.instances.end_reading()
            for index, pixels in enumerate(part, first):
                if isinstance(pixels, np.ndarray):
                    for view, one in enumerate(pixels):
                        queue.add(_TileRef(buffer, index, view), one)
                else:
                    buffer.reject(index, pixels)
                    on_tiles(1)
                    if buffer.is_done:
                        yield buffer
            yield from queue.collect(max_pending=_BATCHES_ON_DEVICE)
        queue.send()
        yield from queue.collect(max_pending=0)


class _EncoderQueue:
    """Batches in the encoder, which a thread of its own feeds, and the one that is being filled."""

    def __init__(
        self, device: ThreadPoolExecutor, encoder: Encoder, on_tiles: Callable[[int], None], *,
        batch_tiles: int,
    ) -> None:  # fmt: skip
        self._device = device
        self._encoder = TimedEncoder(encoder)
        self._on_tiles = on_tiles
        self._memory = PinnedBufferPool(pinned=encoder.device.type == "cuda")
        self._pending: deque[_PendingBatch] = deque()
        self._batch_tiles = batch_tiles
        self._refs: list[_TileRef] = []

    def add(self, ref: _TileRef, tile: RgbArray) -> None:
        """Copy a tile, shape (height, width, 3) in px, into the batch, and send it once full."""
        if not self._refs:
            self._pixels = self._memory.take((self._batch_tiles, *tile.shape))
        self._pixels[len(self._refs)] = tile
        self._refs.append(ref)
        if len(self._refs) == self._batch_tiles:
            self.send()

    def send(self) -> None:
        """Send the batch, however many tiles it has."""
        if refs := self._refs:
            self._refs = []
            result = self._device.submit(self._encoder.embed_async, self._pixels[: len(refs)])
            self._pending.append(_PendingBatch(refs, self._pixels, result))

    def collect(self, *, max_pending: int) -> Iterator[SlideBuffer[Any]]:
        """Store embeddings that are ready, wait while more are pending, yield finished slides."""
        while len(self._pending) > max_pending or (self._pending and self._pending[0].is_ready):
            batch = self._pending.popleft()
            yield from _scatter(batch)
            self._memory.release(batch.pixels)
            self._on_tiles(sum(ref.view == 0 for ref in batch.refs))


def _scatter(batch: _PendingBatch) -> Iterator[SlideBuffer[Any]]:
    """Store the embeddings of a batch in their buffers, and yield finished slides."""
    failure: Exception | None = None
    try:
        embeddings = batch.result.result().wait()
    except Exception as error:  # noqa: BLE001 - it must stop these slides only
        failure = error
    for number, (buffer, index, view) in enumerate(batch.refs):
        if failure is None:
            buffer.store(index, view, embeddings[number])
        else:
            buffer.fail(failure)
        if buffer.is_done:
            yield buffer


class _Reader:
    """Thread that has the tiles of all slides read in order, some in advance."""

    def __init__(
        self, buffers: Iterable[SlideBuffer[Any]], pool: ThreadPoolExecutor, *, n_ahead: int
    ) -> None:
        self._buffers, self._pool = buffers, pool
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

    def __iter__(self) -> Iterator[_TileFuture | None]:
        """Yield tiles, once they are read; None when there were none for some seconds."""
        while True:
            try:
                item = self._queue.get(timeout=_IDLE_S)
            except Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            while item.tiles is not None and wait([item.tiles], timeout=_IDLE_S).not_done:
                yield None
            yield item

    def _run(self) -> None:
        try:
            for buffer in self._buffers:
                self._put(_TileFuture(buffer, -1, None))
                n_tiles = buffer.instances.n_tiles
                for first in range(0, n_tiles, _TILES_TOGETHER):
                    if self._closed.is_set():
                        return
                    part = range(first, min(first + _TILES_TOGETHER, n_tiles))
                    tiles = self._pool.submit(buffer.read_part, part)
                    self._put(_TileFuture(buffer, first, tiles))
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
    """Lower the priority of this thread below the command's; Linux counts niceness per thread."""
    if sys.platform == "linux":
        os.nice(_NICENESS)
