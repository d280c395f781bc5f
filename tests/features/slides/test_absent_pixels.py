from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from features.errors import SlideError, TileError
from features.series.images import read_image
from features.slides.backends.dicom import open_with_openslide
from features.slides.base import Slide
from features.slides.reader import open_slide
from features.tiling.grid import TileSettings
from features.tiling.slide_tiles import open_slide_tiles
from features.tiling.tissue import TissueSettings
from tests.features.slides import slide_files
from tests.features.slides.vendor_files import write_philips

SIDE = 768
BLOCK = 64
GLASS = (243, 241, 244)


def paint() -> np.ndarray:
    """Tissue with structure in the middle of glass, shape (768, 768, 3)."""
    rng = np.random.default_rng(0)
    pixels = np.broadcast_to(np.array(GLASS, np.uint8), (SIDE, SIDE, 3)).copy()
    texture = ndimage.gaussian_filter(rng.normal(0, 1, (472, 472, 3)), (6, 6, 0))
    stain = np.array((150, 80, 140)) + 60 * texture / texture.std()
    pixels[148:620, 148:620] = stain.clip(0, 255).astype(np.uint8)
    return pixels


PIXELS = paint()
HALF = PIXELS.reshape(384, 2, 384, 2, 3).mean((1, 3)).round().astype(np.uint8)
QUARTER = PIXELS.reshape(192, 4, 192, 4, 3).mean((1, 3)).round().astype(np.uint8)
LEVELS = (PIXELS, HALF, QUARTER)
Blocks = Iterable[tuple[int, int]]

write_tiff = partial(slide_files.write_tiff, tile=(BLOCK, BLOCK), compression="zlib", metadata=None)
write_zarr = partial(slide_files.write_zarr, chunk_px=BLOCK, chunk_channels=3)


def lose(path: Path, level: int, blocks: Blocks, *, bytes_too: bool = True) -> None:
    """Set byte counts of TIFF tiles to 0, or only damage what they point to."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        tag = page.tags["TileByteCounts"]
        columns = -(-page.imagewidth // BLOCK)
        offsets, counts = page.dataoffsets, page.databytecounts
    kind = {3: "H", 4: "I", 16: "Q"}[int(tag.dtype)]
    with path.open("r+b") as file:
        for row, column in blocks:
            index = row * columns + column
            if bytes_too:
                file.seek(tag.valueoffset + index * struct.calcsize(kind))
                file.write(struct.pack(f"<{kind}", 0))
            else:
                file.seek(offsets[index])
                file.write(b"\xff" * counts[index])


def lose_chunks(path: Path, level: int, blocks: Blocks) -> None:
    for row, column in blocks:
        flat = path / str(level) / f"{row}.{column}.0"
        nested = path / str(level) / "c" / str(row) / str(column) / "0"
        (flat if flat.exists() else nested).unlink()


def read(path: Path, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, width, height = box
    with closing(open_slide(path)) as slide:
        return slide.read(level=level, x_px=left, y_px=top, width_px=width, height_px=height)


@pytest.fixture(params=["tiff, no bytes", "tiff, damaged", "zarr 2", "zarr 3"])
def losing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A function that writes a slide of these levels and loses blocks of one, for each format."""

    def write(levels: Iterable[np.ndarray], lost: dict[int, Blocks]) -> Path:
        if request.param.startswith("tiff"):
            path = write_tiff(tmp_path / "s.tif", levels)
            for level, blocks in lost.items():
                lose(path, level, blocks, bytes_too="bytes" in request.param)
        else:
            path = write_zarr(tmp_path / "s.zarr", levels, zarr_format=int(request.param[-1]))
            for level, blocks in lost.items():
                lose_chunks(path, level, blocks)
        return path

    return write


def cut_jpegs(path: Path, blocks: Blocks, *, how: str) -> None:
    """Halve the streams of TIFF tiles, or overwrite their second halves with zeros."""
    with tifffile.TiffFile(path, mode="r+") as file:
        page = file.pages[0]
        columns = -(-page.imagewidth // page.tilewidth)
        counts = list(page.databytecounts)
        for row, column in blocks:
            index = row * columns + column
            half = counts[index] // 2
            if how == "zeros":
                file.filehandle.seek(page.dataoffsets[index] + half)
                file.filehandle.write(bytes(counts[index] - half))
            else:
                counts[index] = half
        page.tags["TileByteCounts"].overwrite(counts)


@pytest.mark.parametrize("how", ["zeros", "short"])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_that_end_early_are_lost_and_not_grey(
    tmp_path: Path, how: str, subsampling: tuple[int, int]
) -> None:
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", tile=(128, 128), compression="jpeg",
        subsampling=subsampling, metadata=None,
    )  # fmt: skip
    blocks = [(2, 2), (2, 3), (3, 2), (3, 3)]
    cut_jpegs(path, blocks, how=how)
    with closing(open_slide(path)) as slide:
        for row, column in blocks:
            with pytest.raises(TileError, match=r"its JPEG stream ends early|overwritten by zeros"):
                slide.read(level=0, x_px=128 * column, y_px=128 * row, width_px=128, height_px=128)
        whole = slide.read(level=0, x_px=0, y_px=0, width_px=768, height_px=256)
        assert np.abs(whole.astype(int) - PIXELS[:256]).mean() < 12


@pytest.mark.parametrize("grey", [128, (128, 128, 127)])
def test_a_grey_picture_that_was_stored_so_is_read(tmp_path: Path, grey: object) -> None:
    pixels = np.full((256, 256, 3), grey, np.uint8)
    tifffile.imwrite(
        tmp_path / "s.tif", pixels, photometric="rgb", tile=(128, 128), compression="jpeg"
    )
    result = read(tmp_path / "s.tif", 0, (0, 0, 256, 256))
    np.testing.assert_allclose(result, pixels, atol=1)


def test_pictures_whose_jpeg_data_end_early_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jpg"
    Image.fromarray(PIXELS).save(path)
    assert read_image(path).shape == PIXELS.shape
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    with pytest.raises(SlideError, match="a JPEG whose data end early"):
        open_slide(path)
    with pytest.raises(TileError, match="a JPEG whose data end early"):
        read_image(path)


@pytest.mark.parametrize("n_levels", [1, 2])
def test_a_tiff_tile_at_the_start_of_the_file_is_not_stored(tmp_path: Path, n_levels: int) -> None:
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path) as file:
        for level in LEVELS[:n_levels]:
            file.write(level, photometric="rgb", tile=(BLOCK, BLOCK), metadata=None)
    with tifffile.TiffFile(path) as file:
        position = file.pages[n_levels - 1].tags["TileOffsets"].valueoffset
        columns = file.pages[n_levels - 1].imagewidth // BLOCK
    with path.open("r+b") as stream:
        stream.seek(position + 4 * (2 * columns + 3))
        stream.write(bytes(4))
    box = (3 * BLOCK, 2 * BLOCK, BLOCK, BLOCK)
    if n_levels == 1:
        with pytest.raises(
            TileError, match=r"row 2, column 3 of level 0 at \(192, 128\) px0 is not"
        ):
            read(path, 0, box)
    else:
        expected = HALF[2 * BLOCK : 3 * BLOCK, 3 * BLOCK : 4 * BLOCK]
        np.testing.assert_allclose(read(path, 1, box).astype(int), expected, atol=1)


def test_what_a_coarser_level_lacks_comes_from_the_finer(losing: Any) -> None:
    path = losing(LEVELS, {1: [(2, 2), (2, 3)]})
    np.testing.assert_allclose(read(path, 1, (0, 0, 384, 384)).astype(int), HALF, atol=1)


def test_two_levels_may_lack_it(losing: Any) -> None:
    path = losing(LEVELS, {1: [(2, 2), (2, 3), (3, 2), (3, 3)], 2: [(1, 1)]})
    np.testing.assert_allclose(read(path, 2, (0, 0, 192, 192)).astype(int), QUARTER, atol=2)


def test_a_whole_level_may_be_missing(losing: Any) -> None:
    path = losing(LEVELS, {1: [(row, column) for row in range(6) for column in range(6)]})
    np.testing.assert_allclose(read(path, 1, (0, 0, 384, 384)).astype(int), HALF, atol=1)


def check_lost(slide: Slide, hole: Sequence[tuple[int, int]]) -> None:
    """Check that blocks of level 0, by row and column, are lost, and one beside them is not."""
    for row, column in hole:
        with pytest.raises(TileError, match=f"row {row}, column {column} of level 0"):
            slide.read(level=0, x_px=column * BLOCK + 9, y_px=row * BLOCK + 9, width_px=9,
                       height_px=9)  # fmt: skip
    beside = slide.read(level=0, x_px=192, y_px=256, width_px=64, height_px=64)
    np.testing.assert_array_equal(beside, PIXELS[256:320, 192:256])


@pytest.mark.parametrize("n_levels", [1, 3])
def test_tissue_that_the_finest_level_lacks_is_lost_and_not_white(
    losing: Any, n_levels: int
) -> None:
    hole = [(row, column) for row in (4, 5, 6) for column in (4, 5, 6)]
    path = losing(LEVELS[:n_levels], {0: hole})
    with closing(open_slide(path)) as slide:
        check_lost(slide, hole)
        slide.overview(downsample=4)
        lost = {(y // BLOCK, x // BLOCK) for x, y, _, _ in slide.unreadable_px0}
        assert lost == (set(hole) if n_levels == 1 else set())


def test_what_every_level_lacks_is_lost_in_all(losing: Any) -> None:
    path = losing(LEVELS, {0: [(4, 4), (4, 5), (5, 4), (5, 5)], 1: [(2, 2)], 2: [(1, 1)]})
    for level, place in ((0, 300), (1, 150), (2, 75)):
        with pytest.raises(TileError, match=f"level {level}"):
            read(path, level, (place, place, 9, 9))


@pytest.mark.parametrize("n_levels", [1, 2])
def test_glass_that_a_sparse_file_leaves_out_is_glass(tmp_path: Path, n_levels: int) -> None:
    corner = [(row, column) for row in (0, 1) for column in range(12)]
    tiff = write_tiff(tmp_path / "s.tif", LEVELS[:n_levels])
    stored = write_zarr(tmp_path / "s.zarr", LEVELS[:n_levels], fill_value=243)
    lose(tiff, 0, corner)
    lose_chunks(stored, 0, corner)
    for path in (tiff, stored):
        result = read(path, 0, (0, 0, SIDE, 128))
        assert np.ptp(result, axis=(0, 1)).max() <= 1
        assert result.min() >= 241
        assert np.abs(read(path, 0, (0, 128, SIDE, SIDE - 128)) - PIXELS[128:]).max() == 0


def test_chunks_within_a_shard_may_be_missing(tmp_path: Path) -> None:
    white = PIXELS.copy()
    white[256:320, 256:320] = 0  # equal to the fill value, so that it is not stored
    path = write_zarr(tmp_path / "s.zarr", (white,), zarr_format=3, shards=(384, 384, 3))
    with pytest.raises(
        TileError,
        match=r"row 4, column 4 of level 0 at \(256, 256\) px0 is not.*Copy or export the slide",
    ):
        read(path, 0, (260, 260, 9, 9))


def test_one_channel_without_pixels_is_lost_too(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(np.moveaxis(PIXELS, -1, 0))
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path, planes, photometric="rgb", planarconfig="separate", tile=(BLOCK, BLOCK),
        compression="zlib", metadata=None,
    )  # fmt: skip
    lose(path, 0, [(12 + 4, 4)])  # the second plane follows the 12 rows of the first
    with pytest.raises(TileError, match="1 of 3 planes have no bytes"):
        read(path, 0, (260, 260, 9, 9))


def test_tiles_wholly_in_a_hole_of_a_slide_of_one_level_are_tried_and_counted(losing: Any) -> None:
    hole = [(row, column) for row in range(4, 8) for column in range(4, 8)]
    path = losing(LEVELS[:1], {0: hole})
    with open_slide_tiles(
        path, tiles=TileSettings(tile_px=32, rules=()), tissue=TissueSettings(), given_mpp=0.5
    ) as tiles:
        failed = [
            tuple(tiles.grid.coords_px0[index].tolist())
            for index in range(tiles.n_tiles)
            if isinstance(tiles.read(index), TileError)
        ]
    inside = {(x, y) for x in range(256, 512, 32) for y in range(256, 512, 32)}
    assert set(failed) == inside


def test_a_hole_in_glass_adds_no_tiles(losing: Any) -> None:
    whole, holed = (losing(LEVELS[:1], {0: hole}) for hole in ([], [(0, 5), (0, 6), (1, 11)]))
    counts = []
    for path in (whole, holed):
        with open_slide_tiles(
            path, tiles=TileSettings(tile_px=32), tissue=TissueSettings(), given_mpp=0.5
        ) as tiles:
            counts.append(tiles.n_tiles)
    assert counts[0] == counts[1] > 100


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_table_of_tiles_shorter_than_the_level_lacks_the_last(tmp_path: Path, level: int) -> None:
    path = write_tiff(tmp_path / "s.tif", LEVELS)
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[level].tags[name] for name in ("TileByteCounts", "TileOffsets")]
    with path.open("r+b") as file:
        for tag in tags:
            file.seek(tag.offset + 4)
            file.write(struct.pack("<I", tag.count * 2 // 3))
    with closing(open_slide(path)) as slide:
        assert slide.reader == "tiff"
        assert f"of level {level} have no bytes" in slide.warnings[0]
        if level:
            result = slide.read(level=level, x_px=0, y_px=0, width_px=SIDE >> level,
                                height_px=SIDE >> level)  # fmt: skip
            np.testing.assert_allclose(result.astype(int), LEVELS[level], atol=1)
        else:
            with pytest.raises(TileError, match=r"level 0 .* is not stored"):
                slide.read(level=0, x_px=300, y_px=560, width_px=9, height_px=9)


@pytest.mark.parametrize(
    ("tag", "at", "value", "message"),
    [
        ("TileOffsets", 4, struct.pack("<I", 40), "40 TIFF tiles where 144 should be"),
        ("TileByteCounts", 0, struct.pack("<H", 65_000), "no byte counts of its TIFF tiles"),
    ],
    ids=["too few", "a tag of nobody's"],
)
def test_a_slide_that_lists_few_of_its_tiles_or_no_byte_counts_is_refused_and_not_white(
    tmp_path: Path, tag: str, at: int, value: bytes, message: str
) -> None:
    path = write_tiff(tmp_path / "s.tif", LEVELS[:1])
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].tags[tag].offset
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(value)
    with pytest.raises(SlideError, match=message):
        open_slide(path)


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_a_level_that_was_cut_is_set_aside(tmp_path: Path, kind: str) -> None:
    levels = (PIXELS, HALF[:256], QUARTER)
    path = (
        write_tiff(tmp_path / "s.tif", levels)
        if kind == "tiff"
        else write_zarr(tmp_path / "s.zarr", levels)
    )
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [768, 192]
        result = slide.read(level=1, x_px=0, y_px=0, width_px=192, height_px=192)
        np.testing.assert_array_equal(result, QUARTER)


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
@pytest.mark.parametrize(
    "other",
    [
        np.full_like(QUARTER, GLASS),
        np.full_like(QUARTER, 2),
        np.roll(QUARTER, 60, axis=1),
        QUARTER[..., ::-1],
        QUARTER[..., [1, 2, 0]],
    ],
    ids=["blank", "black", "elsewhere", "blue first", "turned channels"],
)
def test_a_level_that_shows_something_else_is_set_aside(
    tmp_path: Path, kind: str, other: np.ndarray
) -> None:
    write, name = (write_tiff, "s.tif") if kind == "tiff" else (write_zarr, "s.zarr")
    path = write(tmp_path / name, (PIXELS, HALF, other))
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [768, 384]
        assert any("192 × 192 px is set aside" in text for text in slide.warnings)
        np.testing.assert_allclose(slide.overview(downsample=4), QUARTER, atol=1)
    # The levels behind it keep their pixels.
    path = write(tmp_path / f"2-{name}", (PIXELS, other.repeat(2, 0).repeat(2, 1), QUARTER))
    np.testing.assert_array_equal(read(path, 1, (0, 0, 192, 192)), QUARTER)


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
@pytest.mark.parametrize("turned", [np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1]])
def test_a_level_that_is_mirrored_is_set_aside_though_the_tissue_is_of_one_colour(
    tmp_path: Path, kind: str, turned: tuple[slice, ...]
) -> None:
    write, name = (write_tiff, "s.tif") if kind == "tiff" else (write_zarr, "s.zarr")
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, (SIDE, SIDE, 1)), 9)
    fine = (np.array((205, 150, 190)) + 9 * texture / texture.std()).astype(np.uint8)
    for number, coarse in enumerate((fine[::4, ::4], fine[::4, ::4][turned])):
        with closing(open_slide(write(tmp_path / f"{number}{name}", (fine, coarse)))) as slide:
            assert len(slide.levels) == 2 - number
            assert len(slide.warnings) == number


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_a_level_with_blue_first_is_set_aside_though_most_of_it_is_glass(
    tmp_path: Path, kind: str
) -> None:
    write, name = (write_tiff, "s.tif") if kind == "tiff" else (write_zarr, "s.zarr")
    glass = np.array(GLASS)
    fine, coarse = (glass + (level - glass) * 0.3 for level in (PIXELS.astype(float), HALF))
    fine[:400] = coarse[:200] = glass
    fine, coarse = fine.round().astype(np.uint8), coarse.round().astype(np.uint8)
    with closing(open_slide(write(tmp_path / f"a{name}", (fine, coarse)))) as slide:
        assert len(slide.levels) == 2
    with closing(open_slide(write(tmp_path / f"b{name}", (fine, coarse[..., ::-1])))) as slide:
        assert len(slide.levels) == 1


@pytest.mark.parametrize(
    "other", [np.full_like(HALF, GLASS), np.roll(HALF, 120, axis=1), HALF[..., ::-1]],
    ids=["blank", "elsewhere", "blue first"],
)  # fmt: skip
def test_openslide_reads_no_level_that_shows_something_else(
    tmp_path: Path, other: np.ndarray
) -> None:
    sizes = {}
    for name, half in {"same": HALF, "other": other}.items():
        path = write_tiff(tmp_path / f"{name}.tif", (PIXELS, half, QUARTER))
        with closing(open_with_openslide(path)) as slide:
            sizes[name] = [level.width_px for level in slide.levels]
            result = slide.read(
                level=len(slide.levels) - 1, x_px=0, y_px=0, width_px=192, height_px=192
            )
            np.testing.assert_array_equal(result, QUARTER)
            assert bool(slide.warnings) == (name == "other")
    assert sizes == {"same": [768, 384, 192], "other": [768, 192]}


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_a_level_that_is_much_coarser_is_compared_too(tmp_path: Path, kind: str) -> None:
    write, name = (write_tiff, "s.tif") if kind == "tiff" else (write_zarr, "s.zarr")
    small = PIXELS.reshape(48, 16, 48, 16, 3).mean((1, 3)).round().astype(np.uint8)
    for number, level in enumerate((small, np.roll(small, 15, axis=1))):
        with closing(open_slide(write(tmp_path / f"{number}{name}", (PIXELS, level)))) as slide:
            assert len(slide.levels) == 2 - number


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_levels_of_rounded_sizes_and_shifted_by_a_pixel_show_the_same(
    tmp_path: Path, kind: str
) -> None:
    write, name = (write_tiff, "s.tif") if kind == "tiff" else (write_zarr, "s.zarr")
    levels = (PIXELS, np.roll(HALF, 1, axis=1)[:-1], np.roll(QUARTER, 1, axis=0)[:, :-1])
    with closing(open_slide(write(tmp_path / name, levels))) as slide:
        assert len(slide.levels) == 3
        assert slide.warnings == ()


def test_a_coarser_level_that_is_listed_but_missing_is_set_aside(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr", LEVELS)
    shutil.rmtree(path / "1")
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [768, 192]
        assert "level '1' is set aside" in slide.warnings[0]


@pytest.mark.parametrize("n_levels", [1, 3])
@pytest.mark.parametrize("vendor", ["aperio", "generic-tiff"])
def test_tissue_in_tiff_tiles_that_openslide_shows_as_background_is_lost(
    tmp_path: Path, vendor: str, n_levels: int
) -> None:
    text = f"Aperio Image Library v12 \r\n{SIDE}x{SIDE} (64x64) |MPP = 0.5"
    options = {"description": text, "software": None} if vendor == "aperio" else {}
    path = write_tiff(tmp_path / "s.svs", LEVELS[:n_levels], **options)
    hole = [(row, column) for row in (4, 5) for column in (4, 5)]
    lose(path, 0, hole)
    lose(path, 0, [(0, column) for column in range(12)])  # empty glass
    with closing(open_with_openslide(path)) as slide:
        assert "16 of 144 TIFF tiles of level 0 are not stored" in slide.warnings
        check_lost(slide, hole)
        glass = slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=BLOCK)
        assert glass.min() >= min(GLASS) - 1
        slide.overview(downsample=4)
        lost = {(y // BLOCK, x // BLOCK) for x, y, _, _ in slide.unreadable_px0}
        is_shown = n_levels == 3 and vendor == "generic-tiff"
        assert lost == (set() if is_shown else {(4, 4)} if n_levels == 3 else set(hole))


def test_a_hole_in_the_area_of_each_tile_of_the_next_level_is_lost(tmp_path: Path) -> None:
    text = f"Aperio Image Library v12 \r\n{SIDE}x{SIDE} (64x64) |MPP = 0.5"
    path = write_tiff(tmp_path / "s.svs", LEVELS, description=text, software=None)
    lose(path, 0, [(row, column) for row in range(0, 12, 2) for column in range(0, 12, 2)])
    with closing(open_with_openslide(path)) as slide:
        with pytest.raises(TileError, match="row 4, column 4 of level 0"):
            slide.read(level=0, x_px=4 * BLOCK, y_px=4 * BLOCK, width_px=9, height_px=9)
        slide.overview(downsample=4)
        lost = {(y // BLOCK, x // BLOCK) for x, y, _, _ in slide.unreadable_px0}
        assert (4, 4) in lost


def test_what_a_level_lacks_that_openslide_reads_comes_from_the_finer(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "s.tif", LEVELS)
    lose(path, 1, [(2, 2), (2, 3)])
    with closing(open_with_openslide(path)) as slide:
        assert slide.warnings == ("2 of 36 TIFF tiles of level 1 are not stored",)
        result = slide.read(level=1, x_px=0, y_px=0, width_px=384, height_px=384)
        np.testing.assert_allclose(result.astype(int), HALF, atol=1)


@pytest.mark.parametrize("reader", [open_slide, open_with_openslide])
def test_glass_that_a_scanner_of_philips_leaves_out_is_not_warned_of(
    tmp_path: Path, reader: Any
) -> None:
    path = tmp_path / "s.tiff"
    write_philips(path, LEVELS, tile=BLOCK)
    glass = [(row, column) for row in (0, 11) for column in range(12)]
    lose(path, 0, glass)
    with closing(reader(path)) as slide:
        assert slide.warnings == ()
        assert slide.stated_mpp.field == "openslide.mpp-x of philips"
        result = slide.read(level=0, x_px=0, y_px=0, width_px=SIDE, height_px=SIDE)
        assert np.abs(result.astype(int) - PIXELS).mean() < 6
    lose(path, 0, [(5, 5)])
    with closing(reader(path)) as slide, pytest.raises(TileError, match="row 5, column 5"):
        slide.read(level=0, x_px=5 * BLOCK, y_px=5 * BLOCK, width_px=9, height_px=9)
