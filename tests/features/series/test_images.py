from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from features.errors import TileError
from features.series.images import letterbox, read_image


def test_a_grey_jpeg_has_three_equal_channels(tmp_path: Path) -> None:
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    Image.fromarray(grey).save(tmp_path / "a.jpg", quality=95)
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == (48, 64, 3)
    assert (pixels == pixels[..., :1]).all()
    assert np.abs(pixels[..., 0].astype(int) - grey).max() < 12


def test_grey_of_16_bits_keeps_its_upper_half(tmp_path: Path) -> None:
    deep = np.array([[0, 256, 65535], [512, 1024, 32768]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == [[0, 1, 255], [2, 4, 128]]


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 100, 50, 0)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_image_is_an_error_of_its_own(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(TileError, match="no image that can be read"):
        read_image(tmp_path / "a.png")


def test_a_cut_image_is_an_error_and_not_half_black(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:9000])
    with pytest.raises(TileError):
        read_image(tmp_path / "a.jpg")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(TileError, match="9000 × 9000 px"):
        read_image(tmp_path / "a.png")


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([32, 96]))
def test_a_square_holds_the_whole_image_in_its_middle(height: int, width: int, side: int) -> None:
    square = letterbox(np.full((height, width, 3), 200, np.uint8), side_px=side)
    assert square.shape == (side, side, 3)
    rows, columns = square[..., 0].any(axis=1).sum(), square[..., 0].any(axis=0).sum()
    assert max(rows, columns) == side
    assert abs(rows - max(1, side * height / max(height, width))) <= 1
    assert abs(columns - max(1, side * width / max(height, width))) <= 1


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    np.testing.assert_array_equal(letterbox(pixels, side_px=96), pixels)
