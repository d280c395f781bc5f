from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from features.errors import MultiImageError, SlideError
from features.slides.backends.openslide import OpenSlideSlide
from features.slides.backends.samples import is_ycbcr
from features.slides.backends.tiff import TiffSlide
from features.slides.reader import open_slide
from tests.features.slides.slide_files import NOISE, whole
from tests.features.slides.test_absent_pixels import PIXELS

SMOOTH = (128 + 12 * (ndimage.gaussian_filter(NOISE.astype(float), (5, 5, 0)) - 128)).astype(
    np.uint8
)
"""A picture of which coarser levels show the same."""
ROWS, COLUMNS = np.mgrid[0:256, 0:384]
WAVES = np.stack(
    [
        128 + 100 * np.sin(COLUMNS / 40 + ROWS / 70),
        128 + 100 * np.cos(ROWS / 50),
        128 + 90 * np.sin(COLUMNS / 60),
    ],
    axis=-1,
).astype(np.uint8)
"""A smooth image of whole TIFF tiles, so that lossy codecs err by little."""

BAG_FORMATS = [{"tile": (128, 128)}, {"tile": (48, 160)}, {"tile": None, "rowsperstrip": 17}]
LOSSLESS = {
    "none": {"compression": None},
    "lzw": {"compression": "lzw"},
    "deflate": {"compression": "deflate"},
    "zstd": {"compression": "zstd"},
    "packbits": {"compression": "packbits"},
    "lzw, predictor": {"compression": "lzw", "predictor": True},
    "deflate, predictor": {"compression": "deflate", "predictor": True},
    "zstd, predictor": {"compression": "zstd", "predictor": True},
    "jpeg2000": {"compression": "jpeg2000", "compressionargs": {"level": 0, "reversible": True}},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
}


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "tile": (128, 128), **options})
    return path


def pixels_of(path: Path, reader: type = TiffSlide) -> np.ndarray:
    with closing(reader(path)) as slide:
        return whole(slide)


def largest_error(result: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(result.astype(int) - expected.astype(int)).max())


def triple(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("bigtiff", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("layout", BAG_FORMATS, ids=["tiles", "oblong tiles", "strips"])
@pytest.mark.parametrize("options", LOSSLESS.values(), ids=LOSSLESS)
def test_lossless_eight_bit_colours_come_back_exactly(
    tmp_path: Path, options: dict[str, object], layout: dict[str, object], bigtiff: bool
) -> None:
    path = write(tmp_path / "s.tif", NOISE, bigtiff=bigtiff, **layout, **options)
    np.testing.assert_array_equal(pixels_of(path), NOISE)


@pytest.mark.parametrize("byteorder", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("layout", BAG_FORMATS, ids=["tiles", "oblong tiles", "strips"])
@pytest.mark.parametrize("options", LOSSLESS.values(), ids=LOSSLESS)
def test_of_sixteen_bit_the_upper_eight_are_kept(
    tmp_path: Path, options: dict[str, object], layout: dict[str, object], byteorder: str
) -> None:
    if options["compression"] == "webp":
        pytest.skip("WebP has 8 bit")
    if options["compression"] == "jpeg2000" and byteorder == ">":
        pytest.skip("tifffile passes big-endian samples to the JPEG 2000 encoder unswapped")
    deep = np.random.default_rng(1).integers(0, 65536, NOISE.shape, np.uint16)
    path = write(tmp_path / "s.tif", deep, byteorder=byteorder, **layout, **options)
    np.testing.assert_array_equal(pixels_of(path), (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize("byteorder", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("bigtiff", [False, True], ids=["classic", "big"])
def test_either_byte_order_is_read_in_classic_and_big_files(
    tmp_path: Path, byteorder: str, bigtiff: bool
) -> None:
    path = write(tmp_path / "s.tif", NOISE, byteorder=byteorder, bigtiff=bigtiff, compression="lzw")
    np.testing.assert_array_equal(pixels_of(path), NOISE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("layout", BAG_FORMATS, ids=["tiles", "oblong tiles", "strips"])
def test_grey_is_three_equal_channels_and_miniswhite_is_turned_round(
    tmp_path: Path, layout: dict[str, object], compression: str | None, dtype: type
) -> None:
    grey = NOISE[..., 0]
    full = np.iinfo(dtype).max
    deep = grey.astype(dtype) * dtype(full // 255)
    for kind, stored in (("minisblack", deep), ("miniswhite", full - deep)):
        path = write(
            tmp_path / "s.tif", stored, photometric=kind, compression=compression, **layout
        )
        np.testing.assert_array_equal(pixels_of(path), triple(grey), err_msg=kind)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", BAG_FORMATS, ids=["tiles", "oblong tiles", "strips"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_colours_in_separate_planes_come_together(
    tmp_path: Path, compression: str | None, layout: dict[str, object], dtype: type
) -> None:
    planes = np.moveaxis(NOISE, -1, 0).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    path = write(
        tmp_path / "s.tif", planes, planarconfig="separate", compression=compression, **layout
    )
    np.testing.assert_array_equal(pixels_of(path), NOISE)


@pytest.mark.parametrize("compression", [None, "lzw", "jpeg2000"])
def test_three_channels_of_an_ome_tiff_are_red_green_and_blue(
    tmp_path: Path, compression: str | None
) -> None:
    path = tmp_path / "s.ome.tif"
    options = {"photometric": "minisblack", "tile": (64, 64), "compression": compression}
    if compression == "jpeg2000":
        options["compressionargs"] = {"level": 0, "reversible": True}
    planes = np.ascontiguousarray(np.moveaxis(SMOOTH, -1, 0))
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(planes, subifds=1, metadata={"axes": "CYX"}, **options)
        file.write(planes[:, ::2, ::2], subfiletype=1, **options)
    with closing(TiffSlide(path)) as slide:
        np.testing.assert_array_equal(whole(slide), SMOOTH)
        np.testing.assert_array_equal(whole(slide, 1), SMOOTH[::2, ::2])


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"ome": True, "metadata": {"axes": "CYX"}}, (2, 300, 421)),
        ({"imagej": True}, (3, 300, 421)),
        ({"tile": (64, 64)}, (3, 300, 421)),
        ({"metadata": None, "tile": (64, 64)}, (3, 300, 421)),
        ({"metadata": None, "tile": (64, 64), "photometric": "rgb"}, (2, 300, 421, 3)),
    ],
    ids=["OME of two channels", "ImageJ", "tifffile", "pages", "pages in colours"],
)
def test_of_several_images_none_is_taken_for_the_slide(
    tmp_path: Path, options: dict[str, object], shape: tuple[int, ...]
) -> None:
    path = tmp_path / "s.tif"
    stack = np.zeros(shape, np.uint8)
    tifffile.imwrite(path, stack, **{"photometric": "minisblack", **options})
    with pytest.raises(MultiImageError, match=f"{shape[0]} images of one size.*Export the slide"):
        open_slide(path)


@pytest.mark.parametrize(
    ("kind", "second"),
    [
        ({}, {}),
        ({"ome": True}, {}),
        ({"shaped": False}, {"tile": (64, 64)}),
    ],
    ids=["tifffile", "OME", "cut otherwise"],
)
def test_of_several_series_of_one_size_none_is_taken_for_the_slide(
    tmp_path: Path, kind: dict[str, bool], second: dict[str, object]
) -> None:
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path, **kind) as file:
        file.write(NOISE, photometric="rgb")
        file.write(255 - NOISE, photometric="rgb", **second)
    with pytest.raises(MultiImageError, match=r"2 images of one size.*Export the slide"):
        open_slide(path)


@pytest.mark.parametrize(
    ("companion", "options"),
    [
        (NOISE[::2], {}),
        (NOISE[..., 0], {"photometric": "minisblack"}),
        (255 - NOISE, {"subfiletype": 1}),
        (255 - NOISE, {"metadata": {"Name": "label image"}}),
    ],
    ids=["smaller", "grey", "reduced", "label"],
)
def test_images_that_accompany_the_slide_are_left_out(
    tmp_path: Path, companion: np.ndarray, options: dict[str, object]
) -> None:
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(NOISE, photometric="rgb")
        file.write(companion, **{"photometric": "rgb", **options})
    np.testing.assert_array_equal(pixels_of(path, open_slide), NOISE)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("fill", [0, 40, None])
def test_a_fourth_sample_that_cannot_be_alpha_hides_no_colour(
    fill: int | None, dtype: type[np.uint8 | np.uint16], tmp_path: Path
) -> None:
    """Such as padding, a mask or another channel, which the file does not name."""
    other = np.random.default_rng(4).integers(0, 256, NOISE.shape[:2], np.uint8)
    fourth = other if fill is None else np.full_like(other, fill)
    stored = np.dstack([NOISE, fourth]).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    path = write(tmp_path / "s.tif", stored, extrasamples=["unspecified"], compression="lzw")
    assert largest_error(pixels_of(path), NOISE) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_transparency_shows_white_whether_colours_are_multiplied_by_it_or_not(
    tmp_path: Path, kind: str, dtype: type
) -> None:
    alpha = np.random.default_rng(2).integers(0, 256, NOISE.shape[:2], np.uint8)
    colour = NOISE if kind == "unassalpha" else np.rint(NOISE * (alpha[..., None] / 255))
    stored = np.dstack([colour, alpha]).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    path = write(tmp_path / "s.tif", stored, extrasamples=[kind], compression="lzw")
    assert largest_error(pixels_of(path), on_white(NOISE, alpha)) <= 1  # rounding


def test_grey_with_transparency_shows_white(tmp_path: Path) -> None:
    grey, alpha = NOISE[..., 0], NOISE[..., 1]
    path = write(
        tmp_path / "s.tif", np.dstack([grey, alpha]), photometric="minisblack",
        planarconfig="contig", extrasamples=["unassalpha"],
    )  # fmt: skip
    assert largest_error(pixels_of(path), on_white(triple(grey), alpha)) <= 1  # rounding


def test_further_channels_that_are_no_transparency_are_left_out(tmp_path: Path) -> None:
    more = {"planarconfig": "contig", "extrasamples": ["unspecified"]}
    path = write(tmp_path / "grey.tif", NOISE[..., :2], photometric="minisblack", **more)
    np.testing.assert_array_equal(pixels_of(path), triple(NOISE[..., 0]))
    more["extrasamples"] = ["unspecified", "unspecified"]
    path = write(tmp_path / "five.tif", np.dstack([NOISE, NOISE[..., :2]]), **more)
    np.testing.assert_array_equal(pixels_of(path), NOISE)


@pytest.mark.parametrize("factor", [257, 1], ids=["of 16 bit", "of 8 bit by mistake"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_palette_entries_become_colours(
    tmp_path: Path, compression: str | None, factor: int
) -> None:
    palette = np.random.default_rng(3).integers(0, 256, (3, 256)).astype(np.uint16)
    grey = NOISE[..., 0]
    path = write(
        tmp_path / "s.tif", grey, photometric="palette", colormap=palette * factor,
        compression=compression,
    )  # fmt: skip
    np.testing.assert_array_equal(pixels_of(path), np.moveaxis(palette, 0, -1)[grey])


# Largest errors measured with imagecodecs 2026.3.6 on WAVES, plus a little for other versions.
LOSSY = {
    "jpeg RGB": ({"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}, 6),
    "jpeg 4:4:4": ({"compression": "jpeg", "subsampling": (1, 1)}, 8),
    "jpeg 4:2:2": ({"compression": "jpeg", "subsampling": (2, 1)}, 8),
    "jpeg 4:2:0": ({"compression": "jpeg", "subsampling": (2, 2)}, 8),
    "jpeg2000": ({"compression": "jpeg2000", "compressionargs": {"level": 60}}, 8),
    "webp": ({"compression": "webp", "compressionargs": {"lossless": False}}, 12),
}


@pytest.mark.parametrize(
    "layout", [{}, {"tile": None, "rowsperstrip": 64}], ids=["tiles", "strips"]
)
@pytest.mark.parametrize(("options", "tolerance"), LOSSY.values(), ids=LOSSY)
def test_lossy_colours_come_back_nearly(
    tmp_path: Path, options: dict[str, object], tolerance: int, layout: dict[str, object]
) -> None:
    options = {**options, "compressionargs": {"level": 95, **options.get("compressionargs", {})}}
    path = write(tmp_path / "s.tif", WAVES, **layout, **options)
    assert largest_error(pixels_of(path), WAVES) <= tolerance


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_grey_jpeg_comes_back_nearly(tmp_path: Path, kind: str) -> None:
    grey = WAVES[..., 0]
    stored = grey if kind == "minisblack" else 255 - grey
    path = write(tmp_path / "s.tif", stored, photometric=kind, compression="jpeg")
    assert largest_error(pixels_of(path), triple(grey)) <= 6


def parts_of_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """Tables as a stream of their own, and the stream without them."""
    tables, rest, position = b"", stream[:2], 2
    while stream[position + 1] != 0xDA:  # start of scan
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if stream[position + 1] in {0xDB, 0xC4}:  # quantisation, Huffman
            tables += stream[position:end]
        else:
            rest += stream[position:end]
        position = end
    return stream[:2] + tables + b"\xff\xd9", rest + stream[position:]


def write_with_shared_tables(path: Path, kind: str, subsampling: str) -> Path:
    colours = {"colorspace": "rgb", "outcolorspace": "rgb" if kind == "rgb" else "ycbcr"}
    streams = [
        parts_of_jpeg(
            imagecodecs.jpeg_encode(
                np.ascontiguousarray(WAVES[y : y + 128, x : x + 128]),
                level=95, subsampling=subsampling, **colours,
            )
        )
        for y in (0, 128)
        for x in (0, 128, 256)
    ]  # fmt: skip
    assert len({tables for tables, _ in streams}) == 1

    def segments() -> Iterator[bytes]:
        for _, rest in streams:
            yield rest

    factors = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling]
    tifffile.imwrite(
        path, segments(), shape=WAVES.shape, dtype=np.uint8, photometric=kind, tile=(128, 128),
        compression="jpeg", jpegtables=streams[0][0], subsampling=factors,
        compressionargs={"outcolorspace": "rgb"} if kind == "rgb" else None,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("kind", "subsampling"), [("rgb", "444"), ("ycbcr", "422"), ("ycbcr", "420")]
)
def test_jpeg_tables_shared_by_all_tiles_are_used(
    tmp_path: Path, kind: str, subsampling: str
) -> None:
    path = write_with_shared_tables(tmp_path / "s.tif", kind, subsampling)
    result = pixels_of(path)
    assert largest_error(result, WAVES) <= 8
    np.testing.assert_array_equal(result, pixels_of(path, OpenSlideSlide))


def stained(rgb: tuple[int, int, int], side_px: int) -> np.ndarray:
    """Tissue in one stain of varied density, shape (side_px, side_px, 3), uint8."""
    tone = np.random.default_rng(0).normal(size=(side_px, side_px, 1))
    tone = ndimage.gaussian_filter(tone, (5, 5, 0))
    density = -np.log(np.array(rgb) / 250) * (1 + 0.3 * tone / tone.std())
    return (250 * np.exp(-density)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("code", [33003, 33004, 33005, 34712])
@pytest.mark.parametrize("kind", ["rgb", "ycbcr"])
@pytest.mark.parametrize("stored", ["RGB", "YCbCr"])
@pytest.mark.parametrize("part", ["slide", "tissue"])
def test_colours_of_jpeg_2000_are_those_of_its_samples_whatever_its_tags_say(
    tmp_path: Path, part: str, stored: str, kind: str, code: int
) -> None:
    pixels = stained((186, 110, 160), 256)
    if part == "slide":
        pixels = np.pad(pixels, ((99, 60), (70, 90), (0, 0)), constant_values=243)
    samples = np.asarray(Image.fromarray(pixels).convert(stored))
    path = write(tmp_path / "s.tif", samples, photometric=kind, compression="jpeg2000",
                 compressionargs={"level": 0, "reversible": True})  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(code)
    assert largest_error(pixels_of(path), pixels) <= (3 if stored == "YCbCr" else 0)
    with closing(TiffSlide(path)) as slide:
        is_denied = (stored, kind) == ("YCbCr", "rgb") and code != 33003
        assert any("its samples are YCbCr" in text for text in slide.warnings) == is_denied


def without_markers(stream: bytes) -> bytes:
    """A JPEG stream without the segments of applications, which state its colours."""
    kept, position = stream[:2], 2
    while stream[position + 1] != 0xDA:  # start of scan
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if stream[position + 1] not in range(0xE0, 0xF0):
            kept += stream[position:end]
        position = end
    return kept + stream[position:]


def counted(stream: bytes) -> bytes:
    """A JPEG stream without markers whose components count from 0, as Aperio writes RGB."""
    stream = without_markers(stream)
    frame, scan = stream.index(b"\xff\xc0"), stream.index(b"\xff\xda")
    changed = bytearray(stream)
    changed[frame + 10 : frame + 19 : 3] = changed[scan + 5 : scan + 11 : 2] = b"\0\1\2"
    return bytes(changed)


def dense_tissue() -> np.ndarray:
    """Blue and pink without glass, whose green and blue vary little and around the middle."""
    tone = stained((125, 125, 125), 256)[..., :1] / 250
    blue, pink = np.array([60, 120, 145]), np.array([250, 135, 130])
    return (blue + tone * (pink - blue)).astype(np.uint8)


@pytest.mark.parametrize(
    ("stored", "subsampling", "marked"),
    [("ycbcr", "444", False), ("ycbcr", "422", False), ("ycbcr", "420", True), ("rgb", "444", True),
     ("rgb", "444", False)],
)  # fmt: skip
def test_jpeg_tagged_as_rgb_is_read_in_the_colours_that_it_has(
    tmp_path: Path, stored: str, subsampling: str, marked: bool
) -> None:
    pixels = np.pad(
        stained((186, 110, 160), 192), ((30, 34), (40, 24), (0, 0)), constant_values=243
    )
    streams = in_tiles(pixels, subsampling=subsampling, colorspace="rgb", outcolorspace=stored)
    streams = streams if marked else [without_markers(stream) for stream in streams]
    path = tmp_path / "s.tif"
    write_jpeg_as_rgb(path, [pixels], [streams])
    assert np.abs(pixels_of(path).astype(int) - pixels).mean() < 4
    with closing(TiffSlide(path)) as slide:
        is_denied = stored == "ycbcr" and not marked
        assert any("its samples are YCbCr" in text for text in slide.warnings) == is_denied


def write_jpeg_as_rgb(path: Path, levels: list[np.ndarray], streams: list[list[bytes]]) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for index, (pixels, tiles) in enumerate(zip(levels, streams, strict=True)):
            tiff.write(
                iter(tiles), shape=pixels.shape, dtype=np.uint8, photometric="ycbcr",
                tile=(128, 128), compression="jpeg", subfiletype=int(index > 0),
            )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as file:
        for page in file.pages:
            page.tags["PhotometricInterpretation"].overwrite(2)


def in_tiles(pixels: np.ndarray, **options: str) -> list[bytes]:
    return [
        imagecodecs.jpeg_encode(
            np.ascontiguousarray(pixels[y : y + 128, x : x + 128]), level=95, **options
        )
        for y in range(0, pixels.shape[0], 128)
        for x in range(0, pixels.shape[1], 128)
    ]


def test_a_tag_of_rgb_is_believed_where_components_count_from_0(tmp_path: Path) -> None:
    pixels = dense_tissue()
    assert is_ycbcr(pixels)  # nothing but their numbers tells
    tiles = in_tiles(pixels, subsampling="444", colorspace="rgb", outcolorspace="rgb")
    path = tmp_path / "s.tif"
    write_jpeg_as_rgb(path, [pixels], [[counted(tile) for tile in tiles]])
    assert np.abs(pixels_of(path).astype(int) - pixels).mean() < 4
    with closing(TiffSlide(path)) as slide:
        assert not slide.warnings


@pytest.mark.parametrize("colour", [(186, 110, 160), (150, 100, 60), (128, 128, 128)])
def test_ycbcr_without_any_mark_is_known_by_the_tables_of_its_components(
    tmp_path: Path, colour: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.slides.backends.tiff.is_ycbcr", lambda _: False)
    pixels = stained(colour, 256)  # without any glass
    for stored in ("ycbcr", "rgb"):
        tiles = in_tiles(pixels, subsampling="444", colorspace="rgb", outcolorspace=stored)
        path = tmp_path / f"{stored}.tif"
        write_jpeg_as_rgb(path, [pixels], [[without_markers(tile) for tile in tiles]])
        assert np.abs(pixels_of(path).astype(int) - pixels).mean() < 4


def test_a_ventana_slide_without_its_xml_is_read_with_a_warning(tmp_path: Path) -> None:
    for description in ("level=0 mag=40 quality=90", "level=0"):
        path = write(tmp_path / "s.bif", PIXELS, photometric="rgb", description=description)
        with closing(open_slide(path)) as slide:
            is_warned = any("Ventana slide without the XML" in text for text in slide.warnings)
        assert is_warned == ("mag" in description)


def test_each_level_tagged_as_rgb_is_read_in_the_colours_that_its_jpeg_has(tmp_path: Path) -> None:
    fine = np.pad(stained((186, 110, 160), 256), ((0, 0), (256, 0), (0, 0)), constant_values=243)
    levels = [fine, np.ascontiguousarray(fine[::2, ::2])]
    tiles = [in_tiles(level, subsampling="420") for level in levels]
    tiles[0][0] = b""  # so that the first one has no marker of JFIF
    path = tmp_path / "s.tif"
    write_jpeg_as_rgb(path, levels, tiles)
    with closing(TiffSlide(path)) as slide:
        for index, level in enumerate(levels):
            tissue = slice(level.shape[1] // 2, None)
            error = whole(slide, index)[:, tissue].astype(int) - level[:, tissue]
            assert np.abs(error).mean() < 4


@pytest.mark.parametrize("compression", ["webp", "jpegxl"])
def test_a_tag_of_ycbcr_changes_no_colours_that_the_stream_states(
    tmp_path: Path, compression: str
) -> None:
    path = write(tmp_path / "s.tif", PIXELS, photometric="ycbcr", compression=compression)
    assert np.abs(pixels_of(path).astype(int) - PIXELS).mean() < 3


def test_stained_tissue_and_pens_are_not_taken_for_ycbcr() -> None:
    stains = {"eosin": (225, 140, 150), "haematoxylin": (120, 110, 170), "red cells": (190, 70, 60),
              "DAB": (150, 100, 60), "pen": (90, 190, 120)}  # fmt: skip
    for name, colour in stains.items():
        pixels = stained(colour, 200)
        assert not is_ycbcr(pixels), name
        assert is_ycbcr(np.asarray(Image.fromarray(pixels).convert("YCbCr"))), name


@pytest.mark.parametrize("glass", [205, 215, 225])
@pytest.mark.parametrize("density", [(0.95, 0.25, 0.2), (0.98, 0.14, 0.13)])
def test_stains_that_absorb_red_alone_are_not_taken_for_ycbcr(
    density: tuple[float, float, float], glass: int
) -> None:
    thickness = stained((125, 125, 125), 200)[..., :1] / 255
    for thinner in (0.3, 0.5, 1):
        pixels = (glass * 10 ** (-thinner * thickness * density)).astype(np.uint8)
        assert not is_ycbcr(pixels), thinner


def write_pyramid(path: Path, *, in_subifds: bool, **options: object) -> list[np.ndarray]:
    levels = [SMOOTH, SMOOTH[::2, ::2], SMOOTH[::4, ::4]]
    every = {"photometric": "rgb", "tile": (64, 64), **options}
    with tifffile.TiffWriter(path, ome=path.name.endswith(".ome.tif")) as tiff:
        tiff.write(levels[0], subifds=2 if in_subifds else 0, **every)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **every)
    return levels


@pytest.mark.parametrize("compression", [None, "lzw", "zstd"])
@pytest.mark.parametrize("metadata", [{}, None], ids=["described", "bare"])
@pytest.mark.parametrize("in_subifds", [False, True], ids=["pages", "SubIFDs"])
def test_all_levels_of_a_pyramid_are_read(
    tmp_path: Path, in_subifds: bool, metadata: dict[str, object] | None, compression: str | None
) -> None:
    path = tmp_path / "s.tif"
    levels = write_pyramid(path, in_subifds=in_subifds, metadata=metadata, compression=compression)
    with closing(TiffSlide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [421, 211, 106]
        assert [level.downsample for level in slide.levels] == pytest.approx([1, 2, 4], rel=0.02)
        for index, level in enumerate(levels):
            np.testing.assert_array_equal(whole(slide, index), level)


def test_an_ome_pyramid_has_its_levels_and_its_resolution(tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tif"
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeXUnit": "µm"}
    levels = write_pyramid(path, in_subifds=True, metadata={"axes": "YXS", **sizes})
    with closing(TiffSlide(path)) as slide:
        assert slide.mpp_xy == pytest.approx((0.25, 0.5))
        for index, level in enumerate(levels):
            np.testing.assert_array_equal(whole(slide, index), level)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits"])
def test_openslide_gives_the_same_pixels_of_lossless_files(
    tmp_path: Path, compression: str | None
) -> None:
    path = write(tmp_path / "s.tif", NOISE, compression=compression)
    np.testing.assert_array_equal(pixels_of(path), pixels_of(path, OpenSlideSlide))


@pytest.mark.parametrize("level", [50, 95])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2), "rgb"])
def test_openslide_gives_the_same_pixels_of_jpeg(
    tmp_path: Path, subsampling: tuple[int, int] | str, level: int
) -> None:
    colours = {"outcolorspace": "rgb"} if subsampling == "rgb" else {}
    path = write(
        tmp_path / "s.tif", NOISE, compression="jpeg",
        compressionargs={"level": level, **colours},
        subsampling=None if subsampling == "rgb" else subsampling,
    )  # fmt: skip
    # Both use libjpeg-turbo, and we measured no difference; other builds may round differently.
    assert largest_error(pixels_of(path), pixels_of(path, OpenSlideSlide)) <= 2


@pytest.mark.parametrize("kind", ["minisblack", "miniswhite", "palette"])
def test_openslide_gives_the_same_pixels_of_grey_and_palette(tmp_path: Path, kind: str) -> None:
    palette = np.random.default_rng(4).integers(0, 65536, (3, 256)).astype(np.uint16)
    colours = {"colormap": palette} if kind == "palette" else {}
    path = write(tmp_path / "s.tif", NOISE[..., 0], photometric=kind, **colours)
    np.testing.assert_array_equal(pixels_of(path), pixels_of(path, OpenSlideSlide))


def test_openslide_gives_the_same_pixels_of_sixteen_bit_and_transparency_but_for_rounding(
    tmp_path: Path,
) -> None:
    deep = np.random.default_rng(5).integers(0, 65536, NOISE.shape, np.uint16)
    alpha = np.random.default_rng(6).integers(0, 256, NOISE.shape[:2], np.uint8)
    clear = np.dstack([NOISE, alpha])
    multiplied = np.dstack([(NOISE * (alpha[..., None] / 255)).astype(np.uint8), alpha])
    for name, pixels, options in (
        ("deep", deep, {}),
        ("straight", clear, {"extrasamples": ["unassalpha"]}),
        ("premultiplied", multiplied, {"extrasamples": ["assocalpha"]}),
        ("unnamed", multiplied, {"extrasamples": ["unspecified"]}),
    ):
        path = write(tmp_path / "s.tif", pixels, **options)
        assert largest_error(pixels_of(path), pixels_of(path, OpenSlideSlide)) <= 2, name


def test_openslide_gives_the_same_levels_of_a_pyramid(tmp_path: Path) -> None:
    path = tmp_path / "s.tif"
    write_pyramid(path, in_subifds=False, metadata=None, compression="deflate")
    with closing(TiffSlide(path)) as ours, closing(OpenSlideSlide(path)) as theirs:
        assert ours.levels == theirs.levels
        for index in range(3):
            np.testing.assert_array_equal(whole(ours, index), whole(theirs, index))


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (NOISE.astype(np.float32), {}, "type float32"),
        (NOISE.astype(np.int16), {}, "type int16"),
        (NOISE[..., 0] > 99, {"photometric": "minisblack"}, "type bool"),
        (NOISE[..., 0] >> 4, {"photometric": "minisblack", "bitspersample": 4}, "4 bit"),
        (np.dstack([NOISE, NOISE[..., :1]]), {"photometric": "separated"}, "SEPARATED"),
        (NOISE, {"photometric": "ycbcr", "compression": "lzw"}, "YCbCr in LZW"),
        (
            NOISE, {"compression": 33003, "description": "Aperio Image Library", "metadata": None},
            "aperio, whose levels or colours OpenSlide reads otherwise",
        ),
        (NOISE, {"extratags": [(65420, 3, 1, 1, True), (271, 2, 9, "Hamamatsu", True)]}, "vendor"),
        (NOISE, {"description": "<scn></scn>", "metadata": None}, "vendor"),
        (NOISE, {"software": "Ventana", "extratags": [(700, 1, 7, b"<iScan>", True)]}, "vendor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_would_give_wrong_colours_or_places_is_left_to_others(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "s.tif", pixels, **options)
    with pytest.raises(SlideError, match=message):
        TiffSlide(path)
