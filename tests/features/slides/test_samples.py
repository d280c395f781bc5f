"""Slides whose tags or channels deny what their samples are."""

from __future__ import annotations

import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from features.errors import SlideError, TileError, UnsupportedFormatError
from features.series.images import read_image
from features.slides.backends.samples import misread_reason
from features.slides.reader import open_slide
from tests.features.slides.slide_files import whole, write_zarr
from tests.features.slides.test_absent_pixels import PIXELS, SIDE

BLUE_FIRST = PIXELS[..., ::-1]


def write(path: Path, pixels: np.ndarray = PIXELS, **options: Any) -> Path:
    tifffile.imwrite(
        path, pixels, **{"photometric": "rgb", "tile": (128, 128), "metadata": None, **options}
    )
    return path


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd"])
def test_differences_without_their_tag_are_refused_and_not_read_as_noise(
    tmp_path: Path, compression: str
) -> None:
    path = write(tmp_path / "s.tif", compression=compression, predictor=True)
    np.testing.assert_array_equal(whole(path), PIXELS)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Predictor"].overwrite(1)
    with pytest.raises(UnsupportedFormatError, match=r"differences .* without the tag Predictor"):
        open_slide(path)


def test_a_tag_of_differences_that_the_samples_deny_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", compression="zlib", predictor=True)
    blocks = PIXELS.reshape(6, 128, 6, 128, 3).swapaxes(1, 2).reshape(36, 128, 128, 3)
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter([np.diff(b.astype(np.uint8), axis=1, prepend=np.uint8(0)) for b in blocks]),
            shape=PIXELS.shape, dtype=np.uint8, photometric="rgb", tile=(128, 128), metadata=None,
            compression="zlib", predictor=True,
        )  # fmt: skip
    # Differences of differences were written, so that one of them is left.
    with pytest.raises(UnsupportedFormatError, match="without the tag Predictor"):
        open_slide(path)
    sums = np.cumsum(PIXELS, axis=1, dtype=np.uint8)
    assert "which its tag Predictor denies" in misread_reason(sums)


def test_samples_in_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = (PIXELS.astype(np.uint16) << 8) + rng.integers(0, 256, PIXELS.shape, np.uint16)
    np.testing.assert_array_equal(whole(write(tmp_path / "s.tif", deep)), PIXELS)
    path = write(tmp_path / "swapped.tif", deep.byteswap())
    with pytest.raises(UnsupportedFormatError, match="in another byte order"):
        open_slide(path)


def test_noise_and_sharp_pictures_are_no_error() -> None:
    rng = np.random.default_rng(0)
    assert misread_reason(rng.integers(0, 256, (256, 256, 3), np.uint8)) == ""
    grid = 60 + np.indices((256, 256)).sum(0)[..., None] // 3 % 2 * np.full(3, 140)
    assert misread_reason(grid.astype(np.uint8)) == ""
    assert misread_reason(PIXELS) == ""


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("opacity", [0, 1])
def test_alpha_that_hides_the_whole_slide_is_not_used(
    tmp_path: Path, kind: str, opacity: int
) -> None:
    pixels = np.dstack([PIXELS, np.full((SIDE, SIDE), opacity, np.uint8)])
    path = write(tmp_path / "s.tif", pixels, extrasamples=[kind], compression="zlib")
    np.testing.assert_array_equal(whole(path), PIXELS)
    with closing(open_slide(path)) as slide:
        assert slide.warnings == ("its alpha channel hides the whole picture: it is not used",)


def test_alpha_that_hides_a_part_is_used(tmp_path: Path) -> None:
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:300] = 0
    path = write(tmp_path / "s.tif", np.dstack([PIXELS, alpha]), extrasamples=["unassalpha"])
    result = whole(path)
    assert result[:300].min() == 255
    np.testing.assert_array_equal(result[300:], PIXELS[300:])


def test_alpha_that_hides_a_whole_picture_is_not_used(tmp_path: Path) -> None:
    pixels = np.dstack([PIXELS, np.zeros((SIDE, SIDE), np.uint8)])
    path = tmp_path / "s.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(whole(path), PIXELS)
    np.testing.assert_array_equal(read_image(path), PIXELS)


def test_a_slide_of_which_no_tile_can_be_decoded_is_refused_when_it_is_opened(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "s.tif", compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(5)
    with pytest.raises(UnsupportedFormatError, match="none of the sampled TIFF tiles"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("TileLength", 64), ("TileWidth", 256), ("ImageWidth", 300),
        ("PhotometricInterpretation", 0), ("PhotometricInterpretation", 3), ("SamplesPerPixel", 4),
        ("PlanarConfiguration", 2),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compression", ["zlib", "jpeg", None])
def test_tags_that_contradict_one_another_are_refused_when_a_slide_is_opened(
    tmp_path: Path, compression: str | None, tag: str, value: int
) -> None:
    path = write(tmp_path / "s.tif", compression=compression)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[tag].overwrite(value)
    with pytest.raises(SlideError):
        open_slide(path)


def test_a_slide_of_which_every_tile_was_overwritten_is_left_to_no_other_reader(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "s.tif", compression="jpeg")
    with tifffile.TiffFile(path) as file:
        parts = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    data = bytearray(path.read_bytes())
    for offset, n_bytes in parts:
        data[offset + n_bytes // 2 : offset + n_bytes] = bytes(n_bytes - n_bytes // 2)
    path.write_bytes(data)
    with pytest.raises(UnsupportedFormatError, match="overwritten by zeros"):
        open_slide(path)


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_colours_of_printing_are_refused_in_series(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "s.tif"
    Image.new(mode, (64, 64)).save(path)
    with pytest.raises(TileError, match=f"colours as {mode}"):
        read_image(path)


NAMED = {"Channel": {"Name": ["Blue", "Green", "Red"]}}
COLOURED = {"Channel": {"Name": ["a", "b", "c"], "Color": [0xFFFF, 0xFF00FF, -0xFFFF01]}}


@pytest.mark.parametrize("channels", [NAMED, COLOURED], ids=["names", "colours"])
def test_an_ome_tiff_with_blue_first_is_read_in_its_colours(
    tmp_path: Path, channels: dict[str, Any]
) -> None:
    path = tmp_path / "s.ome.tif"
    planes = np.moveaxis(BLUE_FIRST, -1, 0)
    tifffile.imwrite(
        path,
        planes,
        photometric="minisblack",
        tile=(128, 128),
        metadata={"axes": "CYX", **channels},
    )
    np.testing.assert_array_equal(whole(path), PIXELS)


@pytest.mark.parametrize("axes", ["yxc", "cyx"])
@pytest.mark.parametrize(
    "channels",
    [
        [{"label": name, "color": "FFFFFF"} for name in ("Blue", "Green", "Red")],
        [{"label": "x", "color": colour} for colour in ("0000FF", "00FF00", "FF0000")],
        [{"label": name} for name in "BGR"],
    ],
    ids=["labels", "colours", "letters"],
)
def test_an_ome_zarr_with_blue_first_is_read_in_its_colours(
    tmp_path: Path, channels: list[dict[str, str]], axes: str
) -> None:
    path = tmp_path / "s.zarr"
    about = {"omero": {"channels": channels}}
    write_zarr(path, [BLUE_FIRST], axes=axes, chunk_channels=3, about=about)
    np.testing.assert_array_equal(whole(path), PIXELS)


def trestle(path: Path, *, stored: str, tag: int, subsampling: str = "444") -> Path:
    blocks = [np.ascontiguousarray(PIXELS[y : y + 64, x : x + 64])
              for y in range(0, SIDE, 64) for x in range(0, SIDE, 64)]  # fmt: skip
    streams = (
        imagecodecs.jpeg_encode(block, level=95, outcolorspace=stored, subsampling=subsampling)
        for block in blocks
    )
    tifffile.imwrite(
        path, streams, shape=PIXELS.shape, dtype=np.uint8, tile=(64, 64), compression="jpeg",
        photometric="ycbcr", subsampling=(1, 1), software="MedScan", metadata=None,
        description="Background Color=E6E6E6;Objective Power=20;OverlapsXY= 8 8",
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["PhotometricInterpretation"].overwrite(tag)
    return path


def assert_colours(path: Path) -> None:
    with closing(open_slide(path)) as slide:
        assert slide.reader == "openslide"
        result = slide.read(level=0, x_px=0, y_px=0, width_px=56, height_px=56)
    np.testing.assert_allclose(result, PIXELS[:56, :56], atol=12)


@pytest.mark.parametrize(("stored", "tag"), [("RGB", 2), ("YCBCR", 6)])
def test_colours_that_openslide_takes_for_what_they_are_are_read(
    tmp_path: Path, stored: str, tag: int
) -> None:
    assert_colours(trestle(tmp_path / "s.tif", stored=stored, tag=tag))


@pytest.mark.parametrize(
    ("stored", "subsampling", "tag"), [("RGB", "444", 6), ("YCBCR", "444", 2), ("YCBCR", "420", 2)]
)
def test_colours_that_openslide_would_take_for_others_are_refused_until_their_tag_is_corrected(
    tmp_path: Path, stored: str, subsampling: str, tag: int
) -> None:
    path = trestle(tmp_path / "COPY", stored=stored, tag=tag, subsampling=subsampling)
    with pytest.raises(UnsupportedFormatError, match="which OpenSlide takes for") as caught:
        open_slide(path)
    command = shlex.split(caught.value.hint.split(": ", 1)[1])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    if subsampling == "444":
        assert_colours(path)
    else:
        open_slide(path).close()


def test_a_damaged_header_of_a_tile_does_not_deny_the_colours_of_a_slide(tmp_path: Path) -> None:
    path = trestle(tmp_path / "s.tif", stored="RGB", tag=2)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        index = int(np.argmax(page.databytecounts))
        start, n_bytes = page.dataoffsets[index], page.databytecounts[index]
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0", start, start + n_bytes)
    data[frame + 11] = 0x22  # sampling of the first component
    path.write_bytes(data)
    with closing(open_slide(path)) as slide:
        assert slide.reader == "openslide"
