"""Tiles of many slides through the backbone, in batches that do not stop at a slide's border."""

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
from features.errors import TileError
from features.filters.classifier import REASON, TileFilter
from features.slides.base import RgbArray
from features.tiling.transforms import TileTransform

__all__ = ["Instances", "SlideBuffer", "encode_slides"]

_BATCHES_AHEAD = 6
_BATCHES_ON_DEVICE = 2
_PATIENCE_S = 0.2
_NICENESS = 3
"""Enough to come second; more, and one that holds the interpreter's lock is held up itself."""


class Instances(Protocol):
    """What goes through the backbone for one bag: tiles of a slide, or images of a series."""

    @property
    def n_tiles(self) -> int:
        """How many there are."""
        ...

    def read(self, index: int) -> RgbArray | str | TileError:
        """Pixels of one, or the rule that leaves it out, or why it cannot be decoded.

        All have one size, shape (height_px, width_px, 3), uint8; called from several threads.
        """
        ...


S = TypeVar("S", bound=Instances)


class SlideBuffer(Generic[S]):
    """A slide, or whatever else becomes one bag, on its way through the backbone.

    Parameters
    ----------
    survey
        The open slide and its tiles.
    dim
        Length of an embedding.
    looks
        What the backbone is shown of each tile; None for the tile as it is.
    tile_filter
        Drops tiles by their embeddings; None drops none.

    Attributes
    ----------
    failures
        One message for each tile that could not be decoded, by its index into the grid.
    left_out
        Rule that spoke against a tile, or ``filter``, by its index into the grid.
    fault
        What went wrong with the slide as a whole; None if nothing did.
    n_looks
        Pictures a tile: the plain one and its views.
    """

    def __init__(
        self,
        survey: S,
        *,
        dim: int,
        looks: TileTransform | None = None,
        tile_filter: TileFilter | None = None,
    ) -> None:
        self.survey = survey
        self._looks = looks
        self.n_looks = 1 if looks is None else looks.n_views
        self._filter = tile_filter
        self.failures: dict[int, str] = {}
        self.left_out: dict[int, str] = {}
        self.fault: Exception | None = None
        n_tiles = survey.n_tiles
        self._features = np.empty((n_tiles, self.n_looks, dim), np.float32)
        self._embedded = np.zeros(n_tiles, bool)
        self._n_left = n_tiles * self.n_looks

    @property
    def is_done(self) -> bool:
        """Whether every tile was dealt with."""
        return self._n_left == 0

    @property
    def kept(self) -> npt.NDArray[np.int64]:
        """Index into the grid of each embedding, shape (n_embedded,)."""
        return np.flatnonzero(self._embedded)

    @property
    def features(self) -> npt.NDArray[np.float32]:
        """Embeddings of plain tiles, shape (n_embedded, dim), in the order of the grid."""
        return np.asarray(self._features[self._embedded, 0])

    @property
    def views(self) -> npt.NDArray[np.float32] | None:
        """Embeddings of their views, shape (n_embedded, n_views, dim); None without views."""
        return self._features[self._embedded, 1:] if self.n_looks > 1 else None

    def read(self, index: int) -> RgbArray | str | TileError:
        """Pictures of a tile, the plain one first, or why there are none.

        Returns
        -------
        RgbArray, str or TileError
            Shape (n_looks, height_px, width_px, 3), uint8; or as :meth:`Instances.read`.
        """
        tile = self.survey.read(index)
        if not isinstance(tile, np.ndarray):
            return tile
        return tile[None] if self._looks is None else self._looks(tile, index)

    def store(self, index: int, look: int, embedding: npt.NDArray[np.float32]) -> None:
        """Keep the embedding of a look at a tile, unless the filter drops the plain tile.

        The plain one always comes first.
        """
        self._n_left -= 1
        if look == 0:
            if self._filter is not None and self._filter.predict_drop(embedding[None])[0]:
                self.left_out[index] = REASON
            self._embedded[index] = index not in self.left_out
        self._features[index, look] = embedding

    def drop(self, index: int, reason: str | Exception) -> None:
        """Note that a tile has no embedding: the reason to leave it out, or what went wrong."""
        if isinstance(reason, str):
            self.left_out[index] = reason
        elif isinstance(reason, TileError):
            self.failures[index] = str(reason)
        else:
            self.fault = reason
        self._n_left -= self.n_looks

    def fail(self, error: Exception) -> None:
        """Note that the backbone failed on a look at a tile."""
        self.fault = error
        self._n_left -= 1


class _TileRef(NamedTuple):
    """Where an embedding belongs."""

    work: SlideBuffer[Any]
    number: int
    look: int


class _PendingBatch(NamedTuple):
    """A batch that the backbone is at work on."""

    places: list[_TileRef]
    pixels: RgbArray
    sent: Future[ConcatResult]

    @property
    def is_back(self) -> bool:
        """Whether its embeddings, or what went wrong, can be had without waiting."""
        return self.sent.done() and (
            self.sent.exception() is not None or self.sent.result().is_ready
        )


class _TileFuture(NamedTuple):
    """A tile being read; without ``tile`` the announcement of a slide."""

    work: SlideBuffer[Any]
    number: int
    tile: Future[RgbArray | str | TileError] | None


def encode_slides(
    works: Iterable[SlideBuffer[S]],
    encoder: Encoder,
    *,
    batch_tiles: int,
    n_workers: int,
    on_tiles: Callable[[int], None],
) -> Iterator[SlideBuffer[S]]:
    """Embed the tiles of slides, one after the other, and yield each slide when it is done.

    One thread takes slides from ``works`` and hands their tiles to threads that decode, resample
    and judge them; the caller's thread gathers batches across slides; one more thread feeds the
    backbone. At most a few batches of pixels are in memory at any time. A tile that cannot be
    decoded is left out and told, never replaced by white.

    Parameters
    ----------
    works
        Slides to embed; taken as they are needed, in the thread that reads.
    encoder
        The backbone.
    batch_tiles
        Tiles that go through the backbone together.
    n_workers
        Threads that decode.
    on_tiles
        Called with the number of tiles just dealt with.

    Yields
    ------
    SlideBuffer
        Each slide once all its tiles are dealt with.
    """
    ahead = _BATCHES_AHEAD * batch_tiles
    with (
        ThreadPoolExecutor(1, thread_name_prefix="backbone") as device,
        _Reader(
            works, n_ahead=ahead, n_workers=n_workers, yields=encoder.device.type == "cpu"
        ) as items,
    ):
        lane = _EncoderQueue(device, encoder, on_tiles)
        batch: list[tuple[_TileRef, RgbArray]] = []
        for work, number, tile in items:
            if tile is None:
                if work.is_done:  # a slide without tiles
                    yield work
                continue
            found = _result(tile)
            if isinstance(found, np.ndarray):
                batch += [
                    (_TileRef(work, number, look), pixels) for look, pixels in enumerate(found)
                ]
            else:
                work.drop(number, found)
                on_tiles(1)
                if work.is_done:
                    yield work
            while len(batch) >= batch_tiles:
                lane.send(batch[:batch_tiles])
                batch = batch[batch_tiles:]
            yield from lane.collect(most=_BATCHES_ON_DEVICE)
        if batch:
            lane.send(batch)
        yield from lane.collect(most=0)


class _EncoderQueue:
    """Batches on their way through the backbone, in a thread that feeds it."""

    def __init__(
        self, device: ThreadPoolExecutor, encoder: Encoder, on_tiles: Callable[[int], None]
    ) -> None:
        self._device = device
        self._encoder = encoder
        self._on_tiles = on_tiles
        self._memory = PinnedBufferPool(pinned=encoder.device.type == "cuda")
        self._running: deque[_PendingBatch] = deque()

    def send(self, batch: list[tuple[_TileRef, RgbArray]]) -> None:
        pixels = self._memory.stack([tile for _, tile in batch])
        sent = self._device.submit(self._encoder.embed_async, pixels)
        self._running.append(_PendingBatch([place for place, _ in batch], pixels, sent))

    def collect(self, *, most: int) -> Iterator[SlideBuffer[Any]]:
        """Hand out embeddings that are there, and wait while more than ``most`` batches run.

        Yields slides that are done now.
        """
        while len(self._running) > most or (self._running and self._running[0].is_back):
            batch = self._running.popleft()
            yield from _scatter(batch)
            self._memory.release(batch.pixels)
            self._on_tiles(sum(not place.look for place in batch.places))


def _scatter(batch: _PendingBatch) -> Iterator[SlideBuffer[Any]]:
    """Hand the embeddings of a batch to their slides; yields those that are done now."""
    try:
        embeddings = batch.sent.result().wait()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is these slides' alone
        for work, _, _ in batch.places:
            work.fail(error)
            if work.is_done:
                yield work
        return
    for (work, number, look), embedding in zip(batch.places, embeddings, strict=True):
        work.store(number, look, embedding)
        if work.is_done:
            yield work


def _result(tile: Future[RgbArray | str | TileError]) -> RgbArray | str | Exception:
    try:
        return tile.result()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this slide's alone
        return error


class _Reader:
    """Reads the tiles of all slides in order, some in advance, in threads of its own.

    Where the backbone needs the cores too, these threads can yield to its threads, which wait for
    each other after every layer: one that is held up holds up all.
    """

    def __init__(
        self, works: Iterable[SlideBuffer[Any]], *, n_ahead: int, n_workers: int, yields: bool
    ) -> None:
        self._works = works
        self._n_workers = n_workers
        self._initializer = _lower_priority if yields else None
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
            self._thread.join(_PATIENCE_S)

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
                for work in self._works:
                    self._announce(work, pool)
                    if self._closed.is_set():
                        break
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            self._put(error)
        else:
            self._put(None)

    def _announce(self, work: SlideBuffer[Any], pool: ThreadPoolExecutor) -> None:
        self._put(_TileFuture(work, -1, None))
        for number in range(work.survey.n_tiles):
            if self._closed.is_set():
                return
            self._put(_TileFuture(work, number, pool.submit(work.read, number)))

    def _put(self, item: _TileFuture | BaseException | None) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_PATIENCE_S)
            except Full:
                continue
            return


def _lower_priority() -> None:
    """Let the other threads of this process go first; Linux counts niceness by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
