"""Zeros that an interrupted copy left in the bytes of pixels."""

from __future__ import annotations

import io
import os
import shutil
import struct
from contextlib import closing
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import imagecodecs
import numcodecs
import numpy as np
import openslide
import pytest
import tifffile
import zarr
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless

from features.errors import SlideError, TileError, UnsupportedFormatError
from features.series.images import read_image
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.reader import open_slide
from features.slides.zeroed import is_zeroed_jpeg
from tests.features.slides.slide_files import whole
from tests.features.slides.test_absent_pixels import GLASS, PIXELS, SIDE, write_zarr
from tests.features.slides.test_dicom_frames import write_level
from tests.features.slides.vendor_files import (
    write_bif,
    write_mrxs,
    write_ndpi,
    write_scn,
    write_trestle,
    write_vms,
)

BLOCK = 256
MIDDLE = {"x_px": BLOCK, "y_px": BLOCK, "width_px": BLOCK, "height_px": BLOCK}


def write(path: Path, pixels: np.ndarray = PIXELS, **options: Any) -> Path:
    """One level in nine TIFF tiles, the fifth of which is all tissue."""
    tifffile.imwrite(
        path, pixels, **{"photometric": "rgb", "tile": (BLOCK, BLOCK), "metadata": None, **options}
    )
    return path


def zero(path: Path, *, start: float, end: float, tile: int = 4) -> None:
    """Overwrite a part of the bytes of a TIFF tile, from one share of its length to another."""
    with tifffile.TiffFile(path) as file:
        offset, n_bytes = (values[tile] for values in (
            file.pages[0].dataoffsets, file.pages[0].databytecounts))  # fmt: skip
    first, last = (offset + int(share * n_bytes) for share in (start, end))
    with path.open("r+b") as stream:
        stream.seek(first)
        stream.write(bytes(last - first))


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "webp", "zstd", "zlib", "lzw", None])
@pytest.mark.parametrize(("start", "end"), [(0.3, 0.6), (0.6, 1.0), (0.0, 1.0)])
def test_a_tile_in_which_zeros_lie_is_lost_and_all_others_are_read(
    tmp_path: Path, compression: str | None, start: float, end: float
) -> None:
    path = write(tmp_path / "s.tif", compression=compression)
    with tifffile.TiffFile(path) as file:  # ends of uncompressed pixels are seen within a pixel
        shift = 0 if compression else 100 / file.pages[0].databytecounts[4]
    first = start + shift
    zero(path, start=first, end=end + shift)
    with closing(open_slide(path)) as slide:
        with pytest.raises(
            TileError, match=r"row 1, column 1 of level 0 at \(\d+, \d+\) px0 cannot be decoded"
        ):
            slide.read(level=0, **MIDDLE)
        above = slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=BLOCK)
        assert np.abs(above.astype(int) - PIXELS[:BLOCK]).mean() < 12


def test_zeros_over_many_uncompressed_tiles_are_lost_in_each(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", tile=(64, 64))
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    first, last = 4 * 12 + 4, 4 * 12 + 8
    with path.open("r+b") as stream:
        stream.seek(offsets[first] + 700)
        stream.write(bytes(offsets[last] + 1000 - offsets[first] - 700))
    with closing(open_slide(path)) as slide:
        for column in range(4, 9):
            with pytest.raises(
                TileError, match=r"overwritten by zeros.*Copy or export the slide again"
            ):
                slide.read(level=0, x_px=64 * column, y_px=256, width_px=64, height_px=64)
        slide.read(level=0, x_px=0, y_px=256, width_px=256, height_px=64)


@pytest.mark.parametrize(
    ("tile", "rows", "n_tiles"),
    [(4, (0, 256), 1), (4, (100, 256), 1), (4, (0, 90), 1), (4, (60, 200), 1), (3, (10, 256), 2)],
)
@pytest.mark.parametrize("planar", [False, True])
def test_zeros_that_end_with_rows_or_tiles_amid_a_scan_are_lost(
    tmp_path: Path, tile: int, rows: tuple[int, int], n_tiles: int, planar: bool
) -> None:
    pixels = np.moveaxis(PIXELS, -1, 0) if planar else PIXELS
    path = write(tmp_path / "s.tif", pixels, planarconfig="separate" if planar else "contig")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    row_bytes = BLOCK * (1 if planar else 3)
    first = offsets[tile] + rows[0] * row_bytes
    last = offsets[tile + n_tiles - 1] + rows[1] * row_bytes
    with path.open("r+b") as stream:
        stream.seek(first)
        stream.write(bytes(last - first))
    with closing(open_slide(path)) as slide:
        for index in range(tile, tile + n_tiles):
            with pytest.raises(TileError, match="overwritten by zeros"):
                slide.read(
                    level=0, x_px=BLOCK * (index % 3), y_px=BLOCK, width_px=9, height_px=BLOCK
                )
        slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=BLOCK)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (20, 0), (20, 40), (0, 9)])
def test_zeros_from_amid_a_row_of_tiles_or_pixels_to_the_end_are_lost(
    tmp_path: Path, row: int, column: int
) -> None:
    path = write(tmp_path / "s.tif", tile=(64, 64))
    with tifffile.TiffFile(path) as file:
        offsets, counts = file.pages[0].dataoffsets, file.pages[0].databytecounts
    first = 9 * 12 + 4
    start, end = offsets[first] + 64 * 3 * row + 3 * column, offsets[-1] + counts[-1]
    data = path.read_bytes()
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])
    with closing(open_slide(path)) as slide:
        for index in (first, first + 1, first + 20, 143):
            with pytest.raises(TileError, match="overwritten by zeros"):
                slide.read(level=0, x_px=index % 12 * 64, y_px=index // 12 * 64, width_px=64,
                           height_px=64)  # fmt: skip
        slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=9 * 64)


def test_a_bitmap_in_which_zeros_lie_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.bmp"
    Image.fromarray(PIXELS // 2 + 64).save(path)
    data, row = path.read_bytes(), SIDE * 3
    page = 169 * 4096  # within a pixel amid the picture
    first = 54 + 300 * row + 3 * 350 + 1
    for start, end in ((first, first + 50 * row + 1), (page, page + 8192), (page, len(data))):
        path.write_bytes(data[:start] + bytes(end - start) + data[end:])
        with pytest.raises(SlideError, match="a BMP: its data were overwritten by zeros"):
            open_slide(path)


@pytest.mark.parametrize("width", [SIDE, 701])
@pytest.mark.parametrize("n_bytes", [3, 4])
@pytest.mark.parametrize(
    "boxes",
    [
        (np.s_[:300], np.s_[:, :211], np.s_[400:, 500:]),
        (np.s_[:20],),
        (np.s_[200:230],),
        (np.s_[200:, 350:], np.s_[201:500]),
    ],
)
def test_black_fill_of_a_bitmap_is_no_damage(
    tmp_path: Path, width: int, n_bytes: int, boxes: tuple[Any, ...]
) -> None:
    filled = PIXELS[:, :width].copy()
    for box in boxes:
        filled[box] = 0
    path = tmp_path / "s.bmp"
    picture = Image.fromarray(filled)
    if n_bytes == 4:  # the fourth is not used
        picture = Image.fromarray(np.dstack([filled, np.zeros(filled.shape[:2], np.uint8)]), "RGBA")
    picture.save(path)
    np.testing.assert_array_equal(read_image(path), filled)


@pytest.mark.parametrize("options", [{}, {"tile": None, "rowsperstrip": 1}, {"tile": (64, 64)}])
def test_black_fill_is_no_damage(tmp_path: Path, options: dict[str, Any]) -> None:
    filled = PIXELS.copy()
    filled[:300] = filled[:, :211] = 0
    filled[512:, 256:] = 0
    filled[400:, 700:] = 0
    path = write(tmp_path / "s.tif", filled, **options)
    with closing(open_slide(path)) as slide:
        result = slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=SIDE)
        slide.overview(downsample=4)
        assert slide.unreadable_px0 == ()
    np.testing.assert_array_equal(result, filled)


def test_black_fill_beside_an_unused_fourth_channel_is_no_damage(tmp_path: Path) -> None:
    filled = np.dstack([PIXELS, np.zeros((SIDE, SIDE), np.uint8)])
    filled[:, 700:] = filled[600:] = 0
    path = write(tmp_path / "s.tif", filled, extrasamples=[0])
    result = whole(path)
    np.testing.assert_array_equal(result, filled[..., :3])


@pytest.mark.parametrize("rows_per_strip", [1, 64, SIDE])
def test_a_black_seam_across_strips_is_no_damage(tmp_path: Path, rows_per_strip: int) -> None:
    filled = PIXELS.copy()
    filled[254:258] = 0
    path = write(tmp_path / "s.tif", filled, tile=None, rowsperstrip=rows_per_strip)
    result = whole(path)
    np.testing.assert_array_equal(result, filled)


@pytest.mark.parametrize("share", [0.02, 0.05, 1])
def test_black_fill_beside_stain_or_ink_that_lacks_a_colour_is_no_damage(
    tmp_path: Path, share: float
) -> None:
    filled, rng = PIXELS.copy(), np.random.default_rng(0)
    filled[rng.random(filled.shape[:2]) < share, 2] = 0
    y, x = np.mgrid[:SIDE, :SIDE]
    filled[x + y // 3 > 600] = 0
    path = write(tmp_path / "s.tif", filled, tile=(64, 64))
    result = whole(path)
    np.testing.assert_array_equal(result, filled)


def test_glass_masked_to_black_along_curves_is_no_damage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in range(10):
        kept = np.zeros((SIDE, SIDE), bool)
        for middle_x, middle_y, radius in rng.uniform((0, 0, 80), (SIDE, SIDE, 250), (5, 3)):
            kept |= (x - middle_x) ** 2 + (y - middle_y) ** 2 < radius**2
        filled = np.where(kept[..., np.newaxis], PIXELS, 0).astype(np.uint8)
        path = write(tmp_path / f"{number}.tif", filled, tile=(128, 128))
        result = whole(path)
        np.testing.assert_array_equal(result, filled)


@pytest.mark.parametrize("compression", ["jpeg2000", "webp", "zstd", "jpeg"])
def test_plain_tiles_are_no_damage_however_few_bytes_they_take(
    tmp_path: Path, compression: str
) -> None:
    plain = np.full((1024, 1024, 3), 255, np.uint8)
    path = write(tmp_path / "s.tif", plain, compression=compression, tile=(1024, 1024))
    result = whole(path)
    assert result.min() >= 254


@pytest.mark.parametrize("options", [{"optimize": True}, {"progressive": True}, {}])
def test_jpegs_of_wide_glass_are_no_damage(options: dict[str, Any]) -> None:
    pixels = np.broadcast_to(np.array(GLASS, np.uint8), (2048, 2048, 3)).copy()
    pixels[:64, :64] = PIXELS[200:264, 200:264]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    assert not is_zeroed_jpeg(stream.getvalue())
    assert not is_zeroed_jpeg(stream.getvalue() + bytes(1000))


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_pictures_in_which_zeros_lie_are_refused(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"s.{suffix}"
    Image.fromarray(PIXELS).save(path)
    assert read_image(path).shape == PIXELS.shape
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(512) + data[middle + 512 :])
    with pytest.raises(SlideError, match=f"a {kind}: its data were overwritten by zeros"):
        open_slide(path)
    with pytest.raises(
        TileError, match=f"a {kind}: its data were overwritten by zeros.*Copy it again"
    ):
        read_image(path)


def test_a_picture_of_one_bit_is_no_slide(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("1").save(tmp_path / "s.png")
    with pytest.raises(UnsupportedFormatError, match="pixels of 1 bit"):
        open_slide(tmp_path / "s.png")


@pytest.mark.parametrize(
    ("zarr_format", "codec"),
    [(2, numcodecs.Zstd()), (2, numcodecs.Blosc("zstd")), (3, zarr.codecs.ZstdCodec())],
)
def test_a_zarr_chunk_in_which_zeros_lie_is_lost(
    tmp_path: Path, zarr_format: int, codec: Any
) -> None:
    pixels = PIXELS & 0xF0  # else they are stored as they are
    path = write_zarr(tmp_path / "s.zarr", (pixels,), zarr_format=zarr_format, compressors=codec)
    chunk = path / "0" / ("5.5.0" if zarr_format == 2 else "c/5/5/0")
    data = chunk.read_bytes()
    middle = len(data) // 2
    chunk.write_bytes(data[:middle] + bytes(512) + data[middle + 512 :])
    with closing(open_slide(path)) as slide, pytest.raises(TileError, match="overwritten by zeros"):
        slide.read(level=0, x_px=330, y_px=330, width_px=9, height_px=9)


def test_an_uncompressed_zarr_chunk_of_zeros_in_tissue_is_lost_and_not_black(
    tmp_path: Path,
) -> None:
    path = write_zarr(tmp_path / "s.zarr", (PIXELS,), compressors=None)
    chunk = path / "0" / "5.5.0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with closing(open_slide(path)) as slide, pytest.raises(TileError, match="row 5, column 5"):
        slide.read(level=0, x_px=330, y_px=330, width_px=9, height_px=9)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("start", "end"), [(4096, 8192), (5120, 12_288), (6144, 12_288), (0, 3072), (1920, 7680)]
)
def test_an_uncompressed_zarr_chunk_that_holds_zeros_is_lost(
    tmp_path: Path, zarr_format: int, start: int, end: int
) -> None:
    path = write_zarr(tmp_path / "s.zarr", (PIXELS,), zarr_format=zarr_format, compressors=None)
    chunk = path / "0" / ("5.5.0" if zarr_format == 2 else "c/5/5/0")
    data = chunk.read_bytes()
    chunk.write_bytes(data[:start] + bytes(end - start) + data[end:])
    with closing(open_slide(path)) as slide:
        with pytest.raises(TileError, match=r"overwritten by zeros.*Copy it again"):
            slide.read(level=0, x_px=330, y_px=330, width_px=9, height_px=9)
        slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=320)


@pytest.mark.parametrize(
    "boxes",
    [
        (np.s_[:300], np.s_[:, :211], np.s_[470:], np.s_[:, 680:]),
        (np.s_[350:354],),
        (np.s_[330:400, 256:384],),
    ],
)
def test_black_fill_in_an_uncompressed_zarr_is_no_damage(
    tmp_path: Path, boxes: tuple[Any, ...]
) -> None:
    filled = PIXELS.copy()
    for box in boxes:
        filled[box] = 0
    path = write_zarr(tmp_path / "s.zarr", (filled,), compressors=None)
    with closing(open_slide(path)) as slide:
        result = slide.read(level=0, x_px=0, y_px=256, width_px=SIDE, height_px=256)
    np.testing.assert_array_equal(result, filled[256:512])


@pytest.mark.parametrize(
    "options", [{"rowsperstrip": 1}, {"rowsperstrip": 64}, {"tile": (64, 64)}, None]
)
def test_what_a_copy_did_not_write_at_the_end_is_lost_wherever_in_a_pixel_it_stopped(
    tmp_path: Path, options: dict[str, Any] | None
) -> None:
    pixels, path = np.clip(PIXELS, 60, 255), tmp_path / ("s.tif" if options else "s.bmp")
    if options:
        write(path, pixels, **{"tile": None, **options})
    else:
        Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    for page in (301, 302, 303):  # a page starts with each of the three colours
        path.write_bytes(data[: page * 4096] + bytes(len(data) - page * 4096))
        if options is None:
            with pytest.raises(SlideError, match="overwritten by zeros"):
                open_slide(path)
            continue
        with closing(open_slide(path)) as slide:
            with pytest.raises(TileError, match="overwritten by zeros"):
                slide.read(level=0, x_px=SIDE - 9, y_px=SIDE - 9, width_px=9, height_px=9)
            slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=256)


def test_stored_black_chunks_of_a_compressed_zarr_are_no_damage(tmp_path: Path) -> None:
    filled = PIXELS.copy()
    filled[256:384, 256:320] = 0
    path = write_zarr(tmp_path / "s.zarr", (filled,), config={"write_empty_chunks": True})
    result = whole(path)
    np.testing.assert_array_equal(result, filled)
    for name in ("4.4.0", "5.4.0"):  # as writers leave them out, and as they get lost
        (path / "0" / name).unlink()
    with closing(open_slide(path)) as slide, pytest.raises(TileError, match="row 4, column 4"):
        slide.read(level=0, x_px=256, y_px=256, width_px=9, height_px=9)


def test_a_zarr_of_empty_chunks_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", (PIXELS,))
    for chunk in (path / "0").glob("*.*.0"):
        chunk.write_bytes(b"")
    with pytest.raises(SlideError, match="none of the sampled chunks can be decoded"):
        open_slide(path)


def test_a_slide_of_openslide_with_a_part_that_was_never_written_is_warned_of(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "s.tif", tile=(64, 64), compression="zlib")
    with closing(OpenSlideSlide(path)) as slide:
        assert slide.warnings == ()
    data = path.read_bytes()
    start = len(data) // 2 // 65536 * 65536
    with path.open("wb") as stream:
        stream.write(data[:start])
        stream.seek(start + 65536)
        stream.write(data[start + 65536 :])
    with path.open("rb") as stream:
        if os.lseek(stream.fileno(), 0, os.SEEK_HOLE) == len(data):
            pytest.skip("this disk keeps no account of holes")
    with closing(OpenSlideSlide(path)) as slide:
        assert (
            f"65,536 bytes of s.tif from byte {start:,} on were never written" in slide.warnings[0]
        )


@pytest.mark.parametrize("coding", ["JPEG", "JPEG 2000"])
@pytest.mark.parametrize("n_in_table", [0, 144])
def test_frames_of_dicom_in_which_zeros_lie_are_lost_and_all_others_are_read(
    tmp_path: Path, coding: str, n_in_table: int
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=n_in_table == 0)
    dataset = dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=144))
    if coding == "JPEG 2000":
        frames = [
            imagecodecs.jpeg2k_encode(imagecodecs.jpeg_decode(frame), codecformat="j2k", mct=True,
                                      reversible=True, level=0)
            for frame in frames
        ]  # fmt: skip
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PhotometricInterpretation = "YBR_RCT"
    damaged = 5 * 12 + 5
    middle = len(frames[damaged]) // 2
    frames[damaged] = frames[damaged][:middle] + bytes(600) + frames[damaged][middle + 600 :]
    dataset.PixelData = encapsulate(frames, has_bot=n_in_table > 0)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    with closing(open_slide(path)) as slide:
        with pytest.raises(TileError, match=r"overwritten by zeros.*Copy it again"):
            slide.read(level=0, x_px=330, y_px=330, width_px=9, height_px=9)
        slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=320)
        slide.read(level=0, x_px=384, y_px=0, width_px=384, height_px=SIDE)
        slide.overview(downsample=4)
        assert slide.unreadable_px0
        lost = [box for box in slide.unreadable_px0 if not (box[0] <= 330 < box[0] + box[2])]
        assert not lost


def test_padding_behind_the_last_frame_of_dicom_is_no_part_of_it(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    dataset = dcmread(path)
    dataset.add_new("DataSetTrailingPadding", "OB", bytes(2048))
    frames = [imagecodecs.jpeg2k_encode(imagecodecs.jpeg_decode(frame), codecformat="j2k",
                                        mct=True, reversible=True, level=0)
              for frame in generate_frames(dataset.PixelData, number_of_frames=144)]  # fmt: skip
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PhotometricInterpretation = "YBR_RCT"
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    with closing(open_slide(path)) as slide:
        read = slide.read(level=0, x_px=SIDE - 64, y_px=SIDE - 64, width_px=64, height_px=64)
    np.testing.assert_allclose(read, PIXELS[-64:, -64:], atol=20)  # as JPEG before JPEG 2000


def test_a_plain_tile_that_openslide_reads_is_kept_whatever_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = PIXELS.copy()
    pixels[:64, :64] = (243, 240, 236)
    path = write(tmp_path / "s.tif", pixels, tile=(64, 64), compression="zlib")
    with closing(OpenSlideSlide(path)) as slide:
        streams = SimpleNamespace(is_zeroed=lambda *box_px: True)
        monkeypatch.setattr(slide, "streams", {(SIDE, SIDE): streams})
        result = slide.read(level=0, x_px=0, y_px=0, width_px=64, height_px=64)
        np.testing.assert_array_equal(result, pixels[:64, :64])
        with pytest.raises(TileError, match="overwritten by zeros"):
            slide.read(level=0, x_px=330, y_px=330, width_px=9, height_px=9)


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_tiles_that_openslide_reads_are_lost_where_zeros_lie(
    tmp_path: Path, compression: str
) -> None:
    text = f"Aperio Image Library v11.2.1 \r\n{SIDE}x{SIDE} (256x256) |MPP = 0.5"
    path = write(
        tmp_path / "s.svs", compression=compression, description=text, software=None,
        tile=(64, 64),
    )  # fmt: skip
    if compression == "jpeg2000":
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags["Compression"].overwrite(33005)
    zero(path, start=0.4, end=0.8, tile=5 * 12 + 5)
    with closing(OpenSlideSlide(path)) as slide:
        assert slide.vendor == "aperio"
        with pytest.raises(TileError, match=r"overwritten by zeros|Corrupt JPEG"):
            slide.read(level=0, x_px=330, y_px=330, width_px=9, height_px=9)
        slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=320)


def noisy(factor: int) -> np.ndarray:
    """The picture so many times as large, with noise that JPEG needs many bytes for."""
    rng, pixels = np.random.default_rng(0), np.kron(PIXELS, np.ones((factor, factor, 1), np.uint8))
    return np.clip(pixels + rng.integers(-9, 10, pixels.shape), 60, 255).astype(np.uint8)


def test_restart_intervals_of_ndpi_are_lost_where_zeros_lie_on_all_levels_made_of_them(
    tmp_path: Path,
) -> None:
    pixels, path = noisy(2), tmp_path / "s.ndpi"
    starts, _ = write_ndpi(path, [pixels, pixels[::4, ::4]], interval=24)
    with closing(open_slide(path)) as slide:
        assert slide.reader == "openslide"
        assert [level.downsample for level in slide.levels[:4]] == [1, 2, 4, 8]
        slide.overview(downsample=4)
        assert slide.unreadable_px0 == ()
    hit = 40 * 8 + 3  # of 8 intervals side by side, each of 192 x 8 px
    with path.open("r+b") as stream:
        stream.seek(starts[hit] + 50)
        stream.write(bytes(300))
    with closing(open_slide(path)) as slide:
        assert isinstance(slide, OpenSlideSlide)
        for level in (0, 1):
            x, y = 576 >> level, 320 >> level
            assert slide.streams[1536 >> level, 1536 >> level].is_zeroed(x + 9, y, 9, 2)
            with pytest.raises(TileError):
                slide.read(level=level, x_px=x + 9, y_px=y, width_px=9, height_px=2)
            slide.read(level=level, x_px=0, y_px=0, width_px=1536 >> level, height_px=y)
            slide.read(level=level, x_px=0, y_px=y + 8, width_px=1536 >> level, height_px=99)
        slide.read(level=2, x_px=0, y_px=0, width_px=384, height_px=384)


@pytest.mark.parametrize("positions", ["raw", "packed", "none"])
@pytest.mark.parametrize(
    ("divisions", "overlap", "kind"),
    [(1, 8, "JPEG"), (2, 8, "JPEG"), (2, 0, "BMP"), (1, 0, "JPEG")],
)
def test_images_of_mrxs_are_lost_where_zeros_lie(
    tmp_path: Path, positions: str, divisions: int, overlap: int, kind: str
) -> None:
    path = tmp_path / "s.mrxs"
    levels = write_mrxs(
        path, noisy(2), positions=positions, divisions=divisions, overlap=overlap, kind=kind
    )
    data = path.with_suffix("") / "Data0000.dat"
    sound = data.read_bytes()
    with closing(open_slide(path)) as slide:
        slide.overview(downsample=1)
        assert slide.unreadable_px0 == ()
    for level, number in ((0, 100), (1, 30), (2, 10)):
        corners, offset, n_bytes = levels[level][number]
        start = offset + n_bytes // 2 - (n_bytes // 2 - 55) % 3  # in a BMP amid a pixel
        data.write_bytes(sound[:start] + bytes(601) + sound[start + 601 :])
        with closing(open_slide(path)) as slide:
            assert isinstance(slide, OpenSlideSlide)
            width, height = slide.levels[level].width_px, slide.levels[level].height_px
            streams, side = slide.streams[width, height], 64 >> level
            for left, top in corners:
                middle = {"x_px": int(left) + side // 2, "y_px": int(top) + side // 2}
                assert streams.is_zeroed(**middle, width_px=1, height_px=1)
                with pytest.raises(TileError):
                    slide.read(level=level, **middle, width_px=3, height_px=3)
            for x, y in product(range(0, width, 8), range(0, height, 8)):
                if not any(
                    left - 8 < x < left + side and top - 8 < y < top + side for left, top in corners
                ):
                    assert not streams.is_zeroed(x, y, 8, 8)


def test_tiles_of_each_area_of_scn_are_lost_where_zeros_lie(tmp_path: Path) -> None:
    path, pixels = tmp_path / "s.scn", noisy(1)
    corners = ((200, 300), (1100, 1200))
    areas = [(left, top, (pixels, pixels[::4, ::4])) for left, top in corners]
    write_scn(path, areas, side_px=2400, tile=64)
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [2400, 600]
        slide.overview(downsample=4)
        assert slide.unreadable_px0 == ()
    for page, level, (left, top) in ((1, 0, corners[0]), (3, 0, corners[1]), (4, 1, corners[1])):
        sound = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            columns = -(-file.pages[page].imagewidth // 64)
            index = 2 * columns + 1
            offset, n_bytes = (getattr(file.pages[page], name)[index]
                               for name in ("dataoffsets", "databytecounts"))  # fmt: skip
        start = offset + n_bytes // 2
        path.write_bytes(sound[:start] + bytes(400) + sound[start + 400 :])
        x, y = (left >> 2 * level) + 64, (top >> 2 * level) + 128
        with closing(open_slide(path)) as slide:
            assert isinstance(slide, OpenSlideSlide)
            size = slide.levels[level].width_px
            streams = slide.streams[size, size]
            assert streams.is_zeroed(x + 9, y + 9, 9, 9)
            assert not streams.is_zeroed(0, 0, size, y - 1)
            assert not streams.is_zeroed(x + 66, y, size, size)
            with pytest.raises(TileError):
                slide.read(level=level, x_px=x + 9, y_px=y + 9, width_px=9, height_px=9)
            slide.read(level=level, x_px=0, y_px=0, width_px=size, height_px=y - 1)
        path.write_bytes(sound)


@pytest.mark.parametrize(
    ("vendor", "overlaps"),
    [("trestle", (12, 12)), ("trestle", (0, 0)), ("ventana", (10, 6)), ("ventana", (-3, 5))],
)
def test_overlapping_tiles_of_trestle_and_bif_are_lost_where_zeros_lie(
    tmp_path: Path, vendor: str, overlaps: tuple[int, int]
) -> None:
    path, pixels = tmp_path / "s.bif", noisy(1)
    levels = (pixels, pixels[::2, ::2])
    if vendor == "trestle":
        write_trestle(path, levels, overlaps=overlaps, tile=64)
    else:
        write_bif(path, levels, overlaps=overlaps, tile=64)
    sound = path.read_bytes()
    with closing(OpenSlideSlide(path)) as slide:
        assert slide.vendor == vendor
        slide.overview(downsample=1)
        assert slide.unreadable_px0 == ()
    with openslide.OpenSlide(path) as handle:
        before = [
            np.asarray(handle.read_region((0, 0), level, size))
            for level, size in enumerate(handle.level_dimensions)
        ]
    for level in (0, 1):
        with tifffile.TiffFile(path) as file:
            page = file.pages[level + (vendor == "ventana")]
            index = 3 * -(-page.imagewidth // 64) + 4
            start = page.dataoffsets[index] + page.databytecounts[index] // 2
        path.write_bytes(sound[:start] + bytes(400) + sound[start + 400 :])
        with closing(OpenSlideSlide(path)) as slide, openslide.OpenSlide(path) as handle:
            size = slide.levels[level]
            shown = handle.read_region((0, 0), level, (size.width_px, size.height_px))
            places = np.argwhere((np.asarray(shown) != before[level]).any(axis=2))
            (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0)
            streams = slide.streams[size.width_px, size.height_px]
            assert 20 < bottom - top < 64
            assert 20 < right - left < 70  # with the gap between tiles, if any
            for x, y in ((left, top), (right, top), (left, bottom), (right, bottom)):
                assert streams.is_zeroed(int(x), int(y), 1, 1)
            assert not streams.is_zeroed(0, 0, int(left) - 24, size.height_px)
            assert not streams.is_zeroed(0, 0, size.width_px, int(top) - 44)
            assert not streams.is_zeroed(int(right) + 24, 0, size.width_px, size.height_px)
            assert not streams.is_zeroed(0, int(bottom) + 24, size.width_px, size.height_px)
            with pytest.raises(TileError, match="overwritten by zeros"):
                slide.read(
                    level=level, x_px=int(left), y_px=int(bottom) - 9, width_px=9, height_px=9
                )


@pytest.mark.parametrize("overlaps", [(0, 0), (7.5, 4.0), (-3, 5)])
@pytest.mark.parametrize(
    "areas",
    [
        [(0, 0, 12, 12, 120, 90.0)],
        [(2, 1, 6, 5, 40, 500), (1, 7, 9, 4, 450, 60)],
        [(0, 0, 5, 12, 0, 0), (5, 0, 7, 12, 131, 700)],
    ],
)
def test_tiles_of_each_area_of_bif_are_lost_where_zeros_lie(
    tmp_path: Path,
    areas: list[tuple[int, int, int, int, float, float]],
    overlaps: tuple[float, float],
) -> None:
    tile, margin = 64, 12
    path, pixels = tmp_path / "s.bif", noisy(1)

    def shown(levels: list[np.ndarray]) -> list[np.ndarray]:
        write_bif(path, levels, overlaps=overlaps, tile=tile, areas=areas)
        with openslide.OpenSlide(path) as handle:
            return [
                np.asarray(handle.read_region((0, 0), level, size)).astype(int)
                for level, size in enumerate(handle.level_dimensions)
            ]

    levels = [pixels, pixels[::2, ::2]]
    before = shown(levels)
    with closing(OpenSlideSlide(path)) as slide:
        slide.overview(downsample=1)
        assert slide.unreadable_px0 == ()
    sound = path.read_bytes()
    for level, row, column in ((0, 2, 2), (0, 6, 8), (1, 2, 1), (1, 2, 3)):
        other = [pixels.copy() for pixels in levels]
        part = other[level][row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        part[:] = 255 - part
        is_there = np.abs(shown(other)[level] - before[level]).max(axis=2) > 0
        assert is_there.any()
        path.write_bytes(sound)
        with tifffile.TiffFile(path) as file:
            page = file.pages[level + 1]
            index = row * -(-page.imagewidth // tile) + column
            start = page.dataoffsets[index] + page.databytecounts[index] // 2
        path.write_bytes(sound[:start] + bytes(400) + sound[start + 400 :])
        with closing(OpenSlideSlide(path)) as slide:
            height, width = is_there.shape
            streams = slide.streams[width, height]
            for y, x in product(range(0, height, 16), range(0, width, 16)):
                around = is_there[
                    max(0, y - margin) : y + 16 + margin, max(0, x - margin) : x + 16 + margin
                ]
                if streams.is_zeroed(x, y, 16, 16):
                    assert around.any(), (level, x, y)
                else:
                    assert not is_there[y : y + 16, x : x + 16].any(), (level, x, y)
            y, x = (int(edge) for edge in np.argwhere(is_there)[-1])
            with pytest.raises(TileError):
                slide.read(level=level, x_px=x - 9, y_px=y - 9, width_px=9, height_px=9)


def test_restart_intervals_of_each_file_of_vms_are_lost_where_zeros_lie(tmp_path: Path) -> None:
    path, pixels = tmp_path / "s.vms", noisy(2)
    starts = write_vms(path, pixels, columns=2, interval=24)
    with closing(open_slide(path)) as slide:
        assert (slide.reader, slide.levels[0].width_px) == ("openslide", 1536)
        slide.overview(downsample=1)
        assert slide.unreadable_px0 == ()
    columns = 768 // 192
    for number, row, column in ((0, 30, 1), (3, 95, 3), (2, 0, 0), (1, 50, 2)):
        file = tmp_path / ("s.jpg" if number == 0 else f"s({number % 2},{number // 2}).jpg")
        sound = file.read_bytes()
        start = starts[number][row * columns + column] + 20
        n_bytes = 300 if column < 2 else 1500  # over several intervals
        file.write_bytes((sound[:start] + bytes(n_bytes) + sound[start + n_bytes :])[: len(sound)])
        x, y = number % 2 * 768 + column * 192, number // 2 * 768 + row * 8
        with closing(open_slide(path)) as slide:
            assert isinstance(slide, OpenSlideSlide)
            for factor in (1, 2, 4):
                side = 1536 // factor
                streams = slide.streams[side, side]
                assert streams.is_zeroed((x + 48) // factor, y // factor, 1, 1)
                assert not streams.is_zeroed(0, 0, side, y // factor)
                assert not streams.is_zeroed(0, -(-(y + 16) // factor), side, side)
                assert not streams.is_zeroed(0, y // factor, x // factor, 1)
            with pytest.raises(TileError):
                slide.read(level=0, x_px=x + 9, y_px=y, width_px=9, height_px=8)
        file.write_bytes(sound)


@pytest.mark.parametrize("false_start", [-1, 0, 2, 2**40, 2**62])
def test_a_false_start_in_the_index_of_vms_leaves_its_rows_unjudged(
    tmp_path: Path, false_start: int
) -> None:
    path, pixels = tmp_path / "s.vms", noisy(2)
    starts = write_vms(path, pixels, columns=2, interval=24)
    index = path.with_suffix(".opt")
    records = np.frombuffer(index.read_bytes(), "<i8").reshape(-1, 5).copy()
    records[30, 0] = records[-1, 0] = false_start
    index.write_bytes(records.tobytes())
    file, row = tmp_path / "s.jpg", 60
    data = bytearray(file.read_bytes())
    start = starts[0][row * (768 // 192)] + 20
    data[start : start + 300] = bytes(300)
    file.write_bytes(data)
    with closing(open_slide(path)) as slide:
        assert isinstance(slide, OpenSlideSlide)
        streams = slide.streams[1536, 1536]
        assert not streams.is_zeroed(0, 0, 1536, 8 * row)
        assert streams.is_zeroed(0, 8 * row, 9, 8)
        assert not streams.is_zeroed(0, 8 * row + 8, 1536, 1536)


def test_a_vms_whose_index_knows_no_starts_is_read_as_openslide_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "s.vms"
    write_vms(path, noisy(2), columns=2, interval=24)
    with closing(open_slide(path)) as slide:
        expected = slide.overview(downsample=1)
    index = path.with_suffix(".opt")
    index.write_bytes(struct.pack("<q32x", -1) * (index.stat().st_size // 40))
    with closing(open_slide(path)) as slide:
        np.testing.assert_array_equal(slide.overview(downsample=1), expected)
        assert slide.unreadable_px0 == ()


def test_a_stream_that_cannot_be_looked_at_is_left_to_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.vms"
    write_vms(path, noisy(2), columns=2, interval=24)
    with closing(open_slide(path)) as slide:
        assert isinstance(slide, OpenSlideSlide)
        box = {"level": 0, "x_px": 0, "y_px": 0, "width_px": 64, "height_px": 64}
        expected = slide.read(**box)
        for error in (
            OSError(5, "Input/output error"),
            ValueError(),
            MemoryError(),
            struct.error(),
        ):
            judge = Mock(side_effect=error)
            monkeypatch.setattr(type(slide.streams[1536, 1536]), "is_zeroed", judge)
            np.testing.assert_array_equal(slide.read(**box), expected)
            judge.assert_called_once()


def test_areas_of_scn_whose_resolutions_differ_slightly_are_looked_at(tmp_path: Path) -> None:
    path, pixels = tmp_path / "s.scn", noisy(1)
    side = len(pixels)
    areas = [(left, left, (pixels, pixels[::4, ::4])) for left in (200, 1400)]
    write_scn(path, areas, side_px=2400, tile=64)
    stated, other = (f'<view sizeX="{nm}"'.encode() for nm in (500 * side, 502 * side))
    head, middle, tail = path.read_bytes().split(stated)
    data = bytearray(head + stated + middle + other + tail)
    with tifffile.TiffFile(path) as file:
        offset, n_bytes = (getattr(file.pages[3], name)[0]
                           for name in ("dataoffsets", "databytecounts"))  # fmt: skip
    start = offset + n_bytes // 2
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    with closing(open_slide(path)) as slide, openslide.OpenSlide(path) as handle:
        assert isinstance(slide, OpenSlideSlide)
        alpha = np.asarray(handle.read_region((1300, 1300), 0, (100, 164)))[..., 3]
        assert not alpha.any()  # the second area begins at 1400
        streams = slide.streams[2400, 2400]
        assert streams.is_zeroed(1400, 1400, 1, 1)
        assert streams.is_zeroed(1463, 1463, 1, 1)
        assert not streams.is_zeroed(0, 0, 1400, 2400)
        assert not streams.is_zeroed(1464, 0, 900, 2400)
        with pytest.raises(TileError):
            slide.read(level=0, x_px=1400, y_px=1400, width_px=9, height_px=9)


def test_an_scn_without_resolution_tags_has_that_of_its_views(tmp_path: Path) -> None:
    path = tmp_path / "s.scn"
    write_scn(path, [(0, 0, (PIXELS, PIXELS[::4, ::4]))], side_px=2400, tile=64, nm_per_px=460)
    with closing(open_slide(path)) as slide:
        assert slide.stated_mpp is not None
        assert (slide.stated_mpp.x, slide.stated_mpp.y) == pytest.approx((0.46, 0.46))
        assert slide.stated_mpp.field == "sizeX of Leica's views"


def test_a_preview_of_a_slide_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "s.mrxs"
    write_mrxs(path, PIXELS, positions="raw")
    index = path.with_suffix("") / "Index.dat"
    index.write_bytes(index.read_bytes()[:200])
    with pytest.raises(SlideError, match=r"no reader can open it .*openslide: .*position info"):
        open_slide(path)
    shutil.rmtree(path.with_suffix(""))
    with pytest.raises(SlideError, match=r"only the preview of a MIRAX slide.*the folder s beside"):
        open_slide(path)
    write(tmp_path / "o.vsi")
    with pytest.raises(SlideError, match=r"whose pixels are in the folder _o_.*bfconvert"):
        open_slide(tmp_path / "o.vsi")
