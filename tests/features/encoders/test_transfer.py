"""Reused batch buffers, and asynchronous copies to and from a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from features.embedding.batching import decoding_pool, encode_slides
from features.encoders.base import AsyncResult, ConcatResult
from features.encoders.buffers import PinnedBufferPool
from features.encoders.transfer import DeviceTransfer
from features.slides.base import RgbArray
from tests.features.embedding.test_batching import MeanEncoder, embed, make_buffer

CPU = torch.device("cpu")


class LateEvent:
    """Event of a GPU that computes only in ``synchronize``."""

    def __init__(self, tiles: RgbArray, values: torch.Tensor) -> None:
        self.tiles, self.values = tiles, values
        self.happened = False

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        self.happened = True
        self.values[:] = torch.from_numpy(self.tiles.mean(axis=(1, 2)))


class LateEncoder(MeanEncoder):
    """Means of the channels, from the pixels at the time of ``wait``."""

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        self.sizes.append(len(tiles))
        values = torch.full((len(tiles), 3), torch.nan)
        return ConcatResult([AsyncResult(values, LateEvent(tiles, values))], axis=0)  # type: ignore[arg-type]


def random_tiles(n_tiles: int, seed: int = 0) -> list[RgbArray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n_tiles, 8, 8, 3), np.uint8))


def test_a_released_buffer_is_used_for_the_next_batch_of_its_shape() -> None:
    pool = PinnedBufferPool(pinned=False)
    first, second = (pool.take((4, 8, 8, 3)) for _ in range(2))
    assert not np.shares_memory(first, second)
    pool.release(first)
    assert not np.shares_memory(pool.take((3, 8, 8, 3)), first)
    assert pool.take((4, 8, 8, 3)) is first


def test_batches_whose_embeddings_come_late_keep_their_pixels_until_then() -> None:
    buffers = [make_buffer(n, seed=n) for n in (11, 3, 26, 8)]
    expected = embed([make_buffer(n, seed=n) for n in (11, 3, 26, 8)], MeanEncoder())
    for buffer, same in zip(embed(buffers, LateEncoder()), expected, strict=True):
        np.testing.assert_allclose(buffer.features, same.features, rtol=1e-5)


def test_an_error_on_the_device_fails_only_the_slides_of_its_batch() -> None:
    class Breaking(LateEvent):
        def synchronize(self) -> None:
            message = "the device fell off the bus"
            raise RuntimeError(message)

    class BreakingEncoder(MeanEncoder):
        def embed_async(self, tiles: RgbArray) -> ConcatResult:
            if len(self.sizes) != 1:
                return super().embed_async(tiles)
            self.sizes.append(0)
            values = torch.empty((len(tiles), 3))
            return ConcatResult([AsyncResult(values, Breaking(tiles, values))], axis=0)  # type: ignore[arg-type]

    buffers = [make_buffer(4, seed=1), make_buffer(4, seed=2), make_buffer(4, seed=3)]
    encoder = BreakingEncoder()
    with decoding_pool(encoder, 1) as pool:
        finished = list(
            encode_slides(buffers, encoder, batch_tiles=4, pool=pool, on_tiles=lambda n: None)
        )
    assert len(finished) == 3
    assert [str(buffer.error or "") for buffer in buffers] == [
        "",
        "the device fell off the bus",
        "",
    ]


def test_parts_are_concatenated_in_order() -> None:
    tiles = np.stack(random_tiles(2))
    values = torch.zeros((2, 3))
    late = AsyncResult(values, LateEvent(tiles, values))  # type: ignore[arg-type]
    ready = AsyncResult(torch.ones((2, 1)), None)
    result = ConcatResult([ready, late], axis=1)
    assert not result.is_ready
    expected = np.hstack([np.ones((2, 1)), tiles.mean(axis=(1, 2))])
    np.testing.assert_allclose(result.wait(), expected, rtol=1e-6)
    assert result.is_ready


def test_on_a_cpu_results_are_ready_at_once() -> None:
    tiles = np.stack(random_tiles(2))
    tiles.flags.writeable = False
    transfer = DeviceTransfer(CPU)
    np.testing.assert_array_equal(transfer.send(tiles).numpy(), tiles)
    result = transfer.fetch(torch.ones((2, 3), dtype=torch.float16))
    assert result.is_ready
    assert result.wait().dtype == np.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_batches_go_to_a_gpu_and_come_back_whole() -> None:
    device = torch.device("cuda")
    pool, transfer = PinnedBufferPool(pinned=True), DeviceTransfer(device)
    results, expected = [], []
    for seed in range(50):
        batch = pool.take((64, 8, 8, 3))
        batch[:] = random_tiles(64, seed)
        assert torch.from_numpy(batch).is_pinned()
        sent = transfer.send(batch)
        results.append(transfer.fetch(sent.float().mean(dim=(1, 2))))
        expected.append(batch.mean(axis=(1, 2)))
        if len(results) % 5 == 0:
            results[-1].wait()
            pool.release(batch)
    for result, means in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.wait(), means, rtol=1e-5)
