from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from features.errors import OutputError
from features.slides.reader import open_slide
from features.visualization.heatmap import ColorScale, TileLayout, apply_colormap
from features.visualization.pyramid_tiff import overlay_downsample, write_heatmap_tiff

SCALE = ColorScale(palette="viridis", low=0.0, high=100.0, words="attention: percentile")


def make_layout(*, size: tuple[int, int] = (12_000, 9_000), span: float = 448.0) -> TileLayout:
    columns, rows = np.meshgrid(np.arange(3), np.arange(2))
    corners = np.stack([columns.ravel(), rows.ravel()], axis=1) * round(span) + 4480
    return TileLayout(
        coords_px0=corners.astype(np.int64), tile_size_px0=(span, span), slide_size_px0=size,
        mpp_xy=(0.25, 0.25), mpp_is_assumed=False,
    )  # fmt: skip


def test_the_overlay_lies_over_the_slide_to_the_pixel(tmp_path: Path) -> None:
    values = np.array([0.0, 20.0, 40.0, 60.0, 80.0, 100.0])
    layout = make_layout()
    downsample = write_heatmap_tiff(tmp_path / "o.tif", layout, values, scale=SCALE)
    assert downsample == 16
    rgba = tifffile.imread(tmp_path / "o.tif", key=0)
    assert rgba.shape == (9000 // 16 + 1, 12_000 // 16, 4)
    for (x, y), value in zip((layout.coords_px0 // 16).tolist(), values, strict=True):
        tile = rgba[y : y + 28, x : x + 28]
        assert (tile == (*apply_colormap(np.array(value), SCALE).tolist(), 255)).all()
    assert (rgba[..., 3] > 0).sum() == 6 * 28 * 28


def test_levels_halve_and_each_says_its_resolution_and_downsample(tmp_path: Path) -> None:
    path = tmp_path / "o.tif"
    write_heatmap_tiff(path, make_layout(), np.ones(6), scale=SCALE)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 3
        for level, page in enumerate(tiff.pages):
            described = json.loads(page.description)
            assert described == {"downsample": 16 * 2**level, "shows": "attention: percentile"}
            count, per = page.tags["XResolution"].value
            assert 1e4 * per / count == pytest.approx(0.25 * described["downsample"], rel=1e-6)
            assert page.is_tiled
            assert bool(page.subfiletype) == bool(level)


def test_our_readers_and_openslide_open_it_with_the_right_resolution(tmp_path: Path) -> None:
    path = tmp_path / "o.tif"
    write_heatmap_tiff(path, make_layout(), np.ones(6), scale=SCALE)
    slide = open_slide(path)
    assert slide.mpp_xy == pytest.approx((4.0, 4.0))
    assert [level.width_px for level in slide.levels] == [750, 375, 188]
    slide.close()
    with openslide.OpenSlide(path) as other:
        assert other.level_dimensions[0] == (750, 563)
        assert other.level_count == 3
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(4.0)
        assert other.read_region((0, 0), 0, (1, 1)).getpixel((0, 0))[3] == 0


@pytest.mark.parametrize(
    ("size", "span", "downsample"),
    [((3000, 3000), 448.0, 16), ((60_000, 40_000), 224.0, 8), ((3000, 3000), 10.0, 1),
     ((300_000, 9), 20.0, 64), ((100_000, 80_000), 224.0, 16)],
)  # fmt: skip
def test_tiles_stay_at_least_16_px_wide_unless_the_slide_is_huge(
    size: tuple[int, int], span: float, downsample: int
) -> None:
    assert overlay_downsample(make_layout(size=size, span=span)) == downsample


def test_same_numbers_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_heatmap_tiff(tmp_path / f"{name}.tif", make_layout(), np.arange(6.0), scale=SCALE)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_heatmap_tiff(tmp_path / "gone" / "o.tif", make_layout(), np.ones(6), scale=SCALE)
