"""Large strips that are read by rows, and pixels that are refused with the way to convert them."""

from __future__ import annotations

import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from features.errors import TileError, UnsupportedFormatError
from features.slides.backends import tiff_strips
from features.slides.reader import open_slide
from tests.features.slides.slide_files import whole

NOISE = np.random.default_rng(0).integers(0, 256, (300, 421, 3), np.uint8)


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "metadata": None, **options})
    return path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_strips, "_MAX_PART_PX", 421 * 25)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("rows", [300, 120, 97])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_large_strips_are_read_by_rows(
    tmp_path: Path, dtype: type, byteorder: str, rows: int, planar: str
) -> None:
    pixels = NOISE.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    path = write(
        tmp_path / "s.tif", np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels,
        rowsperstrip=rows, byteorder=byteorder, planarconfig=planar,
    )  # fmt: skip
    with closing(open_slide(path)) as slide:
        assert slide._grids[0].is_divided
        assert slide._grids[0].block_height_px <= 25
    np.testing.assert_array_equal(whole(path), NOISE)


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"rowsperstrip": 1}])
def test_an_uncompressed_slide_that_begins_with_glass_is_not_taken_for_glass(
    tmp_path: Path, options: dict[str, object]
) -> None:
    pixels = np.full((300, 421, 3), 240, np.uint8)
    pixels[150:] = 120
    path = write(tmp_path / "s.tif", pixels, **options)
    with closing(open_slide(path)) as slide:
        overview = slide.overview(downsample=10)
    assert overview[:15].min() == 240
    assert overview[15:].max() == 120


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_large_strips_of_grey_are_read_by_rows(tmp_path: Path, photometric: str) -> None:
    grey = NOISE[..., 0]
    stored = grey if photometric == "minisblack" else 255 - grey
    path = write(tmp_path / "s.tif", stored, photometric=photometric, rowsperstrip=300)
    np.testing.assert_array_equal(whole(path), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.usefixtures("small_parts")
def test_a_strip_that_was_cut_off_loses_only_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", NOISE, rowsperstrip=300)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 421 * 3 * 40)
    with closing(open_slide(path)) as slide:
        first = slide.read(level=0, x_px=0, y_px=0, width_px=421, height_px=225)
        np.testing.assert_array_equal(first, NOISE[:225])
        with pytest.raises(TileError, match="past the end of the file"):
            slide.read(level=0, x_px=0, y_px=290, width_px=5, height_px=5)


def test_one_strip_of_400_megapixels_takes_little_memory(tmp_path: Path) -> None:
    """The file is sparse: it takes no space on the disk."""
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, shape=(20_000, 20_000, 3), dtype=np.uint8, photometric="rgb", metadata=None,
        bigtiff=True,
    )  # fmt: skip
    with closing(open_slide(path)) as slide:
        tracemalloc.start()
        pixels = slide.read(level=0, x_px=9_000, y_px=9_990, width_px=300, height_px=300)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert not pixels.any()
    assert peak < 100 << 20


def test_a_compressed_strip_that_is_too_large_says_how_to_write_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.slides.backends.tiff._MAX_SEGMENT_PX", 300 * 100)
    path = write(tmp_path / "s.tif", NOISE, rowsperstrip=300, compression="lzw")
    with pytest.raises(UnsupportedFormatError, match=r"strips of 421 × 300 px in LZW.*--tile"):
        open_slide(path)


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["strips", "tiles"])
@pytest.mark.parametrize(
    ("dtype", "options", "what", "how"),
    [
        (np.float32, {}, "float32", "0 to 255"),
        (np.float64, {}, "float64", "0 to 255"),
        (np.float16, {}, "float16", "0 to 255"),
        (np.int16, {}, "int16", "0 to 255"),
        (np.uint32, {}, "uint32", "0 to 255"),
        (np.uint8, {"photometric": "separated"}, "SEPARATED", "sRGB"),
        (np.uint8, {"photometric": "cielab"}, "CIELAB", "sRGB"),
        (np.uint16, {"photometric": "icclab"}, "ICCLAB", "sRGB"),
    ],
)
def test_pixels_that_are_not_read_say_so_at_once_and_how_to_convert_them(
    tmp_path: Path, dtype: type, options: dict[str, object], what: str, how: str,
    tile: tuple[int, int] | None,
) -> None:  # fmt: skip
    pixels = NOISE.astype(dtype)
    if options.get("photometric") == "separated":
        pixels = np.dstack([pixels, pixels[..., 0]])
    path = write(tmp_path / "s.tif", pixels, tile=tile, **options)
    with pytest.raises(UnsupportedFormatError, match=f"{what}.*{how}") as caught:
        open_slide(path)
    assert "Copy it again" not in str(caught.value)


@pytest.mark.parametrize("name", ["PhotometricInterpretation", "Compression"])
def test_colours_and_compressions_that_are_not_known_are_refused_at_once(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "s.tif", NOISE, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[name].overwrite(60_001)
    with pytest.raises(UnsupportedFormatError, match=f"{name} 60001, which is not known"):
        open_slide(path)


def test_the_command_that_converts_cielab_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((64, 64, 3), np.uint8) + np.array((200, 120, 180), np.uint8)
    srgb, lab = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    picture = ImageCms.profileToProfile(Image.fromarray(pixels), srgb, lab, outputMode="LAB")
    picture.save("IN.tif")
    with pytest.raises(UnsupportedFormatError, match="with Pillow: python -c") as caught:
        open_slide(Path("IN.tif"))
    exec(str(caught.value).split('python -c "')[1].split('"')[0])  # noqa: S102 - our own advice
    result = whole(Path("OUT.tif"))
    np.testing.assert_allclose(result.astype(int), pixels, atol=2)
