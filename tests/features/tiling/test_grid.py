from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d

from features.errors import MilError, TileError
from features.slides.base import StatedMpp
from features.slides.resolution import Resolution, resolve_mpp
from features.tiling.grid import TileGrid, TileSettings, make_tile_grid, read_tile, subsample_tiles
from features.tiling.tissue import TissueMask
from tests.fakes import FakeSlide


def tissue_of(mask: np.ndarray, downsample: int = 16) -> TissueMask:
    return TissueMask(
        mask=mask, downsample=downsample, background_rgb=(255, 255, 255), threshold=24.0
    )


def at(mpp_x: float, mpp_y: float | None = None) -> Resolution:
    return Resolution(mpp_x=mpp_x, mpp_y=mpp_y or mpp_x, source="given")


@settings(max_examples=60)
@given(
    width=st.integers(40, 1500),
    height=st.integers(40, 1500),
    mpp=st.floats(0.2, 1.1),
    tile_px=st.integers(16, 256),
    overlap=st.floats(0, 0.9),
    min_tissue=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_tiles_lie_inside_the_slide_in_reading_order(
    width: int, height: int, mpp: float, tile_px: int, overlap: float, min_tissue: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(-(-height // 16), -(-width // 16))) < 0.4
    wanted = TileSettings(tile_px=tile_px, overlap_px=int(overlap * tile_px), min_tissue=min_tissue)
    grid = make_tile_grid(
        tissue_of(mask), width_px0=width, height_px0=height, resolution=at(mpp), settings=wanted
    )
    x, y = grid.coords_px0.T
    assert (np.diff(y * 10_000 + x) > 0).all()
    assert (x >= 0).all()
    assert (y >= 0).all()
    if grid.tile_width_px0 <= width:
        assert (x + grid.tile_width_px0 <= width + 1e-6).all()
    if grid.tile_height_px0 <= height:
        assert (y + grid.tile_height_px0 <= height + 1e-6).all()
    assert ((grid.tissue_fraction >= 0) & (grid.tissue_fraction <= 1)).all()
    assert (grid.tissue_fraction >= grid.min_tissue_used - 1e-6).all()
    pitch = grid.tile_width_px0 * (1 - wanted.overlap_px / tile_px)
    steps = np.diff(np.unique(x))
    assert (steps >= pitch - 1.0).all()
    assert (len(x) > 0) == mask[: -(-height // 16), : -(-width // 16)].any()


@settings(max_examples=30)
@given(seed=st.integers(0, 999), downsample=st.sampled_from([5, 16, 40]))
def test_tissue_fractions_equal_counting_pixels(seed: int, downsample: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(-(-600 // downsample), -(-800 // downsample))) < 0.5
    grid = make_tile_grid(
        tissue_of(mask, downsample), width_px0=800, height_px0=600, resolution=at(0.25),
        settings=TileSettings(tile_px=64, min_tissue=0.0),
    )  # fmt: skip
    full = np.kron(mask, np.ones((downsample, downsample)))
    for (x, y), share in zip(grid.coords_px0, grid.tissue_fraction, strict=True):
        assert share == pytest.approx(full[y : y + 128, x : x + 128].mean(), abs=1e-5)


def test_a_slide_without_tissue_has_no_tile() -> None:
    grid = make_tile_grid(
        tissue_of(np.zeros((60, 60), bool)), width_px0=960, height_px0=960, resolution=at(0.25),
        settings=TileSettings(min_tissue=0.0),
    )  # fmt: skip
    assert grid.coords_px0.shape == (0, 2)


def test_where_no_tile_holds_enough_the_threshold_falls_and_says_so() -> None:
    mask = np.zeros((60, 60), bool)
    mask[30:33, 30:33] = True
    grid = make_tile_grid(
        tissue_of(mask), width_px0=960, height_px0=960, resolution=at(0.25),
        settings=TileSettings(min_tissue=0.3),
    )  # fmt: skip
    assert len(grid.coords_px0) >= 1
    assert grid.min_tissue_used < 0.3
    assert (grid.tissue_fraction > 0).all()


@pytest.mark.parametrize("corner", [(0, 58), (57, 0), (58, 58)])
def test_tissue_beyond_the_last_whole_tile_has_a_tile_at_the_edge(corner: tuple[int, int]) -> None:
    mask = np.zeros((60, 60), bool)  # 960 px: two tiles of 448 end at 896
    mask[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = True
    grid = make_tile_grid(
        tissue_of(mask), width_px0=960, height_px0=960, resolution=at(0.25),
        settings=TileSettings(),
    )  # fmt: skip
    assert len(grid.coords_px0) == 1
    assert grid.tissue_fraction[0] == pytest.approx(4 * 256 / 448**2)
    assert (grid.coords_px0 + 448 <= 960).all()


def test_a_slide_smaller_than_a_tile_has_one_that_reaches_over_the_edge() -> None:
    slide = FakeSlide(np.full((100, 90, 3), 50, np.uint8))
    grid = make_tile_grid(
        tissue_of(np.ones((7, 6), bool)), width_px0=90, height_px0=100, resolution=at(0.5),
        settings=TileSettings(min_tissue=0.1),
    )  # fmt: skip
    assert grid.coords_px0.tolist() == [[0, 0]]
    tile = read_tile(slide, grid, 0)
    assert (tile[:100, :90] == 50).all()
    assert (tile[120:, 120:] == 255).all()


def grid_at(x: int, y: int, span: float, tile_px: int = 32) -> TileGrid:
    return TileGrid(
        coords_px0=np.array([[x, y]]), tissue_fraction=np.ones(1, np.float32),
        tile_width_px0=span, tile_height_px0=span, tile_px=tile_px, min_tissue_used=0.3,
    )  # fmt: skip


def test_shrinking_by_a_whole_factor_is_the_area_average() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    tile = read_tile(FakeSlide(pixels), grid_at(50, 70, 64.0), 0)
    expected = pixels[70:134, 50:114].reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(tile, expected, atol=0.501)


@given(x=st.integers(0, 40), y=st.integers(0, 40), span=st.floats(32, 150), level=st.integers(0, 1))
@settings(max_examples=30)
def test_shrinking_by_any_factor_is_the_area_average(
    x: int, y: int, span: float, level: int
) -> None:
    assume(not level or not 64 / 1.02 < span < 64)  # a level that is nearly as fine is enlarged
    pixels = np.random.default_rng(1).integers(0, 256, (400, 400, 3), np.uint8)
    factor = 2 if level and span >= 64 else 1
    tile = read_tile(FakeSlide(pixels, downsamples=(1, 2)[: level + 1]), grid_at(x, y, span), 0)
    # The integral of the image, read at the exact borders of every pixel of the tile.
    summed = np.pad(pixels[::factor, ::factor].cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    positions = np.arange(len(summed))
    edges = [(start + span * np.arange(33) / 32) / factor for start in (y, x)]
    by_rows = interp1d(positions, summed, axis=0)(edges[0])
    sums = np.diff(np.diff(interp1d(positions, by_rows, axis=1)(edges[1]), axis=0), axis=1)
    np.testing.assert_allclose(tile, sums / (span / factor / 32) ** 2, atol=0.51)


def test_a_region_that_cannot_be_decoded_is_an_error_and_never_white() -> None:
    slide = FakeSlide(np.zeros((300, 300, 3), np.uint8), broken=((100, 100, 10, 10),))
    assert read_tile(slide, grid_at(0, 0, 64.0), 0).max() == 0
    with pytest.raises(TileError, match="nothing at"):
        read_tile(slide, grid_at(90, 90, 64.0), 0)


def test_at_the_slides_own_resolution_pixels_are_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    tile = read_tile(FakeSlide(pixels), grid_at(50, 70, 32.0), 0)
    np.testing.assert_array_equal(tile, pixels[70:102, 50:82])


def test_the_nearest_sufficient_level_is_read() -> None:
    pixels = np.full((512, 512, 3), 10, np.uint8)
    slide = FakeSlide(pixels, downsamples=(1, 4, 16))
    for span, level in ((32.0, 0), (100.0, 0), (127.5, 1), (128.0, 1), (511.0, 2)):
        slide.levels_read.clear()
        read_tile(slide, grid_at(0, 0, span), 0)
        assert slide.levels_read == [level]


@pytest.mark.parametrize("scale", [2, 3])
def test_a_tile_shows_the_same_field_whatever_the_scanner(scale: int) -> None:
    rng = np.random.default_rng(1)
    scene = np.kron(rng.integers(0, 256, (60, 60, 3)), np.ones((24, 24, 1))).astype(np.uint8)
    coarse = scene[::scale, ::scale]
    tiles = []
    for pixels, mpp in ((scene, 0.25), (coarse, 0.25 * scale)):
        height, width = pixels.shape[:2]
        mask = np.ones((-(-height // 16), -(-width // 16)), bool)
        grid = make_tile_grid(
            tissue_of(mask), width_px0=width, height_px0=height, resolution=at(mpp),
            settings=TileSettings(tile_px=60, target_mpp=1.0),
        )  # fmt: skip
        tiles.append([read_tile(FakeSlide(pixels), grid, i) for i in range(len(grid.coords_px0))])
    assert len(tiles[0]) == len(tiles[1]) == 36
    difference = np.abs(np.array(tiles[0], int) - np.array(tiles[1], int))
    assert np.median(difference) == 0
    assert difference.mean() < 6


def test_anisotropic_pixels_give_square_tiles() -> None:
    grid = make_tile_grid(
        tissue_of(np.ones((60, 60), bool)), width_px0=960, height_px0=960,
        resolution=at(0.25, 0.5), settings=TileSettings(tile_px=100),
    )  # fmt: skip
    assert (grid.tile_width_px0, grid.tile_height_px0) == (200.0, 100.0)


@pytest.mark.parametrize(
    "wrong", [{"overlap_px": 224}, {"overlap_px": -1}, {"min_tissue": 1.5}, {"target_mpp": 0.0}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(MilError, match="tiles: "):
        TileSettings(**wrong)


@pytest.mark.parametrize(
    ("file_mpp", "given", "expected"),
    [
        ((0.5, 0.5), None, (0.5, "file")),
        ((0.5, 0.5), 0.25, (0.25, "given")),
        ((1000.0, 1000.0), None, (0.25, "assumed")),
        ((0.0, 0.5), None, (0.25, "assumed")),
        ((float("nan"), 0.5), None, (0.25, "assumed")),
        (None, None, (0.25, "assumed")),
        ((20.0, 20.0), None, (20.0, "file")),
    ],
)
def test_a_resolution_is_believed_where_plausible(
    file_mpp: tuple[float, float] | None, given: float | None, expected: tuple[float, str]
) -> None:
    stated = file_mpp and StatedMpp(x=file_mpp[0], y=file_mpp[1], field="a tag")
    result = resolve_mpp(stated, given_mpp=given, where="s")
    assert (result.mpp, result.source) == (pytest.approx(expected[0]), expected[1])


def test_an_implausible_given_resolution_is_refused() -> None:
    with pytest.raises(MilError, match="a given resolution of 40 µm/px"):
        resolve_mpp(None, given_mpp=40, where="s")


def whole_grid(columns: int, rows: int) -> TileGrid:
    tissue = tissue_of(np.ones((rows * 28, columns * 28), bool))
    return make_tile_grid(
        tissue, width_px0=columns * 448, height_px0=rows * 448, resolution=at(0.25),
        settings=TileSettings(),
    )  # fmt: skip


def test_tiles_drawn_are_spread_over_the_slide_and_the_same_each_time() -> None:
    grid = whole_grid(40, 40)
    drawn = subsample_tiles(grid, 64, seed=3)
    again = subsample_tiles(grid, 64, seed=3)
    np.testing.assert_array_equal(drawn.coords_px0, again.coords_px0)
    assert len(drawn.coords_px0) == 64 == len(drawn.tissue_fraction)
    order = np.lexsort((drawn.coords_px0[:, 0], drawn.coords_px0[:, 1]))
    np.testing.assert_array_equal(order, np.arange(64))  # reading order
    quarters = (drawn.coords_px0 // (20 * 448)) @ (1, 2)
    assert np.bincount(quarters, minlength=4).min() >= 12  # of 16 each
    other = subsample_tiles(grid, 64, seed=4)
    assert not np.array_equal(drawn.coords_px0, other.coords_px0)


@given(n=st.integers(1, 30), columns=st.integers(1, 6), rows=st.integers(1, 6))
@settings(max_examples=40)
def test_at_most_so_many_tiles_are_drawn_each_once(n: int, columns: int, rows: int) -> None:
    grid = whole_grid(columns, rows)
    drawn = subsample_tiles(grid, n, seed=0)
    assert len(np.unique(drawn.coords_px0, axis=0)) == min(n, columns * rows)
    assert subsample_tiles(grid, None, seed=0) is grid
