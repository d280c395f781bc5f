"""Tiles of several slides through the backbone, in batches across slides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from features.embedding.batching import SlideBuffer, encode_slides
from features.encoders.transfer import AsyncResult, ConcatResult
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
    """The mean of each channel; remembers the sizes of its batches."""

    dim = 3
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def embed_async(self, tiles: RgbArray) -> ConcatResult:
        self.sizes.append(len(tiles))
        means = torch.from_numpy(tiles.mean(axis=(1, 2)).astype(np.float32))
        return ConcatResult([AsyncResult(means, None)], axis=0)


def work_on(
    n_tiles: int, *, seed: int = 0, broken: tuple[int, ...] = (), bright: tuple[int, ...] = (),
    n_views: int = 0,
) -> SlideBuffer:  # fmt: skip
    """A slide of 32 px tiles in a row; tiles in ``bright`` are white."""
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
    survey = SlideTiles(
        slide=slide, resolution=RESOLUTION, overview=pixels[:1, :1], tissue=tissue, grid=grid,
        n_tissue_tiles=n_tiles, detect_artifact=lambda tile: "bright" if tile.min() == 255 else "",
    )  # fmt: skip
    if not n_views:
        return SlideBuffer(survey, dim=3)
    return SlideBuffer(
        survey, dim=3, transform=TileTransform(survey, views=AugmentationConfig(n_views=n_views))
    )


def embed(works: object, encoder: MeanEncoder, batch_tiles: int = 4) -> list[SlideBuffer]:
    done: list[int] = []
    found = list(
        encode_slides(works, encoder, batch_tiles=batch_tiles, n_workers=2, on_tiles=done.append)
    )
    assert sum(done) == sum(len(work.instances.grid.coords_px0) for work in found)
    return found


def test_batches_go_over_the_borders_of_slides() -> None:
    encoder = MeanEncoder()
    works = [work_on(n, seed=n) for n in (3, 1, 6, 0, 2)]
    found = embed(works, encoder)
    assert encoder.sizes == [4, 4, 4]
    assert set(map(id, found)) == set(map(id, works))
    for work in works:
        picture = work.instances.slide._pixels[0]
        expected = picture.reshape(32, -1, 32, 3).mean(axis=(0, 2))[: len(work.kept)]
        np.testing.assert_allclose(work.features, expected, rtol=1e-5)


@pytest.mark.parametrize("batch_tiles", [1, 4, 64])
def test_what_is_embedded_does_not_depend_on_the_batch(batch_tiles: int) -> None:
    found = embed([work_on(9, seed=1), work_on(5, seed=2)], MeanEncoder(), batch_tiles)
    again = embed([work_on(9, seed=1), work_on(5, seed=2)], MeanEncoder(), 3)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.features, other.features)


def test_broken_tiles_and_those_that_rules_leave_out_are_counted_by_place() -> None:
    work = work_on(6, broken=(1,), bright=(4, 5))
    embed([work], MeanEncoder())
    assert work.kept.tolist() == [0, 2, 3]
    assert list(work.failures) == [1]
    assert work.rejected == {4: "bright", 5: "bright"}
    assert work.error is None


def test_a_backbone_that_fails_is_the_fault_of_the_slides_in_its_batch() -> None:
    class Failing(MeanEncoder):
        def embed_async(self, tiles: RgbArray) -> ConcatResult:
            if len(self.sizes) == 1:
                self.sizes.append(0)
                raise RuntimeError("out of memory")
            return super().embed_async(tiles)

    works = [work_on(4, seed=1), work_on(4, seed=2), work_on(4, seed=3)]
    found = embed(works, Failing())
    assert [work.error is None for work in works] == [True, False, True]
    assert len(found) == 3


def test_slides_are_taken_as_they_are_needed() -> None:
    taken = []

    def endless() -> Iterator[SlideBuffer]:
        for number in range(10_000):
            taken.append(number)
            yield work_on(8, seed=number)

    stream = encode_slides(
        endless(), MeanEncoder(), batch_tiles=4, n_workers=2, on_tiles=lambda n: None
    )
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(taken) < 20
    assert not any(t.name in {"reading", "encoder"} for t in threading.enumerate())


def test_an_error_among_the_slides_reaches_the_caller() -> None:
    def broken() -> Iterator[SlideBuffer]:
        yield work_on(2)
        raise ValueError("no more slides")

    with pytest.raises(ValueError, match="no more slides"):
        embed(broken(), MeanEncoder())


@pytest.fixture
def a_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slides here have no file whose content could be told."""
    monkeypatch.setattr("features.tiling.transforms.content_hash", lambda path: "0" * 64)


@pytest.mark.usefixtures("a_content")
@pytest.mark.parametrize("batch_tiles", [1, 4, 64])
def test_views_follow_the_plain_tile_whatever_the_batch(batch_tiles: int) -> None:
    work = work_on(6, seed=1, broken=(1,), bright=(4,), n_views=3)
    (found,) = embed([work], MeanEncoder(), batch_tiles)
    plain, again = work_on(6, seed=1, broken=(1,), bright=(4,)), work_on(6, seed=1, n_views=3)
    embed([plain, again], MeanEncoder(), 3)
    np.testing.assert_array_equal(found.features, plain.features)
    assert found.kept.tolist() == [0, 2, 3, 5]
    assert found.views is not None
    assert again.views is not None
    assert found.views.shape == (4, 3, 3)
    np.testing.assert_array_equal(found.views, again.views[[0, 2, 3, 5]])
    assert plain.views is None


@pytest.mark.usefixtures("a_content")
def test_batches_with_views_are_as_full_as_without() -> None:
    encoder = MeanEncoder()
    embed([work_on(3, seed=1, n_views=2), work_on(2, seed=2, n_views=2)], encoder)
    assert encoder.sizes == [4, 4, 4, 3]


@pytest.mark.usefixtures("a_content")
def test_a_tile_that_the_filter_drops_has_no_views_either() -> None:
    class Sieve:
        def predict_drop(self, embeddings: np.ndarray) -> np.ndarray:
            return embeddings[:, 0] > 250

    plain = work_on(6, seed=1, bright=(4,), n_views=2)
    survey = replace(plain.instances, detect_artifact=lambda tile: "")
    transform = TileTransform(survey, views=AugmentationConfig(n_views=2))
    work = SlideBuffer(survey, dim=3, transform=transform, tile_filter=Sieve())  # type: ignore[arg-type]
    embed([work], MeanEncoder(), 4)
    assert work.rejected == {4: "filter"}
    assert work.kept.tolist() == [0, 1, 2, 3, 5]
    assert work.views is not None
    assert len(work.features) == len(work.views) == 5
    embed([plain], MeanEncoder(), 3)
    np.testing.assert_array_equal(work.views, plain.views)
