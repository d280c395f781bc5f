from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.slides.base import RgbArray
from features.slides.reader import open_slide
from features.slides.synthetic import write_slide
from features.visualization.deepzoom import (
    ZOOM_TILE_PX,
    DeepZoom,
    DeepZoomReader,
    Region,
    colorize_region,
)
from features.visualization.heatmap import ColorScale, TileLayout, apply_colormap, rasterize
from tests.fakes import FakeSlide
from tests.features.slides.slide_files import write_tiff

SCALE = ColorScale(palette="viridis", low=0.0, high=100.0, words="percentile")


def paint(width: int, height: int) -> RgbArray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mean_of_squares(pixels: RgbArray, downsample: int) -> np.ndarray:
    """Reference: the mean of every square, and of what is left of it at the edges."""
    sums, areas = pixels.astype(np.int64), np.ones(pixels.shape, np.int64)
    for axis in range(2):
        starts = np.arange(0, pixels.shape[axis], downsample)
        sums = np.add.reduceat(sums, starts, axis=axis)
        areas = np.add.reduceat(areas, starts, axis=axis)
    return sums / areas


def all_windows(zoom: DeepZoom, level: int) -> list[tuple[int, int, Region]]:
    side = -(-max(zoom.width_px0, zoom.height_px0) // ZOOM_TILE_PX)
    result = []
    for row in range(side + 1):
        for column in range(side + 1):
            if window := zoom.region(level, column, row):
                result.append((column, row, window))
    return result


def whole_level(slide_zoom: DeepZoomReader, level: int) -> RgbArray:
    zoom = slide_zoom.zoom
    downsample = 1 << (zoom.last_level - level)
    pixels = np.zeros(
        (-(-zoom.height_px0 // downsample), -(-zoom.width_px0 // downsample), 3), np.uint8
    )
    for column, row, window in all_windows(zoom, level):
        top, left = row * ZOOM_TILE_PX, column * ZOOM_TILE_PX
        pixels[top : top + window.height_px, left : left + window.width_px] = slide_zoom.read(
            window
        )
    return pixels


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), level=st.integers(0, 13))
def test_windows_of_a_level_cover_it_once(width: int, height: int, level: int) -> None:
    zoom = DeepZoom(width_px0=width, height_px0=height)
    windows = all_windows(zoom, level)
    if level > zoom.last_level:
        assert not windows
        return
    downsample = 1 << (zoom.last_level - level)
    area = sum(window.width_px * window.height_px for _, _, window in windows)
    assert area == -(-width // downsample) * -(-height // downsample)
    assert all(window.downsample == downsample for _, _, window in windows)
    assert zoom.region(0, 0, 0) == Region(
        downsample=1 << zoom.last_level, left_px=0, top_px=0, width_px=1, height_px=1
    )


def test_there_are_no_windows_off_the_pyramid() -> None:
    zoom = DeepZoom(width_px0=1000, height_px0=300)
    for level, column, row in ((-1, 0, 0), (11, 0, 0), (10, 4, 0), (10, 0, 2), (10, -1, 0)):
        assert zoom.region(level, column, row) is None


@pytest.mark.parametrize("size", [(640, 384), (601, 377)])
def test_pixels_of_every_level_are_the_mean_of_the_slide(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = paint(*size)
    write_slide(tmp_path / "slide.tif", pixels)
    with closing(open_slide(tmp_path / "slide.tif")) as slide:
        zoomed = DeepZoomReader(slide)
        for level in range(zoomed.zoom.last_level + 1):
            downsample = 1 << (zoomed.zoom.last_level - level)
            expected = mean_of_squares(pixels, downsample)
            error = np.abs(whole_level(zoomed, level) - expected)
            n_rounded = 1 + max(0, int(np.log2(downsample / 8)))  # the overview is halved
            assert error.max() <= 0.51 * n_rounded


def test_a_pyramid_is_read_at_its_nearest_level_and_shows_what_level_0_does(
    tmp_path: Path,
) -> None:
    first = np.repeat(np.repeat(paint(160, 120), 4, axis=0), 4, axis=1)
    second = first[::4, ::4].copy()
    path = write_tiff(tmp_path / "slide.tif", (first, second), tile=(128, 128))
    with closing(open_slide(path)) as slide:
        assert len(slide.levels) == 2
        zoomed = DeepZoomReader(slide)
        for level in range(6, zoomed.zoom.last_level + 1):
            downsample = 1 << (zoomed.zoom.last_level - level)
            error = whole_level(zoomed, level) - mean_of_squares(first, downsample)
            assert np.abs(error).max() <= 0.51


def test_the_overview_is_read_once_and_low_levels_decode_nothing_else() -> None:
    slide = FakeSlide(paint(2048, 1024))
    asked: list[int] = []
    original = slide.overview
    slide.overview = lambda *, downsample: (
        asked.append(downsample)
        or original(  # type: ignore[method-assign,func-returns-value]
            downsample=downsample
        )
    )
    zoomed = DeepZoomReader(slide)
    for level in range(zoomed.zoom.last_level - 2):
        whole_level(zoomed, level)
    assert asked == [8]
    assert not slide.levels_read
    whole_level(zoomed, zoomed.zoom.last_level - 2)
    assert slide.levels_read


@given(
    width=st.integers(300, 3000), height=st.integers(300, 3000), span=st.floats(7, 500),
    level=st.integers(0, 12), seed=st.integers(0, 99),
)  # fmt: skip
def test_colours_lie_on_the_tiles_to_the_pixel(
    width: int, height: int, span: float, level: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    zoom = DeepZoom(width_px0=width, height_px0=height)
    level = min(level, zoom.last_level)
    coords = rng.integers(0, (width, height), (12, 2))
    layout = TileLayout(
        coords_px0=coords, tile_size_px0=(span, span), slide_size_px0=(width, height),
        mpp_xy=(0.25, 0.25), mpp_is_assumed=False,
    )  # fmt: skip
    values = rng.uniform(0, 100, 12)
    downsample = 1 << (zoom.last_level - level)
    numbers = rasterize(layout, values, downsample=downsample)
    for column, row, window in all_windows(zoom, level):
        top, left = row * ZOOM_TILE_PX, column * ZOOM_TILE_PX
        part = numbers[top : top + window.height_px, left : left + window.width_px]
        result = colorize_region(layout, values, window, scale=SCALE)
        on_tiles = np.isfinite(part)
        assert (result[..., 3] == np.where(on_tiles, 255, 0)).all()
        assert np.array_equal(result[on_tiles][:, :3], apply_colormap(part, SCALE)[on_tiles])
        assert not result[~on_tiles].any()
