"""Embedding of tiles in batches that span slides."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from features.embedding.batching import SlideBuffer, decoding_pool, encode_slides
from features.encoders.base import AsyncResult, ConcatResult
from features.errors import TileError
from features.slides.base import RgbArray
from features.slides.resolution import Resolution
from features.tiling.augmentation import AugmentationConfig
from features.tiling.slide_tiles import SlideTiles
from features.tiling.tissue import TissueMask
from features.tiling.transforms import TileTransform
from tests.fakes import FakeSlide
from tests.features.tiling.test_grid import grid_at

RESOLUTION = Resolution(mpp_x=0.25, mpp_y=0.25, source="assumed")


class MeanEncoder:
    """Encoder that returns the mean of each channel, and records the sizes of its batches."""

    dim = 3
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        self.sizes.append(len(tiles))
        means = torch.from_numpy(tiles.mean(axis=(1, 2)).astype(np.float32))
        return ConcatResult([AsyncResult(means, None)], axis=0)


def make_buffer(
    n_tiles: int, *, seed: int = 0, broken: tuple[int, ...] = (), bright: tuple[int, ...] = (),
    n_views: int = 0,
) -> SlideBuffer:  # fmt: skip
    """Return the buffer of a slide of 32 px tiles in a row; tiles in ``bright`` are white."""
    pixels = np.random.default_rng(seed).integers(0, 200, (32, 32 * max(1, n_tiles), 3), np.uint8)
    for index in bright:
        pixels[:, 32 * index : 32 * (index + 1)] = 255
    slide = FakeSlide(pixels, broken=tuple((32 * index, 0, 32, 32) for index in broken))
    corners = np.array([[32 * index, 0] for index in range(n_tiles)], np.int64).reshape(-1, 2)
    grid = replace(
        grid_at(0, 0, 32.0), coords_px0=corners, tissue_fraction=np.ones(n_tiles, np.float32)
    )
    tissue = TissueMask(
        mask=np.ones((1, 1), bool), downsample=32, background_rgb=(255, 255, 255), threshold=12.0
    )
    slide_tiles = SlideTiles(
        slide=slide, resolution=RESOLUTION, overview=pixels[:1, :1], tissue=tissue, grid=grid,
        n_tissue_tiles=n_tiles, detect_artifact=lambda tile: "bright" if tile.min() == 255 else "",
    )  # fmt: skip
    if not n_views:
        return SlideBuffer(slide_tiles, dim=3)
    return SlideBuffer(
        slide_tiles,
        dim=3,
        transform=TileTransform(slide_tiles, views=AugmentationConfig(n_views=n_views)),
    )


@pytest.mark.parametrize("hangs_in", ["opening", "reading"])
def test_a_slide_is_finished_while_the_next_one_hangs(
    hangs_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.embedding.batching._IDLE_S", 0.05)
    answers = threading.Event()
    first, second = make_buffer(3), make_buffer(2, seed=1)
    read_part = second.read_part

    def hang(indices: range) -> object:
        assert answers.wait(timeout=30)
        return read_part(indices)

    def open_both() -> Iterator[SlideBuffer]:
        yield first
        if hangs_in == "opening":
            assert answers.wait(timeout=30)
        else:
            monkeypatch.setattr(second, "read_part", hang)
        yield second

    encoder = MeanEncoder()
    with decoding_pool(encoder, 2) as pool:
        done = encode_slides(
            open_both(), encoder, batch_tiles=4, pool=pool, on_tiles=lambda _: None
        )
        assert next(done) is first
        assert not answers.is_set()
        answers.set()
        assert list(done) == [second]


def embed(buffers: object, encoder: MeanEncoder, batch_tiles: int = 4) -> list[SlideBuffer]:
    done: list[int] = []
    with decoding_pool(encoder, 2) as pool:
        finished = list(
            encode_slides(
                buffers, encoder, batch_tiles=batch_tiles, pool=pool, on_tiles=done.append
            )
        )
    assert sum(done) == sum(len(buffer.instances.grid.coords_px0) for buffer in finished)
    return finished


def test_batches_go_over_the_borders_of_slides() -> None:
    encoder = MeanEncoder()
    buffers = [make_buffer(n, seed=n) for n in (3, 1, 6, 0, 2)]
    finished = embed(buffers, encoder)
    assert encoder.sizes == [4, 4, 4]
    assert set(map(id, finished)) == set(map(id, buffers))
    for buffer in buffers:
        pixels = buffer.instances.slide._pixels[0]
        expected = pixels.reshape(32, -1, 32, 3).mean(axis=(0, 2))[: len(buffer.kept)]
        np.testing.assert_allclose(buffer.features, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_tiles", [1, 4, 64])
def test_what_is_embedded_does_not_depend_on_the_batch(batch_tiles: int) -> None:
    finished = embed([make_buffer(9, seed=1), make_buffer(5, seed=2)], MeanEncoder(), batch_tiles)
    again = embed([make_buffer(9, seed=1), make_buffer(5, seed=2)], MeanEncoder(), 3)
    for one, other in zip(finished, again, strict=True):
        np.testing.assert_array_equal(one.features, other.features)


def test_broken_tiles_and_rejected_tiles_are_counted_by_index() -> None:
    buffer = make_buffer(6, broken=(1,), bright=(4, 5))
    embed([buffer], MeanEncoder())
    assert buffer.kept.tolist() == [0, 2, 3]
    assert list(buffer.failures) == [1]
    assert buffer.rejected == {4: "bright", 5: "bright"}
    assert buffer.error is None


def test_an_error_of_the_encoder_fails_only_the_slides_of_its_batch() -> None:
    class Failing(MeanEncoder):
        def embed_async(self, tiles: RgbArray) -> ConcatResult:
            if len(self.sizes) == 1:
                self.sizes.append(0)
                raise RuntimeError("out of memory")
            return super().embed_async(tiles)

    buffers = [make_buffer(4, seed=1), make_buffer(4, seed=2), make_buffer(4, seed=3)]
    finished = embed(buffers, Failing())
    assert [buffer.error is None for buffer in buffers] == [True, False, True]
    assert len(finished) == 3


def test_an_unforeseen_error_of_a_tile_fails_only_its_slide() -> None:
    buffers = [make_buffer(6, seed=number) for number in range(3)]
    slide = buffers[1].instances.slide
    read = slide.read
    slide.read = lambda **where: 1 / 0 if where["x_px"] == 64 else read(**where)  # type: ignore[method-assign]
    embed(buffers, MeanEncoder())
    assert [type(buffer.error) for buffer in buffers] == [type(None), ZeroDivisionError, type(None)]
    assert buffers[1].kept.tolist() == [0, 1, 3, 4, 5]


def test_tiles_are_handed_to_threads_several_at_a_time() -> None:
    parts: list[range] = []

    class Recording(SlideBuffer[SlideTiles]):
        def read_part(self, indices: range) -> list[RgbArray | str | Exception]:
            parts.append(indices)
            return super().read_part(indices)

    buffer = Recording(make_buffer(10).instances, dim=3)
    embed([buffer], MeanEncoder())
    assert sorted(index for part in parts for index in part) == list(range(10))
    assert len(parts) <= 5


def test_a_slide_releases_memory_once_its_tiles_are_read_and_before_they_are_embedded() -> None:
    events: list[str] = []
    all_released = threading.Event()

    class Recording(SlideBuffer[SlideTiles]):
        def read(self, index: int) -> RgbArray | str | TileError:
            events.append("read")
            return super().read(index)

    def release() -> None:
        events.append("release")
        if events.count("release") == 3:
            all_released.set()

    class Waiting(MeanEncoder):
        def embed_async(self, tiles: RgbArray) -> ConcatResult:
            assert all_released.wait(timeout=30)
            return super().embed_async(tiles)

    made = [
        make_buffer(6),
        make_buffer(5, seed=1, broken=(4,)),
        make_buffer(1, seed=2, bright=(0,)),
    ]
    for buffer in made:
        buffer.instances.slide.release_memory = release  # type: ignore[method-assign]
    embed([Recording(buffer.instances, dim=3) for buffer in made], Waiting(), batch_tiles=16)
    ends = [number for number, event in enumerate(events) if event == "release"]
    assert all(events[:end].count("read") >= n for end, n in zip(ends, (6, 11, 12), strict=True))


def test_slides_are_taken_as_they_are_needed() -> None:
    taken = []

    def endless() -> Iterator[SlideBuffer]:
        for number in range(10_000):
            taken.append(number)
            yield make_buffer(8, seed=number)

    encoder = MeanEncoder()
    with decoding_pool(encoder, 2) as pool:
        stream = encode_slides(
            endless(), encoder, batch_tiles=4, pool=pool, on_tiles=lambda n: None
        )
        for _ in range(5):
            next(stream)
        stream.close()
    assert len(taken) < 20
    assert not any(t.name in {"reading", "encoder"} for t in threading.enumerate())


def test_an_error_among_the_slides_reaches_the_caller() -> None:
    def broken() -> Iterator[SlideBuffer]:
        yield make_buffer(2)
        raise ValueError("no more slides")

    with pytest.raises(ValueError, match="no more slides"):
        embed(broken(), MeanEncoder())


@pytest.fixture
def a_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the content hash: the slides here have no file."""
    monkeypatch.setattr("features.tiling.transforms.content_hash", lambda path: "0" * 64)


@pytest.mark.usefixtures("a_content")
@pytest.mark.parametrize("batch_tiles", [1, 4, 64])
def test_views_follow_the_plain_tile_whatever_the_batch(batch_tiles: int) -> None:
    buffer = make_buffer(6, seed=1, broken=(1,), bright=(4,), n_views=3)
    (result,) = embed([buffer], MeanEncoder(), batch_tiles)
    plain, again = (
        make_buffer(6, seed=1, broken=(1,), bright=(4,)),
        make_buffer(6, seed=1, n_views=3),
    )
    embed([plain, again], MeanEncoder(), 3)
    np.testing.assert_array_equal(result.features, plain.features)
    assert result.kept.tolist() == [0, 2, 3, 5]
    assert result.views is not None
    assert again.views is not None
    assert result.views.shape == (4, 3, 3)
    np.testing.assert_array_equal(result.views, again.views[[0, 2, 3, 5]])
    assert plain.views is None


@pytest.mark.usefixtures("a_content")
def test_batches_with_views_are_as_full_as_without() -> None:
    encoder = MeanEncoder()
    embed([make_buffer(3, seed=1, n_views=2), make_buffer(2, seed=2, n_views=2)], encoder)
    assert encoder.sizes == [4, 4, 4, 3]


@pytest.mark.usefixtures("a_content")
def test_a_tile_that_the_filter_drops_has_no_views_either() -> None:
    class DropBright:
        def predict_drop(self, embeddings: np.ndarray) -> np.ndarray:
            return embeddings[:, 0] > 250

    plain = make_buffer(6, seed=1, bright=(4,), n_views=2)
    slide_tiles = replace(plain.instances, detect_artifact=lambda tile: "")
    transform = TileTransform(slide_tiles, views=AugmentationConfig(n_views=2))
    buffer = SlideBuffer(slide_tiles, dim=3, transform=transform, tile_filter=DropBright())  # type: ignore[arg-type]
    embed([buffer], MeanEncoder(), 4)
    assert buffer.rejected == {4: "filter"}
    assert buffer.kept.tolist() == [0, 1, 2, 3, 5]
    assert buffer.views is not None
    assert len(buffer.features) == len(buffer.views) == 5
    embed([plain], MeanEncoder(), 3)
    np.testing.assert_array_equal(buffer.views, plain.views)


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is of threads on Linux only")
def test_decoding_threads_yield_to_a_command_that_was_run_with_nice() -> None:
    niceness: list[int] = []

    def run() -> None:
        os.nice(5)  # of this thread: only root may go back
        with decoding_pool(MeanEncoder(), 1) as pool:
            niceness.append(pool.submit(os.getpriority, os.PRIO_PROCESS, 0).result())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert niceness == [min(19, before + 8)]
