from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from features.slides.reader import open_slide
from features.utils.image_headers import jpeg_precision
from tests.features.slides.slide_files import whole, write_zarr

ROWS, COLUMNS = np.mgrid[0:256, 0:320]
PIXELS = np.stack([(ROWS + COLUMNS) % 256, ROWS % 256, 255 - ROWS % 256], axis=-1).astype(np.uint8)


def deep(bits: int) -> np.ndarray:
    return np.round(PIXELS / 255 * ((1 << bits) - 1)).astype(np.uint16)


def write(path: Path, bits: int, pixels: np.ndarray | None = None, **options: object) -> Path:
    kind = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, deep(bits) if pixels is None else pixels, **{**kind, **options})
    return path


def read(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    with closing(open_slide(path)) as slide:
        return whole(slide), slide.warnings


def maximum(value: int) -> dict[str, object]:
    return {"extratags": [(281, 3, 3, (value,) * 3, True)]}


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
def test_samples_are_scaled_by_the_maximum_that_a_tiff_states(tmp_path: Path, bits: int) -> None:
    result, warnings = read(write(tmp_path / "s.tif", bits, **maximum((1 << bits) - 1)))
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()


def test_a_stated_maximum_may_be_that_of_the_data(tmp_path: Path) -> None:
    result, warnings = read(write(tmp_path / "s.tif", 12, deep(12).clip(0, 3900), **maximum(3900)))
    assert warnings == ()
    np.testing.assert_array_equal(result, PIXELS.clip(0, 3900 >> 4))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_ome_states_significant_bits(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "s.ome.tif"
    write(path, bits, ome=True, metadata={"axes": "YXS", "SignificantBits": bits})
    result, warnings = read(path)
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_samples_may_be_packed(tmp_path: Path, bits: int) -> None:
    grey = deep(bits)[..., 0]
    path = write(
        tmp_path / "s.tif", bits, grey, photometric="minisblack", bitspersample=bits,
        compression=None,
    )  # fmt: skip
    np.testing.assert_array_equal(read(path)[0][..., 0], PIXELS[..., 0])


def test_a_jpeg_2000_stream_states_its_precision(tmp_path: Path) -> None:
    tiles = [deep(12)[y : y + 128, x : x + 160].copy() for y in (0, 128) for x in (0, 160)]
    streams = [
        imagecodecs.jpeg2k_encode(
            tile, level=0, reversible=True, bitspersample=12, codecformat="j2k"
        )
        for tile in tiles
    ]  # fmt: skip
    assert {jpeg_precision(stream) for stream in streams} == {12}
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, iter(streams), shape=PIXELS.shape, dtype=np.uint16, photometric="rgb",
        tile=(128, 160), compression=34712, metadata=None,
    )  # fmt: skip
    result, warnings = read(path)
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()


def test_inverted_grey_is_scaled_before_it_is_turned(tmp_path: Path) -> None:
    grey = 4095 - deep(12)[..., 0]
    tags = {"extratags": [(281, 3, 1, 4095, True)]}
    path = write(tmp_path / "s.tif", 12, grey, photometric="miniswhite", **tags)
    assert np.abs(read(path)[0][..., 0].astype(int) - PIXELS[..., 0]).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_unstated_bits_are_warned_of_and_the_advice_works(tmp_path: Path, bits: int) -> None:
    _, (warning,) = read(write(tmp_path / "s.tif", bits))
    assert f"as if {bits} bit were used" in warning
    assert f"Write {(1 << bits) - 1:,} into MaxSampleValue" in warning
    result, warnings = read(write(tmp_path / "s.tif", bits, **maximum((1 << bits) - 1)))
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()


@pytest.mark.parametrize("stated", [14, 16])
def test_more_bits_stated_than_used_are_warned_of_and_the_advice_works(
    tmp_path: Path, stated: int
) -> None:
    ome = {"axes": "YXS", "SignificantBits": stated}
    _, (warning,) = read(write(tmp_path / "s.ome.tif", 12, metadata=ome))
    assert f"SignificantBits of the OME-XML states {stated} bit, but samples reach only" in warning
    assert "Let it state 12" in warning
    ome["SignificantBits"] = 12
    result, warnings = read(write(tmp_path / "s.ome.tif", 12, metadata=ome))
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()


def test_sixteen_full_bits_are_not_warned_of(tmp_path: Path) -> None:
    result, warnings = read(write(tmp_path / "s.tif", 16))
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()


def test_a_maximum_that_the_samples_exceed_is_not_used(tmp_path: Path) -> None:
    result, (warning,) = read(write(tmp_path / "s.tif", 16, **maximum(255)))
    np.testing.assert_array_equal(result, PIXELS)
    assert "MaxSampleValue states 8 bit, but samples reach" in warning


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("place", ["window", "ome-xml", "nowhere"])
def test_zarr_states_bits_by_its_window_or_ome_xml(
    tmp_path: Path, place: str, zarr_format: int
) -> None:
    path = tmp_path / "s.zarr"
    omero = {"channels": [{"window": {"min": 0, "max": 4000}}] * 3}
    about = {"omero": omero} if place == "window" else {}
    write_zarr(path, [deep(12)], zarr_format=zarr_format, chunk_channels=3, about=about)
    if place == "ome-xml":
        (path / "OME").mkdir()
        (path / "OME" / "METADATA.ome.xml").write_text(
            '<OME><Image><Pixels SizeX="320" SizeY="256" SignificantBits="12"/></Image></OME>'
        )
    result, warnings = read(path)
    if place == "nowhere":
        assert "as if 12 bit were used" in warnings[0]
    else:
        np.testing.assert_array_equal(result, PIXELS)
        assert json.dumps(warnings) == "[]"


def test_a_grey_png_of_sixteen_bit_is_not_clipped(tmp_path: Path) -> None:
    for bits in (16, 12):
        Image.fromarray(deep(bits)[..., 0]).save(tmp_path / "s.png")
        result, warnings = read(tmp_path / "s.png")
        assert len(warnings) == (bits == 12)
        np.testing.assert_array_equal(result[..., 1], PIXELS[..., 0] >> (16 - bits))


@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_png_in_colours_of_sixteen_bit_is_warned_of_where_it_uses_fewer(
    tmp_path: Path, bits: int, with_alpha: bool
) -> None:
    samples = deep(bits)
    if with_alpha:
        samples = np.dstack([samples, np.full(samples.shape[:2], 65_535, np.uint16)])
    (tmp_path / "s.png").write_bytes(imagecodecs.png_encode(samples))
    result, warnings = read(tmp_path / "s.png")
    assert [f"as if {bits} bit were used" in text for text in warnings] == [True] * (bits < 16)
    np.testing.assert_array_equal(result, deep(bits) >> 8)


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_white_of_a_jpeg_2000_of_more_than_eight_bit_stays_white(
    tmp_path: Path, bits: int, codec: str
) -> None:
    stream = imagecodecs.jpeg2k_encode(
        deep(bits), level=0, reversible=True, bitspersample=bits, codecformat=codec
    )
    (tmp_path / "s.jp2").write_bytes(stream)
    result, warnings = read(tmp_path / "s.jp2")
    assert result.max() == 255
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()
    stream = imagecodecs.jpeg2k_encode(deep(bits), level=0, reversible=True, codecformat=codec)
    (tmp_path / "s.jp2").write_bytes(stream)
    _, warnings = read(tmp_path / "s.jp2")
    assert [f"as if {bits} bit were used" in text for text in warnings] == [True] * (bits < 16)


@pytest.mark.parametrize("is_tiff", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_signed_samples_of_a_jpeg_2000_begin_at_black(
    tmp_path: Path, bits: int, is_tiff: bool
) -> None:
    path = tmp_path / ("s.tif" if is_tiff else "s.jp2")
    samples = (deep(bits).astype(np.int32) - (1 << (bits - 1))).astype(f"i{-(-bits // 8)}")
    stream = imagecodecs.jpeg2k_encode(
        samples, level=0, reversible=True, bitspersample=bits, codecformat="jp2"
    )
    if is_tiff:  # whose tags say nothing of a sign
        tifffile.imwrite(
            path, iter([stream]), shape=PIXELS.shape, dtype=f"u{samples.itemsize}",
            tile=PIXELS.shape[:2], photometric="rgb", compression=34712, metadata=None,
        )  # fmt: skip
    else:
        path.write_bytes(stream)
    result, warnings = read(path)
    np.testing.assert_array_equal(result, PIXELS)
    assert warnings == ()
