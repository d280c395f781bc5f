from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from features.errors import SlideError, TileError
from features.slides.backends.image import ImageSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff_streams import tiff_streams
from features.slides.reader import open_slide
from features.slides.search import find_slides
from tests.features.slides.slide_files import whole
from tests.features.slides.vendor_files import write_trestle

PIXELS = np.random.default_rng(0).integers(0, 256, (256, 384, 3), np.uint8)
ROOT = Path(__file__).parents[3]


def write(path: Path, pixels: np.ndarray = PIXELS, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "tile": (128, 128), **options})
    return path


def overwrite(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def tag_of(path: Path, name: str) -> tifffile.TiffTag:
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[0].tags[name]


def refusal(path: Path) -> str:
    """What opening says; it must be one line that names the file."""
    with pytest.raises(SlideError) as caught:
        open_slide(path).close()
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def read_all(path: Path) -> list[bool]:
    """Whether each square of 128 px is read, and read rightly; only TileErrors may come."""
    good = []
    with closing(open_slide(path)) as slide:
        for y in (0, 128):
            for x in (0, 128, 256):
                with suppress(TileError):
                    result = slide.read(level=0, x_px=x, y_px=y, width_px=128, height_px=128)
                    np.testing.assert_array_equal(result, PIXELS[y : y + 128, x : x + 128])
                    good.append(True)
                    continue
                good.append(False)
    return good


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\0" * 5000,
        b"II",
        b"XX*\0\x08\0\0\0" + b"\0" * 99,  # neither byte order
        b"II\0*\x08\0\0\0" + b"\0" * 99,  # the other byte order's magic
        b"MM*\0\0\0\0\x08" + b"\0" * 99,
        b"II+\0\x07\0\0\0" + b"\0" * 99,  # BigTIFF with offsets of 7 bytes
        b"II*\0\0\0\0\0" + b"\0" * 99,  # no directory
        b"II*\0\xff\xff\xff\xff" + b"\0" * 99,  # a directory beyond the end
        b"II*\0\x04\0\0\0" + b"\0" * 99,  # a directory within the header
        b"II*\0\x08\0\0\0\0\0" + b"\0" * 99,  # a directory of nothing
        b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 99,  # a directory of too much
        b"II+\0\x08\0\0\0" + b"\xff" * 99,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
        b"\xff\xd8\xff\xe0" + b"\0" * 99,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\0" * 99,
        b"BM" + b"\xff" * 99,
        b"a,b\n1,2\n" * 99,
    ],
)
def test_content_that_is_no_slide_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "slide.tif").write_bytes(content)
    result, _, expected = refusal(tmp_path / "slide.tif").partition("; expected ")
    assert ("no reader can open it" in result) == bool(content.strip(b"\0"))
    assert "slide" in expected or "image" in expected


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
def test_a_slide_cut_anywhere_fails_clearly_or_loses_only_what_is_cut(
    tmp_path: Path, compression: str | None, bigtiff: bool
) -> None:
    path = write(tmp_path / "slide.tif", compression=compression, bigtiff=bigtiff)
    data = path.read_bytes()
    for n_bytes in [*range(0, 700, 23), *range(700, len(data), len(data) // 16)]:
        path.write_bytes(data[:n_bytes])
        with suppress(SlideError):
            with closing(open_slide(path)) as slide:
                first = slide.read(level=0, x_px=0, y_px=0, width_px=128, height_px=128)
            assert compression == "jpeg" or (first == PIXELS[:128, :128]).all()


@pytest.mark.parametrize("value", [2**32 - 1, 2**31, 10**7])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tile_past_the_end_is_lost_alone(tmp_path: Path, value: int, bigtiff: bool) -> None:
    path = write(tmp_path / "slide.tif", bigtiff=bigtiff)
    size = 8 if bigtiff else 4
    overwrite(
        path, tag_of(path, "TileOffsets").valueoffset + 4 * size, value.to_bytes(size, "little")
    )
    assert read_all(path) == [True] * 4 + [False, True]


def test_a_tile_that_ends_past_the_end_is_lost_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif")
    overwrite(path, tag_of(path, "TileByteCounts").valueoffset + 2 * 5, b"\xff\xff")
    assert read_all(path) == [True] * 5 + [False]


def test_a_tile_is_lost_while_the_open_file_is_shorter_and_comes_back_with_it(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "slide.tif")
    last = tag_of(path, "TileOffsets").value[-1]
    data = path.read_bytes()
    with closing(open_slide(path)) as slide:
        os.truncate(path, last + 10)
        with pytest.raises(TileError, match="past the end of the file"):
            slide.read(level=0, x_px=256, y_px=128, width_px=128, height_px=128)
        with path.open("r+b") as file:
            file.write(data)
        found = slide.read(level=0, x_px=256, y_px=128, width_px=128, height_px=128)
    np.testing.assert_array_equal(found, PIXELS[128:, 256:])


@pytest.mark.parametrize("changes", [{"length": 2**32 - 1}, {"offset": 2**32 - 1}], ids=str)
def test_for_a_tile_past_the_end_no_memory_is_asked_for(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    path = write_raw_tiff(tmp_path / "slide.tif", **changes)
    tracemalloc.start()
    with pytest.raises(SlideError, match="past the end of the file"):
        open_slide(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_a_tile_whose_length_does_not_fit_into_63_bit_is_lost_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", bigtiff=True)
    offsets = tag_of(path, "TileOffsets")
    overwrite(path, offsets.valueoffset + 8, b"\xff" * 8)
    assert read_all(path) == [True, False, True, True, True, True]


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tile_of_terabytes_is_refused_before_openslide_ends_the_process(
    tmp_path: Path, bigtiff: bool
) -> None:
    path = write(tmp_path / "slide.tif", compression="lzw", bigtiff=bigtiff, metadata=None)
    OpenSlideSlide(path).close()
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[1] = 10**13 if bigtiff else 2**32 - 1
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts, dtype="Q" if bigtiff else "I")
    with pytest.raises(SlideError, match=r"a TIFF tile of [0-9,]+ bytes; expected at most"):
        OpenSlideSlide(path)


def test_noise_before_the_frame_does_not_hide_what_a_jpeg_tile_claims(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, length = page.dataoffsets[5], page.databytecounts[5]
        counts = page.tags["TileByteCounts"].valueoffset
    data = path.read_bytes()
    frame = data.index(b"\xff\xc0", offset, offset + length)
    claim = data[frame : frame + 5] + struct.pack(">HH", 65500, 65500)
    lying = data[offset:frame] + b"\x12" + claim + data[frame + 9 : offset + length]
    path.write_bytes(data[:offset] + lying + data[offset + length :])
    overwrite(path, counts + 4 * 5, struct.pack("<I", length + 1))
    with (
        closing(open_slide(path)) as slide,
        pytest.raises(TileError, match="declares 65,500 × 65,500 px"),
    ):
        slide.read(level=0, x_px=256, y_px=128, width_px=9, height_px=9)


PNG_HEADER = b"IHDR" + struct.pack(">IIBBBBB", 16383, 16383, 8, 2, 0, 0, 0)


@pytest.mark.parametrize(
    ("compression", "start", "skip", "claim", "side"),
    [
        ("jpeg", b"\xff\xc0", 5, struct.pack(">HH", 65500, 65500), 65500),
        ("jpeg2000", b"\xff\x4f\xff\x51", 8, struct.pack(">II", 60000, 60000), 60000),
        ("webp", b"VP8L", 9, struct.pack("<I", 16382 | 16382 << 14), 16383),
        ("png", b"IHDR", 0, PNG_HEADER + struct.pack(">I", zlib.crc32(PNG_HEADER)), 16383),
    ],
    ids=["JPEG", "JPEG 2000", "WebP", "PNG"],
)
def test_a_tile_that_claims_to_be_huge_is_lost_before_memory_is_asked_for(
    tmp_path: Path, compression: str, start: bytes, skip: int, claim: bytes, side: int
) -> None:
    path = write(tmp_path / "slide.tif", compression=compression)
    with tifffile.TiffFile(path) as tiff:
        offset = path.read_bytes().index(start, tiff.pages[0].dataoffsets[2])
    overwrite(path, offset + skip, claim)
    with closing(open_slide(path)) as slide:
        slide.read(level=0, x_px=0, y_px=0, width_px=256, height_px=256)
        with pytest.raises(TileError, match=f"declares {side:,} × {side:,} px"):
            slide.read(level=0, x_px=256, y_px=0, width_px=9, height_px=9)


def test_a_slide_that_is_gone_when_it_is_opened_again_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0].dataoffsets[0]
    overwrite(path, first, b"\xaa" * 20)
    with closing(open_slide(path)) as slide:
        path.unlink()
        with pytest.raises(SlideError, match="cannot be opened again"):
            slide.read(level=0, x_px=0, y_px=0, width_px=9, height_px=9)


def test_a_slide_without_any_good_tile_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        first = min(tiff.pages[0].dataoffsets)
    path.write_bytes(path.read_bytes()[:first].ljust(path.stat().st_size, b"\xaa"))
    with pytest.raises(SlideError, match="none of the sampled TIFF tiles can be decoded"):
        open_slide(path)


def test_a_damaged_resolution_tag_costs_the_resolution_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    unit = tag_of(path, "ResolutionUnit")
    overwrite(path, unit.offset + 4, struct.pack("<II", 2, 8))  # two values in place of one
    assert read_all(path) == [True] * 6
    with closing(open_slide(path)) as slide:
        assert slide.mpp_xy is None


def directory(entries: Sequence[tuple[int, int, int, int]], *, following: int) -> bytes:
    """A classic little-endian directory; entries are tag, type, count and value."""
    tags = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + tags + struct.pack("<I", following)


def write_raw_tiff(path: Path, **changes: int) -> Path:
    """Write a grey TIFF, shape (16, 16), in one strip, with any value changed."""
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262,
            "offset": 273, "samples": 277, "rows": 278, "length": 279}  # fmt: skip
    values = {"width": 16, "height": 16, "bits": 8, "compression": 1, "photometric": 1,
              "offset": 8, "samples": 1, "rows": 16, "length": 256, **changes}  # fmt: skip
    entries = [(tag, 4, values.get(f"n_{name}", 1), values[name]) for name, tag in tags.items()]
    data = struct.pack("<2sHI", b"II", 42, 264) + b"\x80" * 256
    path.write_bytes(data + directory(entries, following=0))
    return path


def peak_bytes(path: Path) -> int:
    """Most memory that a refusal takes, bytes."""
    tracemalloc.start()
    try:
        refusal(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_file_by_hand_is_a_slide(tmp_path: Path) -> None:
    result = whole(write_raw_tiff(tmp_path / "slide.tif"))
    assert (result == 0x80).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 2**31, "height": 2**31},
        {"width": 2**31, "height": 2**31, "rows": 2**31},
        {"width": 2**32 - 1, "height": 1},
        {"width": 1, "height": 2**32 - 1, "rows": 1},
        {"width": 0},
        {"height": 0},
        {"width": 3_999_999, "height": 3_999_999},  # within our limit, but in one strip
        {"width": 3_999_999, "height": 3_999_999, "rows": 1},
        {"height": 2**31, "rows": 1, "n_offset": 2**31, "n_length": 2**31},
        {"rows": 1, "n_offset": 2**32 - 1, "n_length": 2**32 - 1},
        {"rows": 1},  # sixteen strips, one offset
        {"width": 9999, "height": 9999, "rows": 9999, "samples": 2**16 - 1},
        {"bits": 2**16 - 1},
        {"n_bits": 2**32 - 1},
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_and_allocate_nothing(
    tmp_path: Path, changes: dict[str, int]
) -> None:
    assert peak_bytes(write_raw_tiff(tmp_path / "slide.tif", **changes)) < 20 << 20


def test_sizes_below_zero_are_refused(tmp_path: Path) -> None:
    path, pixels = tmp_path / "slide.tif", np.zeros((256, 256, 3), np.uint8)
    write_trestle(path, [pixels], overlaps=[200], tile=64)  # wider than a tile
    with pytest.raises(SlideError, match=r"-\d+ × -\d+ px"):
        open_slide(path)


def test_absurd_tiles_are_refused_and_allocate_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif")
    for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            tiff.pages[0].tags[name].overwrite(2**31 - 16, dtype="I")
    assert peak_bytes(path) < 20 << 20


def test_absurdly_many_planes_in_the_metadata_allocate_nothing(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.tif"
    write(path, metadata={"axes": "YXS"})
    with tifffile.TiffFile(path) as tiff:
        ome = tiff.pages[0].description.replace('SizeT="1"', 'SizeT="2147483647"')
    write(path, metadata=None, description=ome, tile=None, compression="webp")
    assert peak_bytes(path) < 20 << 20


def test_an_absurd_png_is_refused_at_once_and_a_large_one_is_not_a_bomb(tmp_path: Path) -> None:
    def write_header(width: int, height: int) -> Path:
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (tmp_path / "slide.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x63IDAT" + b"\0" * 99
        )
        return tmp_path / "slide.png"

    refusal(write_header(2**31 - 1, 2**31 - 1))
    with pytest.raises(SlideError, match="at most 268,435,456 px"):
        ImageSlide(write_header(40_000, 40_000))
    with pytest.raises(SlideError, match="no plain image") as caught:
        ImageSlide(write_header(14_000, 13_000))
    assert "bomb" not in str(caught.value)


def test_transparency_of_a_large_image_takes_no_more_room_than_its_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (4000, 4000), (255, 0, 0, 128)).save(tmp_path / "slide.png")
    tracemalloc.start()
    slide = ImageSlide(tmp_path / "slide.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result = slide.read(level=0, x_px=3998, y_px=3998, width_px=3, height_px=3)
    assert result[0, 0].tolist() == [255, 127, 127]
    assert result[2, 2].tolist() == [255, 255, 255]
    assert peak < 4 * 48_000_000  # 128 million bytes were measured: those of the file, and colours


def write_chain(path: Path, following: Sequence[int | None]) -> Path:
    """Directories of one grey image; each leads to the one of that index, None ends the chain."""
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1),
               (273, 4, 1, 8), (277, 4, 1, 1), (278, 4, 1, 16), (279, 4, 1, 256)]  # fmt: skip
    size = len(directory(entries, following=0))
    data = struct.pack("<2sHI", b"II", 42, 264) + b"\x80" * 256
    for target in following:
        position = 0 if target is None else 264 + target * size
        data += directory(entries, following=position)
    path.write_bytes(data)
    return path


OPEN = """
import sys
from pathlib import Path
from features.errors import SlideError
from features.slides.reader import open_slide
try:
    slide = open_slide(Path(sys.argv[1]))
    slide.overview(downsample=4)
    print("opened", slide.read(level=0, x_px=0, y_px=0, width_px=16, height_px=16).mean())
except SlideError as error:
    print(error)
"""


def opening_message(path: Path) -> str:
    """Output of opening a slide in a process of its own, which is ended if it hangs."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN, path], cwd=ROOT, timeout=60, check=True, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    "following",
    [
        [0],
        [1, 0],
        [1, 2, 1],
        [*range(1, 150), 0],
        [*range(1, 150), 130],
        [*range(1, 150), 149],
    ],
    ids=["itself", "back", "back past the first", "long", "long with a tail", "tail to itself"],
)
@pytest.mark.parametrize("suffix", [".tif", ".ndpi"])
def test_directories_in_a_circle_are_an_error_and_no_hang(
    tmp_path: Path, following: list[int], suffix: str
) -> None:
    path = write_chain(tmp_path / f"slide{suffix}", following)
    message = opening_message(path)
    assert f"slide{suffix}: no reader can open it" in message
    assert "directories that lead back to one another" in message


def test_a_long_chain_of_directories_without_a_circle_is_walked_to_its_end(tmp_path: Path) -> None:
    path = write_chain(tmp_path / "slide.tif", [*range(1, 150), None])
    assert "150 images of one size" in opening_message(path)


def test_an_ndpi_whose_directories_are_in_a_circle_is_an_error_and_no_hang(tmp_path: Path) -> None:
    path = tmp_path / "slide.ndpi"
    extra = [(271, 2, 9, "Hamamatsu", True), (65420, 4, 1, 1, True), (65441, 4, 1, 9, True)]
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(150):
            tiff.write(PIXELS[:16, :16], photometric="rgb", extratags=extra, metadata=None)
    with tifffile.TiffFile(path, is_ndpi=False) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[-1]
        overwrite(path, last.offset + 2 + 12 * len(last.tags), struct.pack("<I", first))
    assert "slide.ndpi: no reader can open it" in opening_message(path)


def write_pages(path: Path, *pages: tuple[np.ndarray, int]) -> list[int]:
    """Tiled pages, each with NewSubfileType; positions of their directories."""
    with tifffile.TiffWriter(path) as file:
        for pixels, kind in pages:
            file.write(
                np.ascontiguousarray(pixels), photometric="rgb", tile=(128, 128), metadata=None,
                subfiletype=kind,
            )  # fmt: skip
    with tifffile.TiffFile(path) as tiff:
        return [page.offset for page in tiff.pages]


@pytest.mark.parametrize("flag", [0, 1])
def test_a_file_without_its_last_pages_is_refused_unless_it_begins_with_the_slide(
    tmp_path: Path, flag: int
) -> None:
    path = tmp_path / "s.tif"
    half, quarter = (PIXELS[::2, ::2], flag), (PIXELS[::4, ::4], flag)
    for pages in ((quarter, half, (PIXELS, 0)), (half, quarter, (PIXELS, 0))):
        cut = write_pages(path, *pages)[-1]
        path.write_bytes(path.read_bytes()[:cut])
        if pages[0] is quarter or flag:
            assert "the slide may be among the pages that are missing" in refusal(path)
        else:  # nothing tells it from a slide, but for the warning
            with closing(open_slide(path)) as slide:
                assert "was cut off: levels may be missing" in slide.warnings[0]
    cut = write_pages(path, (PIXELS, 0), half, quarter)[-1]
    path.write_bytes(path.read_bytes()[:cut])
    with closing(open_slide(path)) as slide:
        assert slide.levels[0].width_px == PIXELS.shape[1]
        assert "was cut off: levels may be missing" in slide.warnings[0]
    assert all(read_all(path))


def test_the_library_prints_nothing_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    cut = write_pages(path, (PIXELS, 0), (PIXELS[::2, ::2], 1))[-1]
    path.write_bytes(path.read_bytes()[:cut])
    code = "import sys; from features.slides import open_slide; open_slide(sys.argv[1]).close()"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("target", [264, 0, 4, 2**32 - 1])
def test_sub_directories_that_lead_astray_do_no_harm(tmp_path: Path, target: int) -> None:
    path = tmp_path / "slide.tif"
    entries = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 4, 1, 8), (259, 4, 1, 1), (262, 4, 1, 1),
               (273, 4, 1, 8), (277, 4, 1, 1), (278, 4, 1, 16), (279, 4, 1, 256),
               (330, 4, 1, target)]  # fmt: skip
    data = struct.pack("<2sHI", b"II", 42, 264) + b"\x80" * 256
    path.write_bytes(data + directory(entries, following=0))
    message = opening_message(path)
    assert "opened 128" in message or "slide.tif: " in message


def healthy(compression: str | None) -> bytes:
    file = BytesIO()
    tifffile.imwrite(file, PIXELS, photometric="rgb", tile=(128, 128), compression=compression)
    return file.getvalue()


HEALTHY = {compression: healthy(compression) for compression in (None, "jpeg")}


@settings(max_examples=150)
@given(
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6)
)
@pytest.mark.parametrize("compression", [None, "jpeg"])
def test_any_damage_to_the_header_ends_in_a_slide_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, compression: str | None,
    changes: list[tuple[int, int]],
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / f"damaged-{compression}.tif"
    data = bytearray(HEALTHY[compression])
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    try:
        slide = open_slide(path)
    except SlideError:
        refusal(path)
        return
    with closing(slide):
        size = slide.levels[0]
        assert min(size.width_px, size.height_px) > 0
        for x, y in ((0, 0), (size.width_px - 1, size.height_px - 1)):
            with suppress(TileError):
                pixels = slide.read(level=0, x_px=x, y_px=y, width_px=3, height_px=3)
                assert (pixels.shape, pixels.dtype) == ((3, 3, 3), np.uint8)


def test_a_folder_named_like_a_slide_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "slide.tif").mkdir()
    assert "a folder, no slide" in refusal(tmp_path / "slide.tif")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_slide_without_permission_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif")
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_a_link_to_itself_or_to_nothing_is_no_slide(tmp_path: Path) -> None:
    for name, target in (("itself.tif", "itself.tif"), ("nothing.tif", "gone.tif")):
        (tmp_path / name).symlink_to(target)
        refusal(tmp_path / name)
        with pytest.raises(SlideError, match=name):
            find_slides([tmp_path / name])


def test_loops_of_links_are_not_followed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / name / "slide.png")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "itself").symlink_to("itself")
    result = [str(path.relative_to(tmp_path)) for path in find_slides([tmp_path])]
    assert result == ["a/slide.png", "b/slide.png"]


@pytest.mark.parametrize("suffix", ["tif", "bmp"])
def test_a_copy_in_text_mode_is_refused_and_not_read_as_noise(tmp_path: Path, suffix: str) -> None:
    rng, path = np.random.default_rng(0), tmp_path / f"s.{suffix}"
    pixels = rng.integers(0, 256, (512, 512, 3)).astype(np.uint8)
    text = b"\r\n".join([b"line"] * 400).decode()
    if suffix == "tif":
        tifffile.imwrite(path, pixels, photometric="rgb", description=text, metadata=None)
    else:
        Image.fromarray(pixels).save(path)
    with closing(open_slide(path)) as slide:
        assert slide.levels[0].width_px == 512
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(SlideError, match=r"as after a copy in text mode.*in binary mode"):
        open_slide(path)


def test_tiles_whose_length_is_no_number_are_not_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", compression="jpeg")
    assert len(tiff_streams(path, "generic-tiff", [])) == 1
    overwrite(path, tag_of(path, "TileLength").offset + 2, struct.pack("<H", 7))  # bytes
    assert tiff_streams(path, "generic-tiff", []) == {}
