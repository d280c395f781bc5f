"""An encoder that embeds the batches of other processes of this machine."""

from __future__ import annotations

import math
import os
import socket
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError, RawArray
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)
from queue import SimpleQueue
from threading import BoundedSemaphore, Event, Thread
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from features.encoders.base import AsyncResult, ConcatResult, Encoder
from features.encoders.buffers import PinnedBufferPool
from features.encoders.preprocessing import ConcatPreprocessing, Preprocessing
from features.encoders.timing import TimedEncoder
from features.errors import EncoderError, MilError, one_line
from features.slides.base import RgbArray

__all__ = ["EncoderAddress", "EncoderServer", "RemoteEncoder"]

_N_SLOTS = 2
"""Batches that a client can have in its part of the shared memory."""
_NO_SLOT = -1
_BATCHES_ON_DEVICE = 4
"""Batches in pinned memory, of all clients together."""
_RETRY_S = 0.2


@dataclass(frozen=True, kw_only=True)
class EncoderAddress:
    """What a client needs to reach an encoder; picklable while its process is started.

    ``pixels`` is the client's part of the memory that it shares with the encoder's process: room
    for batches of shape ``batch_shape``, (n, height, width, 3) in px, uint8.
    """

    address: Any
    authkey: bytes
    client: int
    pixels: Any
    batch_shape: tuple[int, int, int, int]

    @property
    def slots(self) -> npt.NDArray[np.uint8]:
        """Memory of the client's batches, shape (slots, n, height, width, 3), uint8."""
        return np.frombuffer(self.pixels, np.uint8).reshape(_N_SLOTS, *self.batch_shape)


class _Description(NamedTuple):
    """What a client learns of the encoder when it is served."""

    name: str
    weights_sha256: str
    preprocessing: Preprocessing | ConcatPreprocessing
    preprocessing_source: str
    dim: int
    device_name: str
    execution: str


class _Request(NamedTuple):
    """A batch in the shared memory: its slot, and its number of tiles."""

    slot: int
    n_tiles: int


class _Answer(NamedTuple):
    """Embeddings of a batch, shape (n, dim), or its error; and the encoder's runtime since then."""

    result: npt.NDArray[np.float32] | Exception
    execution: str


class EncoderServer:
    """Encoder that embeds the batches of clients in other processes, in the order of arrival.

    Pixels come through shared memory of ``batch_shape`` (n, height, width, 3) in px per batch,
    uint8, which each of ``n_clients`` has for itself; embeddings go back through a socket. A client
    may die and another take its place. Clients may be started before there is an encoder: they wait
    until :meth:`serve` has it. Raises OSError without room for its memory or socket.
    """

    def __init__(self, *, batch_shape: tuple[int, int, int, int], n_clients: int) -> None:
        self._memory = PinnedBufferPool(pinned=True)
        self._on_device = BoundedSemaphore(_BATCHES_ON_DEVICE)
        self._closed = Event()
        self._threads: dict[Connection, Thread] = {}
        authkey = os.urandom(32)
        n_bytes = self.shared_bytes(batch_shape)
        memory = [RawArray("B", n_bytes) for _ in range(n_clients)]
        self._listener = Listener(_free_name(), backlog=n_clients)  # last: only it is to be closed
        self.addresses = tuple(
            EncoderAddress(
                address=self._listener.address, authkey=authkey, client=client,
                pixels=pixels, batch_shape=batch_shape,
            )
            for client, pixels in enumerate(memory)
        )  # fmt: skip
        # All batches from one thread: what libraries keep for each thread is kept once.
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._answering = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._accepting = Thread(target=self._accept, name="clients", daemon=True)

    def serve(self, encoder: Encoder) -> None:
        """Embed the batches of clients with an encoder from now on; to be called once."""
        self._encoder, self._timed = encoder, TimedEncoder(encoder)
        self._accepting.start()

    def restart_clock(self) -> None:
        """Let the device's time without a batch begin now."""
        self._timed.restart_clock()

    @staticmethod
    def shared_bytes(batch_shape: tuple[int, int, int, int]) -> int:
        """Return the shared memory per client, bytes, for batches (n, height, width, 3) in px."""
        return _N_SLOTS * math.prod(batch_shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._accepting.is_alive():
            with suppress(OSError):
                # Closing a socket does not wake a thread that waits for connections.
                Client(self._listener.address).close()
            self._accepting.join()
        self._listener.close()
        for connection in self._threads:
            _hang_up(connection)
        self._embedding.shutdown()
        self._answering.shutdown()
        for thread in self._threads.values():
            thread.join()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection = self._listener.accept()
            except OSError:  # such as too many open files
                self._closed.wait(_RETRY_S)
                continue
            thread = Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads[connection] = thread
            thread.start()

    def _serve(self, connection: Connection) -> None:
        """Embed the batches of a client until it hangs up, or the server is closed."""
        with suppress(OSError, EOFError, AuthenticationError), connection:
            authkey = self.addresses[0].authkey
            deliver_challenge(connection, authkey)
            answer_challenge(connection, authkey)
            slots = self.addresses[connection.recv()].slots
            encoder = self._encoder
            connection.send(
                _Description(
                    name=encoder.name, weights_sha256=encoder.weights_sha256,
                    preprocessing=encoder.preprocessing,
                    preprocessing_source=encoder.preprocessing_source, dim=encoder.dim,
                    device_name=str(encoder.device), execution=encoder.execution,
                )
            )  # fmt: skip
            while True:
                request: _Request = connection.recv()
                self._on_device.acquire()
                pixels = slots[request.slot, : request.n_tiles]
                try:
                    self._embedding.submit(self._embed, pixels, connection)
                except RuntimeError:  # It is shut down; others wait for the same permit.
                    self._on_device.release()
                    return

    def _embed(self, pixels: RgbArray, connection: Connection) -> None:
        """Start a batch, and have its embeddings sent once they are ready."""
        pinned = None
        try:
            if self._encoder.device.type == "cuda":
                pinned = self._memory.take(pixels.shape)
                pinned[:] = pixels
            result: ConcatResult | Exception = self._timed.embed_async(
                pixels if pinned is None else pinned
            )
        except Exception as error:  # noqa: BLE001 - it must stop the slides of this batch only
            result = error
        self._answering.submit(self._answer, result, pinned, connection)

    def _answer(
        self, result: ConcatResult | Exception, pinned: RgbArray | None, connection: Connection
    ) -> None:
        if not isinstance(result, Exception):
            try:
                values = result.wait()
            except Exception as error:  # noqa: BLE001 - as above
                result = error
        answer = _portable(result) if isinstance(result, Exception) else values
        if pinned is not None:
            self._memory.release(pinned)
        self._on_device.release()
        with suppress(OSError):  # The client has died.
            connection.send(_Answer(answer, self._encoder.execution))


def _free_name() -> str | None:
    """Name of a socket without a file, whose path may be too long; None where all have files."""
    return f"\0mil-{os.urandom(16).hex()}" if sys.platform == "linux" else None


def _hang_up(connection: Connection) -> None:
    """End a connection also for a thread that waits for its next message, as closing would not."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can load without the libraries of this one."""
    if isinstance(error, MilError):
        return error
    return RuntimeError(f"{type(error).__name__}: {one_line(str(error))}")


@dataclass(frozen=True)
class _RemoteDevice:
    """A device that is reached through another process, by its name there."""

    name: str
    type: str = "remote"

    def __str__(self) -> str:
        return self.name


class _Arrival:
    """Arrival of a batch's embeddings, as the event of an asynchronous result."""

    def __init__(self, slot: int, values: npt.NDArray[np.float32]) -> None:
        self.slot, self.values = slot, values
        self._arrived = Event()
        self._error: Exception | None = None

    def set(self, result: npt.NDArray[np.float32] | Exception) -> None:
        """Take the embeddings, shape (n, dim), or their error."""
        if isinstance(result, Exception):
            self._error = result
        else:
            try:
                self.values[:] = result
            except ValueError as error:  # embeddings of another length
                self._error = error
        self._arrived.set()

    def query(self) -> bool:
        """Return whether they are there."""
        return self._arrived.is_set()

    def synchronize(self) -> None:
        """Wait for them; raise their error."""
        self._arrived.wait()
        if self._error is not None:
            raise self._error


class RemoteEncoder(Encoder):
    """Encoder in another process of this machine, which holds an :class:`EncoderServer`.

    Waits until the encoder is served; raises EncoderError if the server is closed before.
    """

    def __init__(self, address: EncoderAddress) -> None:
        try:
            self._connection = Client(address.address, authkey=address.authkey)
            self._connection.send(address.client)
            described: _Description = self._connection.recv()
        except (OSError, EOFError) as error:
            raise _ended() from error
        self.name, self.weights_sha256 = described.name, described.weights_sha256
        self.preprocessing = described.preprocessing
        self.preprocessing_source = described.preprocessing_source
        self.dim, self.device = described.dim, _RemoteDevice(described.device_name)
        self._execution = described.execution
        self._slots = address.slots
        self._ended = Event()
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(_N_SLOTS):
            self._free.put(slot)
        self._pending: deque[_Arrival] = deque()
        Thread(target=self._receive, name="embeddings", daemon=True).start()

    @property
    def execution(self) -> str:
        """Runtime and batch size, as of the last batch."""
        return self._execution

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        """Start to embed tiles, shape (n, height, width, 3) in px, uint8, from one thread.

        Raises EncoderError if the process of the encoder has ended.
        """
        slot = self._free.get()
        if slot == _NO_SLOT:
            self._free.put(slot)  # for the next call
            raise _ended()
        self._slots[slot, : len(tiles)] = tiles
        arrival = _Arrival(slot, np.empty((len(tiles), self.dim), np.float32))
        self._pending.append(arrival)
        try:
            self._connection.send(_Request(slot, len(tiles)))
        except OSError as error:
            raise _ended() from error
        if self._ended.is_set():  # perhaps before the batch was among those that fail
            raise _ended()
        return ConcatResult([AsyncResult(arrival.values, arrival)], axis=0)

    def _receive(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                answer: _Answer = self._connection.recv()
                self._execution = answer.execution
                arrival = self._pending.popleft()
                self._free.put(arrival.slot)
                arrival.set(answer.result)
        self._ended.set()
        while self._pending:
            self._pending.popleft().set(_ended())
        self._free.put(_NO_SLOT)


def _ended() -> EncoderError:
    return EncoderError("the encoder", actual="its process has ended", expected="embeddings")
