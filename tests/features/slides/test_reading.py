from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from features.errors import SlideError, TileError, UnsupportedFormatError
from features.slides.backends.image import ImageSlide
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.tiff import TiffSlide
from features.slides.cache import TileCache, _BlockMemory
from features.slides.pixels import to_rgb
from features.slides.reader import open_slide, slide_id_of
from features.slides.search import find_slides
from tests.fakes import real_data
from tests.features.slides.slide_files import NOISE, whole


def write(path: Path, pixels: np.ndarray = NOISE, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "tile": (128, 128), **options})
    return path


@settings(max_examples=25)
@given(
    x=st.integers(-60, 460),
    y=st.integers(-60, 340),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
)
def test_any_region_equals_the_padded_image(x: int, y: int, width: int, height: int) -> None:
    global SHARED  # noqa: PLW0603 - one open slide for all examples
    if SHARED is None:
        import tempfile

        SHARED = TiffSlide(write(Path(tempfile.mkdtemp()) / "s.tif", compression="lzw"))
    padded = np.pad(NOISE, ((60, 200), (60, 200), (0, 0)), constant_values=255)
    result = SHARED.read(level=0, x_px=x, y_px=y, width_px=width, height_px=height)
    np.testing.assert_array_equal(result, padded[y + 60 :, x + 60 :][:height, :width])


SHARED: TiffSlide | None = None


def test_empty_glass_is_known_from_the_header_and_not_decoded(tmp_path: Path) -> None:
    glass = np.empty((4096, 4096, 3), np.uint8)
    glass[:] = (196, 211, 192)
    glass[1024:1536, 2048:2560] = NOISE[:256, :256].repeat(2, 0).repeat(2, 1)
    slide = TiffSlide(write(tmp_path / "s.tif", glass, compression="lzw"))
    decoded = []
    original = slide._decode
    slide._decode = lambda *a: decoded.append(a[1:]) or original(*a)
    result = slide.overview(downsample=32)
    tissue = {(row, column) for row in range(8, 12) for column in range(16, 20)}
    assert tissue <= set(decoded)
    assert len(set(decoded) - tissue) <= 96  # the sample that separates glass from tissue
    assert (result[0, 0] == (196, 211, 192)).all()
    assert np.abs(result[40, 70].astype(int) - (196, 211, 192)).max() > 40
    n_decoded = len(decoded)
    slide.read(level=0, x_px=2048, y_px=1024, width_px=512, height_px=512)
    assert len(decoded) == n_decoded  # what the overview decoded is not decoded again
    slide.close()


def test_threads_decode_each_segment_once(tmp_path: Path) -> None:
    slide = TiffSlide(write(tmp_path / "s.tif", compression="lzw"))
    decoded: list[object] = []
    lock = threading.Lock()
    original = slide._decode

    def count(*arguments: object) -> np.ndarray:
        with lock:
            decoded.append(arguments)
        return original(*arguments)

    slide._decode = count
    with ThreadPoolExecutor(8) as pool:
        for pixels in pool.map(lambda _: whole(slide), range(24)):
            np.testing.assert_array_equal(pixels, NOISE)
    assert len(decoded) == len(set(decoded)) == 12
    slide.close()


def test_the_overview_leaves_the_blocks_in_the_cache_that_tiles_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "noise.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (256, 64, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb")
    monkeypatch.setattr("features.slides.backends.base._CACHE_BYTES", 2 * 64 * 64 * 3)
    monkeypatch.setattr("features.slides.backends.base.CPU_COUNT", 1)  # in order
    with closing(TiffSlide(path)) as slide:
        slide.overview(downsample=8)
        decoded: list[int] = []
        original = slide._decode
        slide._decode = lambda *a: decoded.append(a[1]) or original(*a)
        for row in range(4):
            slide.read(level=0, x_px=0, y_px=64 * row, width_px=64, height_px=64)
    assert decoded == [2, 3]


def test_blocks_whose_memory_was_released_are_decoded_again(tmp_path: Path) -> None:
    with closing(TiffSlide(write(tmp_path / "s.tif", compression="lzw"))) as slide:
        before = whole(slide)
        decoded: list[object] = []
        original = slide._decode
        slide._decode = lambda *a: decoded.append(a) or original(*a)
        np.testing.assert_array_equal(whole(slide), before)
        assert not decoded
        slide.release_memory()
        np.testing.assert_array_equal(whole(slide), before)
        assert len(decoded) == 12


def test_the_cache_keeps_to_its_bytes() -> None:
    cache = TileCache(max_bytes=3 * 300)
    piece = np.zeros((10, 10, 3), np.uint8)
    calls: list[int] = []
    for key in (1, 2, 3, 1, 4, 1, 2):
        cache.get(key, lambda key=key: calls.append(key) or piece)
    assert calls == [1, 2, 3, 4, 2]  # 2 was the longest unused when 4 came


def test_memory_of_a_block_is_used_again_once_nothing_refers_to_its_pixels() -> None:
    memory = _BlockMemory(max_spare_bytes=600)
    block = memory.copy(np.full((10, 10, 3), 1, np.uint8))
    address = block.ctypes.data
    row = block[4].reshape(-1)[::2]
    del block
    other = memory.copy(np.full((10, 10, 3), 2, np.uint8))
    assert other.ctypes.data != address
    assert (row == 1).all()
    del row
    again = memory.copy(np.full((10, 10, 3), 3, np.uint8))
    assert again.ctypes.data == address
    assert (other == 2).all()
    assert (again == 3).all()


def test_spare_memory_of_blocks_keeps_to_its_bytes_and_lets_the_oldest_size_go() -> None:
    memory = _BlockMemory(max_spare_bytes=600)
    blocks = [memory.copy(np.zeros((side, 10, 3), np.uint8)) for side in (20, 10, 10, 10)]
    while blocks:
        blocks.pop(0)
    assert {size: len(spare) for size, spare in memory._spare.items() if spare} == {300: 2}
    assert memory._n_spare_bytes == 600


def test_of_two_threads_that_want_a_block_the_second_waits_and_a_failure_is_not_kept() -> None:
    cache = TileCache(max_bytes=900)
    piece = np.zeros((10, 10, 3), np.uint8)
    started, may_end = threading.Event(), threading.Event()
    calls: list[str] = []

    def fail() -> np.ndarray:
        calls.append("fail")
        started.set()
        may_end.wait()
        raise TileError("s.tif", actual="damaged", expected="pixels")

    def decode() -> np.ndarray:
        calls.append("decode")
        return piece

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, 1, fail)
        started.wait()
        second = pool.submit(cache.get, 1, decode)
        assert calls == ["fail"]
        may_end.set()
        with pytest.raises(TileError, match="damaged"):
            first.result()
        block = second.result()
    np.testing.assert_array_equal(block, piece)
    assert cache.get(1, fail) is block
    assert calls == ["fail", "decode"]


def test_a_broken_tile_is_an_error_and_its_neighbours_are_not(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tif", compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    slide = open_slide(path)
    with pytest.raises(
        TileError, match=r"row 1, column 1 of level 0 at \(128, 128\) px0 cannot be decoded"
    ):
        slide.read(level=0, x_px=150, y_px=150, width_px=9, height_px=9)
    result = slide.read(level=0, x_px=0, y_px=0, width_px=100, height_px=100)
    np.testing.assert_array_equal(result, NOISE[:100, :100])
    assert slide.overview(downsample=8).shape == (38, 53, 3)
    slide.close()


def test_resolution_comes_from_the_tags_and_is_not_judged_here(tmp_path: Path) -> None:
    cases = [
        ({"resolution": (10, 10), "resolutionunit": "CENTIMETER"}, (1000.0, 1000.0)),
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, (0.25, 0.5)),
        ({"resolution": (50800, 50800), "resolutionunit": "INCH"}, (0.5, 0.5)),
        ({"resolution": (1, 1), "resolutionunit": "NONE"}, None),
        ({"description": "Aperio |MPP = 0.2530|x"}, (0.253, 0.253)),
    ]
    for options, expected in cases:
        slide = TiffSlide(write(tmp_path / "s.tif", metadata=None, **options))
        assert slide.mpp_xy == (expected and pytest.approx(expected))
        slide.close()


def test_ome_metadata_gives_the_resolution(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(
        path, NOISE, photometric="rgb", tile=(128, 128),
        metadata={"axes": "YXS", "PhysicalSizeX": 0.46, "PhysicalSizeY": 0.46},
    )  # fmt: skip
    slide = open_slide(path)
    assert slide.mpp_xy == pytest.approx((0.46, 0.46))
    assert slide_id_of(path) == "s"
    slide.close()


def test_plain_images_are_one_level_slides(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "s.png")
    slide = open_slide(tmp_path / "s.png")
    assert slide.reader == "image"
    np.testing.assert_array_equal(whole(slide), NOISE)
    slide.close()


def test_a_picture_in_colours_of_printing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jpg"
    Image.fromarray(NOISE).convert("CMYK").save(path)
    with pytest.raises(UnsupportedFormatError, match=r"colours as CMYK; .* vips colourspace"):
        open_slide(path)


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "s.png")
    (tmp_path / "s.png").rename(tmp_path / "s.svs")
    assert open_slide(tmp_path / "s.svs").reader == "image"


def test_too_large_a_plain_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.slides.backends.image._MAX_PX", 1000)
    Image.fromarray(NOISE).save(tmp_path / "s.png")
    with pytest.raises(SlideError, match="plain image of 421 × 300 px"):
        ImageSlide(tmp_path / "s.png")


def test_missing_files_folders_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "gone.tif")
    with pytest.raises(SlideError, match="a folder, no slide"):
        open_slide(tmp_path)
    with pytest.raises(SlideError, match="no slide in it"):
        find_slides([tmp_path])
    with pytest.raises(SlideError, match="no such file or folder"):
        find_slides([tmp_path / "gone"])


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lost+found").mkdir()
    scan = os.scandir

    def refuse(folder: Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "lost+found":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SlideError, match=r"lost\+found: cannot be listed \(Permission denied\)"):
        find_slides([tmp_path])


def test_slides_are_found_in_subfolders_without_loops_and_hidden_files(tmp_path: Path) -> None:
    for name in ("b/x.SVS", "a.tif", ".hidden.tif", "notes.txt", "m/Index.dat", "m.mrxs",
                 "m/inner.tif", "d/1.dcm", "d/2.dcm"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    result = [str(path.relative_to(tmp_path)) for path in find_slides([tmp_path])]
    # The files of a DICOM slide are one by their series; damaged ones are all tried, and named.
    assert result == ["a.tif", "b/x.SVS", "d/1.dcm", "d/2.dcm", "m.mrxs"]


def test_transparency_shows_the_background() -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8)
    result = to_rgb(pixels, background_rgb=(200, 210, 220))
    assert result.tolist() == [[[200, 210, 220], [10, 20, 30]]]


@real_data
def test_one_slide_in_three_formats_is_the_same_image(mil_data: Path) -> None:
    folder = mil_data / "slides"
    paths = [
        folder / "cmu-1-small-region.svs",
        folder / "cmu-1-small-region.pyramid.tiff",
        find_slides([folder / "cmu-1-small-region.dicom"])[0],
    ]
    slides = [open_slide(path) for path in paths]
    assert [slide.reader for slide in slides] == ["tiff", "tiff", "openslide"]
    region = {"level": 0, "x_px": 700, "y_px": 900, "width_px": 900, "height_px": 900}
    regions = [slide.read(**region).astype(int) for slide in slides]
    for slide, pixels in zip(slides, regions, strict=True):
        assert slide.mpp_xy == pytest.approx((0.499, 0.499))
        assert np.abs(pixels - regions[0]).mean() < 8  # each was compressed anew
        slide.close()


@real_data
def test_a_slide_that_openslide_refuses_is_read(mil_data: Path) -> None:
    path = mil_data / "slides" / "kidney-48-5.tif"
    with pytest.raises(SlideError):
        OpenSlideSlide(path)
    slide = open_slide(path)
    np.testing.assert_array_equal(whole(slide), tifffile.imread(path)[..., :3])
    slide.close()


@real_data
@pytest.mark.parametrize("name", ["broken.svs", "unopenable.tiff", "unreadable.svs"])
def test_broken_slides_are_clear_errors(mil_data: Path, name: str) -> None:
    def read_overview() -> None:
        slide = open_slide(mil_data / "slides" / "edge" / name)
        with closing(slide):
            slide.overview(downsample=4)

    with pytest.raises(SlideError, match=name):
        read_overview()
