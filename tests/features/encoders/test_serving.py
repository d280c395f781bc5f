"""An encoder that other processes share; here the clients are threads and one real process."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError, get_context
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.encoders.base import AsyncResult, ConcatResult
from features.encoders.buffers import PinnedBufferPool
from features.encoders.preprocessing import Preprocessing
from features.encoders.serving import EncoderAddress, EncoderServer, RemoteEncoder
from features.errors import EncoderError
from features.slides.base import RgbArray

SHAPE = (4, 6, 6, 3)


class SumEncoder:
    """Encoder of the sum of each channel; a batch that holds ``trap`` raises its error."""

    name, weights_sha256, preprocessing_source, dim = "sum", "0" * 64, "test", 3
    preprocessing = Preprocessing(
        input_px=6, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    device = torch.device("meta")

    def __init__(self, *, trap: int = 256, error: Exception | None = None) -> None:
        self.execution, self._trap, self._error = "eager batch 4", trap, error
        self.n_batches = 0
        self.late = threading.Event()
        self.late.set()

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        self.n_batches += 1
        self.execution = f"eager batch {self.n_batches}"
        if self._error is not None and (tiles == self._trap).any():
            raise self._error
        return ConcatResult([AsyncResult(sums(tiles), None), Late(self.late)], axis=1)


class Late:
    """No further columns, once the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    @property
    def is_ready(self) -> bool:
        return self._event.is_set()

    def wait(self) -> np.ndarray:
        self._event.wait()
        return np.empty((4, 0), np.float32)


def sums(tiles: RgbArray) -> np.ndarray:
    return tiles.sum(axis=(1, 2)).astype(np.float32)


def batches(seed: int, n: int = 12) -> list[RgbArray]:
    return list(np.random.default_rng(seed).integers(0, 200, (n, *SHAPE), np.uint8))


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def serve(encoder: Any, *, n_clients: int = 2) -> EncoderServer:
    server = EncoderServer(batch_shape=SHAPE, n_clients=n_clients)
    server.serve(encoder)
    return server


def check_client(address: EncoderAddress, seed: int) -> RemoteEncoder:
    """Embed batches, all sent before the first is waited for, and compare their embeddings."""
    remote = RemoteEncoder(address)
    with ThreadPoolExecutor(1) as sender:
        results = [sender.submit(remote.embed_async, tiles) for tiles in batches(seed)]
        for tiles, result in zip(batches(seed), results, strict=True):
            np.testing.assert_array_equal(result.result().wait(), sums(tiles))
            assert result.result().is_ready
    return remote


@pytest.mark.usefixtures("no_threads_left")
def test_each_client_gets_the_embeddings_of_its_own_batches() -> None:
    encoder = SumEncoder()
    with serve(encoder, n_clients=3) as server, ThreadPoolExecutor(3) as clients:
        remotes = list(clients.map(check_client, server.addresses, range(3)))
        assert encoder.n_batches == 3 * len(batches(0))
        for remote in remotes:
            described = (remote.name, remote.weights_sha256, remote.dim, remote.preprocessing)
            assert described == ("sum", "0" * 64, 3, encoder.preprocessing)
            assert (str(remote.device), remote.device.type) == ("meta", "remote")
            assert remote.execution.startswith("eager batch ")


@pytest.mark.usefixtures("no_threads_left")
def test_clients_that_come_before_the_encoder_wait_for_it() -> None:
    with (
        EncoderServer(batch_shape=SHAPE, n_clients=2) as server,
        ThreadPoolExecutor(2) as clients,
    ):
        checks = [
            clients.submit(check_client, address, seed=address.client)
            for address in server.addresses
        ]
        time.sleep(0.1)
        assert not any(check.done() for check in checks)
        server.serve(SumEncoder())
        for check in checks:
            check.result()


@pytest.mark.usefixtures("no_threads_left")
def test_clients_of_an_encoder_that_never_came_are_told() -> None:
    with ThreadPoolExecutor(1) as clients:
        with EncoderServer(batch_shape=SHAPE, n_clients=1) as server:
            waiting = clients.submit(RemoteEncoder, server.addresses[0])
            time.sleep(0.1)
        with pytest.raises(EncoderError, match="its process has ended"):
            waiting.result()


@pytest.mark.usefixtures("no_threads_left")
def test_batches_for_a_gpu_pass_through_few_pinned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[tuple[int, ...]] = []

    def allocate(pool: PinnedBufferPool, shape: tuple[int, ...]) -> RgbArray:
        allocated.append(shape)
        return np.empty(shape, np.uint8)

    monkeypatch.setattr(PinnedBufferPool, "_allocate", allocate)
    encoder = SumEncoder()
    encoder.device = torch.device("cuda")
    with serve(encoder, n_clients=3) as server, ThreadPoolExecutor(3) as clients:
        list(clients.map(check_client, server.addresses, range(3)))
    assert 1 <= len(allocated) <= 4 < encoder.n_batches
    assert set(allocated) == {SHAPE}


@pytest.mark.usefixtures("no_threads_left")
def test_a_batch_for_which_there_is_no_pinned_memory_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = SumEncoder()
    encoder.device = torch.device("cuda")
    n_left = iter([False, True])

    def allocate(pool: PinnedBufferPool, shape: tuple[int, ...]) -> RgbArray:
        if next(n_left):
            return np.empty(shape, np.uint8)
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(PinnedBufferPool, "_allocate", allocate)
    with serve(encoder) as server:
        remote = RemoteEncoder(server.addresses[0])
        with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
            remote.embed(batches(9)[0])
        np.testing.assert_array_equal(remote.embed(batches(9)[1]), sums(batches(9)[1]))


@pytest.mark.usefixtures("no_threads_left")
def test_a_smaller_batch_is_embedded_as_it_is() -> None:
    with serve(SumEncoder()) as server:
        remote = RemoteEncoder(server.addresses[0])
        (full, *_) = batches(1)
        np.testing.assert_array_equal(remote.embed(full), sums(full))

        class Small(SumEncoder):
            def embed_async(self, tiles: RgbArray) -> ConcatResult:
                return ConcatResult([AsyncResult(sums(tiles), None)], axis=0)

    with serve(Small()) as server:
        remote = RemoteEncoder(server.addresses[1])
        remote.embed(full)
        assert remote.embed(full[:3]).tolist() == sums(full[:3]).tolist()


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EncoderError("the GPU", actual="out of memory", hint="End others."), "the GPU: out of"),
        (ZeroDivisionError("no\nsuch number"), "ZeroDivisionError: no such number"),
    ],
)
def test_an_error_comes_with_its_batch_only(error: Exception, expected: str) -> None:
    with serve(SumEncoder(trap=255, error=error)) as server:
        remote, other = (RemoteEncoder(address) for address in server.addresses)
        good, bad = batches(2, 2)
        bad[0, 0, 0, 0] = 255
        results = [remote.embed_async(bad), remote.embed_async(good)]
        with pytest.raises(
            EncoderError if isinstance(error, EncoderError) else RuntimeError
        ) as got:
            results[0].wait()
        assert expected in str(got.value)
        np.testing.assert_array_equal(results[1].wait(), sums(good))
        np.testing.assert_array_equal(other.embed(good), sums(good))


@pytest.mark.usefixtures("no_threads_left")
def test_a_client_may_have_two_batches_under_way_and_waits_with_the_third() -> None:
    encoder = SumEncoder()
    encoder.late.clear()
    with serve(encoder) as server, ThreadPoolExecutor(1) as sender:
        remote = RemoteEncoder(server.addresses[0])
        first, second = (remote.embed_async(tiles) for tiles in batches(3, 2))
        third = sender.submit(remote.embed_async, batches(3)[2])
        time.sleep(0.1)
        assert (first.is_ready, second.is_ready, third.done()) == (False, False, False)
        encoder.late.set()
        for result, tiles in zip((first, second, third.result()), batches(3, 3), strict=True):
            np.testing.assert_array_equal(result.wait(), sums(tiles))


def _die_with_a_batch_under_way(address: EncoderAddress) -> None:
    remote = RemoteEncoder(address)
    remote.embed_async(batches(4)[0])
    remote.embed_async(batches(4)[1])


@pytest.mark.slow
@pytest.mark.usefixtures("no_threads_left")
def test_a_client_that_died_is_replaced_by_another() -> None:
    encoder = SumEncoder()
    encoder.late.clear()
    with serve(encoder, n_clients=1) as server:
        process = get_context("spawn").Process(
            target=_die_with_a_batch_under_way, args=server.addresses
        )
        process.start()
        process.join(300)
        assert process.exitcode == 0
        encoder.late.set()
        check_client(server.addresses[0], 5)


@pytest.mark.usefixtures("no_threads_left")
def test_who_does_not_know_the_key_is_refused_and_others_are_served() -> None:
    with serve(SumEncoder()) as server:
        address = server.addresses[0]
        with pytest.raises(AuthenticationError, match="digest"):
            Client(address.address, authkey=b"guessed")
        check_client(address, 6)


@pytest.mark.usefixtures("no_threads_left")
def test_all_batches_of_an_encoder_that_has_gone_fail() -> None:
    with serve(SumEncoder()) as server:
        remote = RemoteEncoder(server.addresses[0])
        remote.embed(batches(7)[0])
    for tiles in batches(7):
        with pytest.raises(EncoderError, match="its process has ended"):
            remote.embed_async(tiles).wait()


@pytest.mark.usefixtures("no_threads_left")
def test_embeddings_of_another_length_fail_their_batches() -> None:
    encoder = SumEncoder()
    encoder.dim = 5
    with serve(encoder) as server:
        remote = RemoteEncoder(server.addresses[0])
        for tiles in batches(8, 3):
            with pytest.raises(ValueError, match="broadcast"):
                remote.embed(tiles)


@pytest.mark.usefixtures("no_threads_left")
def test_batches_that_wait_when_it_ends_keep_no_thread() -> None:
    encoder = SumEncoder()
    encoder.late.clear()
    with ThreadPoolExecutor(1) as waiting:
        with serve(encoder, n_clients=6) as server:
            remotes = [RemoteEncoder(address) for address in server.addresses]
            results = [remote.embed_async(tiles) for remote in remotes for tiles in batches(9, 2)]
            first_fails = waiting.submit(_fails, results[0])
            first_fails.add_done_callback(lambda _: encoder.late.set())  # once it has hung up
        assert first_fails.result()
    for result in results:
        _fails(result)  # or has arrived; none is waited for in vain


def _fails(result: ConcatResult) -> bool:
    try:
        result.wait()
    except EncoderError:
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the socket has a path elsewhere")
@pytest.mark.usefixtures("no_threads_left")
def test_a_stranger_that_says_nothing_keeps_nobody_out() -> None:
    with serve(SumEncoder()) as server, socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(server.addresses[0].address)
        check_client(server.addresses[0], 10)


@pytest.mark.usefixtures("no_threads_left")
def test_a_long_path_of_temporary_files_does_not_keep_clients_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / ("a long name" * 10)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with serve(SumEncoder()) as server:
        check_client(server.addresses[0], 8)
