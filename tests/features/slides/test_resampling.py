from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from features.slides.backends.image import ImageSlide
from features.slides.backends.ome_zarr import OmeZarrSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.base import Level
from features.slides.resampling import (
    AreaAccumulator,
    cell_edges,
    mean_cells,
    nearest_level,
    resize_area,
)
from tests.features.slides.slide_files import write_tiff, write_zarr

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
STEEP = np.add.outer(np.arange(382) * 0.4, np.arange(509) * 0.2)
SMOOTH = np.stack([STEEP, 254 - STEEP, 128 + 60 * np.sin(STEEP / 40)], axis=-1).astype(np.uint8)
"""A smooth image whose edges are neither white nor like their neighbours."""


def exact_mean(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Means between borders that are whole pixels, of shape (len(rows) - 1, len(columns) - 1)."""
    rows, columns = rows.astype(int), columns.astype(int)
    sums = np.add.reduceat(pixels.astype(np.float64), rows[:-1], axis=0)
    sums = np.add.reduceat(sums, columns[:-1], axis=1)
    return sums / (np.diff(rows)[:, None] * np.diff(columns))[..., None]


def shrunk(pixels: np.ndarray, factor: float) -> np.ndarray:
    """The whole image, each side divided by a factor and rounded."""
    height, width = pixels.shape[:2]
    return resize_area(
        pixels, rows=(0, height), columns=(0, width),
        height_px=round(height / factor), width_px=round(width / factor),
    )  # fmt: skip


def write_png(path: Path, levels: Sequence[np.ndarray]) -> Path:
    Image.fromarray(levels[0]).save(path)
    return path


TILED = {"tile": (64, 64), "compression": "lzw"}
READERS = {
    "tiff": (TiffSlide, partial(write_tiff, **TILED), "s.tif"),
    "openslide": (OpenSlideSlide, partial(write_tiff, **TILED), "s.tif"),
    "zarr": (OmeZarrSlide, partial(write_zarr, chunk_px=64), "s.zarr"),
    "image": (ImageSlide, write_png, "s.png"),
}


@pytest.mark.parametrize("factors", [(), (2, 4), (1.5, 3.7)], ids=str)
@pytest.mark.parametrize(("reader", "write", "name"), READERS.values(), ids=READERS)
def test_an_overview_is_the_mean_of_what_each_pixel_covers_up_to_the_edges(
    tmp_path: Path,
    factors: tuple[float, ...],
    reader: Callable[[Path], Any],
    write: Callable[[Path, Sequence[np.ndarray]], Path],
    name: str,
) -> None:
    levels = [SMOOTH, *(shrunk(SMOOTH, factor) for factor in factors)]
    with closing(reader(write(tmp_path / name, levels))) as slide:
        for downsample in (1, 2, 3, 4, 5, 7, 16, 60, 1000):
            result = slide.overview(downsample=downsample)
            expected = exact_mean(SMOOTH, cell_edges(382, downsample), cell_edges(509, downsample))
            assert result.dtype == np.uint8
            assert result.shape == expected.shape
            difference = np.abs(result - expected)
            assert difference.max() < 2.5, downsample
            assert difference.mean() < 0.6, downsample


@settings(max_examples=30)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    block=st.integers(1, 50),
    cuts=st.tuples(st.integers(0, 39), st.integers(0, 39)),
)
def test_means_do_not_depend_on_how_the_image_is_cut(
    height: int, width: int, block: int, cuts: tuple[int, int]
) -> None:
    pixels = PIXELS[:height, :width]
    cells = {"rows": cell_edges(height, block), "columns": cell_edges(width, block)}
    means = AreaAccumulator(**cells)
    y_cut, x_cut = min(cuts[0], height - 1), min(cuts[1], width - 1)
    for top, bottom in ((y_cut, height), (0, y_cut)):
        for left, right in ((x_cut, width), (0, x_cut)):
            if bottom > top and right > left:
                means.add(pixels[top:bottom, left:right], x_px=left, y_px=top)
    result = means.mean_image(fill_rgb=(0, 0, 0))
    np.testing.assert_array_equal(result, np.rint(exact_mean(pixels, **cells)))


@settings(max_examples=30)
@given(step=st.floats(0.7, 30), cut=st.integers(1, 59))
def test_cells_whose_borders_cut_pixels_are_weighed_by_area(step: float, cut: int) -> None:
    edges = np.append(np.arange(0, 59.9, step), 60.0)
    means = AreaAccumulator(rows=edges, columns=edges)
    for top, bottom in ((0, cut), (cut, 60)):
        means.add(PIXELS[top:bottom, :60], x_px=0, y_px=top)
    summed = np.pad(
        PIXELS[:60, :60].astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0))
    )
    low = np.minimum(edges.astype(int), 59)
    part = (edges - low)[:, None]
    by_rows = (summed[low].T * (1 - part).T + summed[low + 1].T * part.T).T
    integral = (by_rows[:, low].swapaxes(0, 1).T * (1 - part).ravel()).T
    integral = integral + (by_rows[:, low + 1].swapaxes(0, 1).T * part.ravel()).T
    sums = np.diff(np.diff(integral.swapaxes(0, 1), axis=0), axis=1)
    areas = np.diff(edges)[:, None] * np.diff(edges)
    np.testing.assert_allclose(
        means.mean_image(fill_rgb=(0, 0, 0)), sums / areas[..., None], atol=0.51
    )


def test_what_was_not_added_has_the_colour_of_the_glass() -> None:
    means = AreaAccumulator(rows=cell_edges(20, 10), columns=cell_edges(20, 10))
    means.add(np.full((10, 5, 3), 100, np.uint8), x_px=0, y_px=0)
    result = means.mean_image(fill_rgb=(200, 210, 220))
    assert result[0, 0].tolist() == [150, 155, 160]
    assert result[1, 1].tolist() == [200, 210, 220]


@pytest.mark.parametrize("side_px", [256, 258, 600, 1024])
def test_a_cell_of_many_white_pixels_is_white(side_px: int) -> None:
    edges = cell_edges(side_px, side_px)
    means = AreaAccumulator(rows=edges, columns=edges)
    means.add(np.full((side_px, side_px, 3), 255, np.uint8), x_px=0, y_px=0)
    assert means.mean_image(fill_rgb=(0, 0, 0)).tolist() == [[[255, 255, 255]]]


def test_large_pieces_are_added_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    images = []
    for at_once_px in (10, 71, 10_000):
        monkeypatch.setattr("features.slides.resampling._BAND_PX", at_once_px)
        means = AreaAccumulator(rows=cell_edges(60, 7), columns=cell_edges(70, 7))
        means.add(PIXELS, x_px=0, y_px=0)
        images.append(means.mean_image(fill_rgb=(0, 0, 0)))
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[1], images[2])


def test_a_window_of_an_image_is_averaged_and_a_whole_one_untouched() -> None:
    size = {"height_px": 60, "width_px": 70}
    same = resize_area(PIXELS, rows=(0, 60), columns=(0, 70), **size)
    np.testing.assert_array_equal(same, PIXELS)
    result = resize_area(PIXELS, rows=(1.5, 3.5), columns=(2, 6), height_px=1, width_px=2)
    rows = (PIXELS[1] / 2.0 + PIXELS[2] + PIXELS[3] / 2.0) / 2
    np.testing.assert_allclose(result[0], [rows[2:4].mean(0), rows[4:6].mean(0)], atol=0.51)


@pytest.mark.parametrize(("height", "width"), [(30, 35), (1, 1), (7, 2)])
def test_half_size_is_as_exact_as_any_other(height: int, width: int) -> None:
    pixels = PIXELS[: 2 * height, : 2 * width]
    half = resize_area(pixels, rows=(0.0, 2.0 * height), columns=(0.0, 2.0 * width),
                       height_px=height, width_px=width)  # fmt: skip
    means = pixels.reshape(height, 2, width, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(half, np.rint(means))  # halves to even
    wider = np.pad(pixels, ((0, 1), (0, 1), (0, 0)))  # a window of it goes the general way
    same = resize_area(wider, rows=(0.0, 2.0 * height), columns=(0.0, 2.0 * width),
                       height_px=height, width_px=width)  # fmt: skip
    np.testing.assert_array_equal(same, half)


def test_the_coarsest_level_that_is_fine_enough_is_nearest() -> None:
    levels = [Level(width_px=9, height_px=9, downsample=d) for d in (1.0, 4.02, 16.0)]
    asked = {0.5: 0, 1: 0, 3.9: 0, 4: 1, 15: 1, 16: 2, 99: 2}
    assert {downsample: nearest_level(levels, downsample) for downsample in asked} == asked


@pytest.mark.parametrize(("height", "width", "cell_px"), [(64, 96, 8), (60, 66, 6), (61, 70, 7)])
def test_means_of_square_cells_are_those_of_the_accumulator(
    height: int, width: int, cell_px: int
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    means = AreaAccumulator(rows=cell_edges(height, cell_px), columns=cell_edges(width, cell_px))
    means.add(pixels, x_px=0, y_px=0)
    np.testing.assert_array_equal(mean_cells(pixels, cell_px), means.mean_image(fill_rgb=(0, 0, 0)))
