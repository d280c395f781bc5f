from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.visualization.heatmap import (
    ColorScale,
    TileLayout,
    apply_colormap,
    draw_heatmap,
    draw_slide,
    heatmap_downsample,
    rasterize,
    tile_layout,
)
from tests.fakes import make_bag

PERCENT = ColorScale(palette="viridis", low=0.0, high=100.0, words="percentile, 0 to 100")


def make_layout(*corners: tuple[int, int], span: float = 100.0, size: int = 600) -> TileLayout:
    return TileLayout(
        coords_px0=np.array(corners, np.int64).reshape(-1, 2), tile_size_px0=(span, span),
        slide_size_px0=(size, size), mpp_xy=(0.5, 0.5), mpp_is_assumed=False,
    )  # fmt: skip


def test_every_tile_is_filled_with_its_number_where_it_lies() -> None:
    result = rasterize(make_layout((0, 0), (300, 200)), np.array([1.0, 2.0]), downsample=10)
    assert result.shape == (60, 60)
    assert (result[:10, :10] == 1).all()
    assert (result[20:30, 30:40] == 2).all()
    assert np.isfinite(result).sum() == 200


def test_where_tiles_overlap_the_map_shows_their_mean() -> None:
    result = rasterize(make_layout((0, 0), (50, 0)), np.array([1.0, 2.0]), downsample=10)
    assert result[0, :16].tolist() == [1.0] * 5 + [1.5] * 5 + [2.0] * 5 + [
        pytest.approx(np.nan, nan_ok=True)
    ]


def test_any_number_of_tiles_may_meet_in_one_px_of_the_map() -> None:
    corners = [(x, y) for x in range(260) for y in range(260)]
    result = rasterize(make_layout(*corners, span=1.0, size=260), np.ones(260**2), downsample=512)
    assert result.tolist() == [[1.0]]


def test_a_tile_smaller_than_a_pixel_of_the_map_is_still_seen() -> None:
    result = rasterize(make_layout((305, 405), span=3.0), np.array([7.0]), downsample=10)
    assert np.isfinite(result).sum() == 1
    assert np.nanmax(result) == 7


@given(
    span=st.floats(20, 80),
    downsample=st.integers(1, 16),
    n=st.integers(1, 6),
)
def test_neighbouring_tiles_leave_no_gap_and_do_not_overlap(
    span: float, downsample: int, n: int
) -> None:
    starts = np.floor(np.arange(n) * span + 0.5).astype(int)
    layout = make_layout(*((int(x), 0) for x in starts), span=span)
    row = rasterize(layout, np.arange(n, dtype=float), downsample=downsample)[0]
    covered = row[np.isfinite(row)]
    assert np.isfinite(row[: len(covered)]).all()
    if downsample < span / 2:
        assert set(covered.tolist()) == set(range(n))


@pytest.mark.parametrize("palette", ["viridis", "cividis"])
def test_a_higher_number_is_lighter_so_that_maps_read_in_grey(palette: str) -> None:
    scale = ColorScale(palette=palette, low=-1.0, high=1.0, words="")  # type: ignore[arg-type]
    grey = apply_colormap(np.linspace(-1, 1, 50), scale) @ (0.299, 0.587, 0.114)
    assert (np.diff(grey) > -0.6).all()  # but for the rounding to 8 bits
    assert grey[-1] - grey[0] > 120
    assert (
        apply_colormap(np.array([-9.0, 9.0]), scale) == apply_colormap(np.array([-1.0, 1.0]), scale)
    ).all()


def test_a_scale_without_extent_is_drawn_all_the_same() -> None:
    flat = replace(PERCENT, low=0.5, high=0.5)
    assert apply_colormap(np.array([0.5, np.nan]), flat).shape == (2, 3)


def test_the_slide_keeps_its_colours_off_the_tiles_and_lies_grey_below_them() -> None:
    pink = np.full((300, 600, 3), (200, 90, 140), np.uint8)
    layout = replace(make_layout((100, 100)), slide_size_px0=(600, 300))
    image = np.asarray(
        draw_heatmap(
            layout, np.array([100.0]), scale=PERCENT, overview=pink, title="s", facts=["1 tile"]
        )
    )
    assert (image[:100, :100] == (200, 90, 140)).all()
    red, green, blue = image[150, 150].tolist()
    assert (red > 180, green > 160, blue < 120) == (True, True, True)  # yellow
    assert (pink == (200, 90, 140)).all()
    assert image.shape[0] > 300  # the caption
    plain = np.asarray(draw_slide(layout, pink, title="s", facts=[]))
    assert (plain[:300] == (200, 90, 140)).all()


def test_without_a_slide_the_map_lies_on_white() -> None:
    image = np.asarray(
        draw_heatmap(
            make_layout((100, 100)),
            np.array([0.0]),
            scale=PERCENT,
            overview=None,
            title="s",
            facts=[],
        )
    )
    assert (image[50, 50] == 255).all()
    assert (image[150, 150] == apply_colormap(np.array(0.0), PERCENT)).all()


@pytest.mark.parametrize("size", [10, 1200, 1201, 60_000])
def test_pictures_are_at_most_1200_px_long(size: int) -> None:
    downsample = heatmap_downsample(make_layout((0, 0), size=size))
    assert size / downsample <= 1200
    assert downsample == 1 or size / (downsample - 1) > 1200


def test_a_bag_that_does_not_know_its_tiles_reach_lends_them_the_distance_of_neighbours() -> None:
    bag = make_bag("a", n_tiles=9)
    known = tile_layout(bag.meta, bag.coords_px0)
    unknown = replace(bag.meta, span_x_px0=0.0, span_y_px0=0.0, width_px0=0, height_px0=0)
    result = tile_layout(unknown, bag.coords_px0)
    assert known is not None
    assert result is not None
    assert result.tile_size_px0 == known.tile_size_px0 == (448.0, 448.0)
    assert result.slide_size_px0 == known.slide_size_px0
    assert result.mpp_is_assumed
    assert tile_layout(unknown, bag.coords_px0[:1]) is None
    assert tile_layout(bag.meta, np.full_like(bag.coords_px0, -1)) is None
