"""Filters of windows: the same as those of SciPy, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from features.tiling import window_filters
from features.tiling.window_filters import (
    close_disc,
    open_disc,
    window_max,
    window_mean,
    window_min,
)

SIZES_PX = (3, 5, 7, 9)


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_filters, "_BAND_PX", 1)  # pictures of a few bands


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 999),
    size_px=st.sampled_from(SIZES_PX), is_square=st.booleans(),
)  # fmt: skip
def test_means_and_extremes_are_those_of_scipy(
    height: int, width: int, seed: int, size_px: int, is_square: bool
) -> None:
    levels = np.random.default_rng(seed).integers(0, 766, (height, width))
    grey = levels.astype(np.float32) / np.float32(3)
    if is_square:
        grey *= grey
    for own, other in (
        (window_mean, ndimage.uniform_filter),
        (window_max, ndimage.maximum_filter),
        (window_min, ndimage.minimum_filter),
    ):
        found = own(grey, size_px)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, other(grey, size_px))


@given(
    height=st.integers(1, 50), width=st.integers(1, 50), seed=st.integers(0, 999),
    share=st.floats(0, 1), radius_px=st.sampled_from((1, 2, 3)),
)  # fmt: skip
def test_discs_close_and_open_a_mask_as_in_scipy(
    height: int, width: int, seed: int, share: float, radius_px: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    around = np.pad(mask, radius_px, mode="edge")
    y, x = np.ogrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
    disc = np.hypot(y, x) <= radius_px + 0.3
    inside = np.s_[radius_px:-radius_px, radius_px:-radius_px]
    np.testing.assert_array_equal(
        close_disc(mask, radius_px), ndimage.binary_closing(around, disc)[inside]
    )
    np.testing.assert_array_equal(
        open_disc(mask, radius_px), ndimage.binary_opening(around, disc)[inside]
    )
