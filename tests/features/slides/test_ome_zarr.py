from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numcodecs
import numpy as np
import pytest
import zarr

from features.errors import SlideError, TileError
from features.slides.backends import ome_zarr
from features.slides.backends.ome_zarr import OmeZarrSlide
from features.slides.pixels import to_rgb
from features.slides.reader import open_slide, slide_id_of
from features.slides.search import find_slides
from tests.fakes import Harm
from tests.features.slides.slide_files import NOISE, SMOOTH, whole, write_zarr

write = partial(write_zarr, axes="tczyx", separator="/")


def change(path: Path, edit: Any) -> None:
    """Edit the ``multiscales`` of a store of zarr v2."""
    file = path / ".zattrs"
    attributes = json.loads(file.read_text())
    edit(attributes["multiscales"][0])
    file.write_text(json.dumps(attributes))


@pytest.fixture
def memory_url() -> Iterator[str]:
    url = f"memory://{uuid4().hex}/s.ome.zarr"
    yield url
    fsspec.filesystem("memory").rm(url.rpartition("/")[0], recursive=True)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", ["tczyx", "yxc", "cyx", "zyxc", "xyc"])
def test_every_order_of_axes_gives_the_same_pixels(
    tmp_path: Path, zarr_format: int, axes: str
) -> None:
    slide = open_slide(write(tmp_path / "s.ome.zarr", axes=axes, zarr_format=zarr_format))
    assert slide.reader == "ome-zarr"
    assert slide.path == tmp_path / "s.ome.zarr"
    assert (slide.levels[0].width_px, slide.levels[0].height_px) == (421, 300)
    np.testing.assert_array_equal(whole(slide), NOISE)
    slide.close()
    slide.close()


@pytest.mark.parametrize(
    ("zarr_format", "options"),
    [
        (2, {"compressors": None}),
        (2, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
        (3, {"compressors": None}),
        (3, {"shards": (256, 256, 3)}),
    ],
)
def test_plain_flat_and_sharded_chunks_are_read(
    tmp_path: Path, zarr_format: int, options: dict[str, Any]
) -> None:
    path = write(tmp_path / "s.zarr", axes="yxc", zarr_format=zarr_format, **options)
    np.testing.assert_array_equal(whole(OmeZarrSlide(path)), NOISE)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_grey_sixteen_bit_and_alpha_become_rgb(tmp_path: Path, zarr_format: int) -> None:
    grey = NOISE[..., :1]
    deep = NOISE.astype(np.uint16) << 8 | 77
    clear = np.dstack([NOISE, np.where(grey > 128, 255, 0).astype(np.uint8)])
    cases = {
        "grey": (grey, "cyx", np.repeat(grey, 3, 2)),
        "no channels": (grey, "yx", np.repeat(grey, 3, 2)),
        "deep": (deep, "tczyx", NOISE),
        "alpha": (clear, "cyx", np.where(grey > 128, NOISE, 255)),
        "deep alpha": (clear.astype(np.uint16) * 257, "yxc", np.where(grey > 128, NOISE, 255)),
    }
    if zarr_format == 2:
        cases["big-endian"] = (deep.astype(">u2"), "yxc", NOISE)
    for name, (pixels, axes, expected) in cases.items():
        path = write(tmp_path / f"{name}.zarr", [pixels], axes=axes, zarr_format=zarr_format)
        slide = OmeZarrSlide(path)
        np.testing.assert_array_equal(whole(slide), expected, err_msg=name)
        slide.close()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_datasets_are_levels(tmp_path: Path, zarr_format: int) -> None:
    levels = [SMOOTH, SMOOTH[::2, ::2], SMOOTH[:296:4, :420:4]]
    slide = OmeZarrSlide(write(tmp_path / "s.zarr", levels, zarr_format=zarr_format))
    sizes = [(level.width_px, level.height_px) for level in slide.levels]
    assert sizes == [(421, 300), (211, 150), (105, 74)]
    downsamples = [level.downsample for level in slide.levels]
    assert downsamples == pytest.approx([1, 2, 4], rel=0.02)
    for index, pixels in enumerate(levels):
        np.testing.assert_array_equal(whole(slide, index), pixels)
    slide.close()


@pytest.mark.parametrize(
    ("x", "y", "width", "height"),
    [
        (-20, -30, 50, 60),
        (400, 280, 60, 60),
        (-5, -5, 500, 400),
        (500, 10, 9, 9),
        (-10, 20, 10, 10),
        (120, 120, 20, 20),
        (128, 128, 128, 128),
    ],
)
def test_any_region_equals_the_padded_image(
    tmp_path: Path, x: int, y: int, width: int, height: int
) -> None:
    slide = OmeZarrSlide(write(tmp_path / "s.zarr"))
    padded = np.pad(NOISE, ((60, 400), (60, 400), (0, 0)), constant_values=255)
    result = slide.read(level=0, x_px=x, y_px=y, width_px=width, height_px=height)
    np.testing.assert_array_equal(result, padded[y + 60 :, x + 60 :][:height, :width])
    slide.close()


def test_only_the_chunks_of_a_region_are_decoded_and_each_once(tmp_path: Path) -> None:
    slide = OmeZarrSlide(write(tmp_path / "s.zarr"))
    decoded = []
    original = slide._decode
    slide._decode = lambda *position: decoded.append(position) or original(*position)
    slide.read(level=0, x_px=100, y_px=10, width_px=60, height_px=20)
    assert decoded == [(0, 0, 0), (0, 0, 1)]
    slide.overview(downsample=8)
    whole(slide)
    assert len(decoded) == len(set(decoded)) == 12
    slide.close()


@pytest.mark.parametrize("block", [3, 4, 6, 16])
def test_the_overview_comes_from_the_coarsest_sufficient_level(tmp_path: Path, block: int) -> None:
    waves = [np.sin(np.add.outer(np.arange(512), np.arange(768)) / step) for step in (20, 30, 40)]
    fine = (np.stack(waves, axis=-1) * 127 + 128).astype(np.uint8)
    parts = [fine.reshape(512 // n, n, 768 // n, n, 3) for n in (1, 2, 4)]
    levels = [np.rint(part.mean(axis=(1, 3))).astype(np.uint8) for part in parts]
    pyramid = OmeZarrSlide(write(tmp_path / "p.zarr", levels))
    flat = OmeZarrSlide(write(tmp_path / "f.zarr", levels[:1]))
    read = []
    original = pyramid._decode
    pyramid._cache.clear()  # some were compared when it was opened
    pyramid._decode = lambda *position: read.append(position[0]) or original(*position)
    result, expected = pyramid.overview(downsample=block), flat.overview(downsample=block)
    assert set(read) == {{3: 0, 4: 1, 6: 1, 16: 2}[block]}  # at least twice as fine
    assert result.shape == expected.shape
    tolerance = 1 if block in {4, 16} else 9  # else a cut pixel counts as of one colour
    assert np.abs(result.astype(int) - expected).max() <= tolerance
    pyramid.close()
    flat.close()


def test_resolution_comes_from_the_scale_of_level_0_with_its_unit(tmp_path: Path) -> None:
    cases = [
        ({"mpp": (0.25, 0.5)}, (0.25, 0.5)),
        ({"mpp": (0.25, 0.5), "axes": "xyc"}, (0.25, 0.5)),
        ({"mpp": (0.25, 0.5), "zarr_format": 3}, (0.25, 0.5)),
        ({"mpp": (250.0, 500.0), "unit": "nanometer"}, (0.25, 0.5)),
        ({"mpp": (0.00025, 0.0005), "unit": "millimeter"}, (0.25, 0.5)),
        ({"mpp": (0.25, 0.25), "unit": "parsec"}, None),
        ({"mpp": (0.25, 0.25), "unit": ""}, None),
        ({}, None),
    ]
    for index, (options, expected) in enumerate(cases):
        levels = [SMOOTH, SMOOTH[::2, ::2]]
        slide = OmeZarrSlide(write(tmp_path / f"{index}.zarr", levels, **options))
        assert slide.mpp_xy == (expected and pytest.approx(expected)), options
        slide.close()


def test_a_scale_of_all_levels_multiplies_that_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", mpp=(1.0, 2.0))
    change(path, lambda image: image.update(
        coordinateTransformations=[{"type": "scale", "scale": [1, 1, 1, 0.25, 0.25]}]
    ))  # fmt: skip
    assert OmeZarrSlide(path).mpp_xy == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("axes", [None, ["t", "c", "z", "y", "x"]])
def test_stores_older_than_described_axes_are_read(tmp_path: Path, axes: list[str] | None) -> None:
    path = write(tmp_path / "s.zarr", mpp=(1.0, 1.0))
    change(path, lambda image: image.update(axes=axes) if axes else image.pop("axes"))
    slide = OmeZarrSlide(path)
    np.testing.assert_array_equal(whole(slide), NOISE)
    assert slide.mpp_xy is None


def test_the_first_image_of_bioformats2raw_is_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    zarr.open_group(path, mode="w", zarr_format=2, attributes={"bioformats2raw.layout": 3})
    write(path, group="0")
    write(path, [NOISE[:50, :50]], group="1")
    np.testing.assert_array_equal(whole(OmeZarrSlide(path)), NOISE)


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_urls_are_read_through_fsspec(memory_url: str, zarr_format: int, as_path: bool) -> None:
    write(memory_url, zarr_format=zarr_format, mpp=(0.5, 0.5))
    slide = open_slide(Path(memory_url) if as_path else memory_url)
    assert slide.mpp_xy == pytest.approx((0.5, 0.5))
    assert slide_id_of(slide.path) == slide_id_of(memory_url) == "s"
    np.testing.assert_array_equal(whole(slide), NOISE)
    slide.close()
    (result,) = find_slides([memory_url])
    assert result == slide.path
    np.testing.assert_array_equal(whole(open_slide(result)), NOISE)


def test_a_file_url_is_read_and_empty_chunks_that_it_lacks_are_the_fill_value(
    tmp_path: Path,
) -> None:
    expected = NOISE.copy()
    expected[:144] = 250
    path = write(tmp_path / "s.zarr", [expected], axes="yxc", fill_value=250)
    assert not (path / "0" / "0").exists()
    for position in (path, path.as_uri(), Path(path.as_uri())):
        slide = open_slide(position)
        np.testing.assert_array_equal(whole(slide), expected)
        slide.close()


@pytest.mark.parametrize(
    "url", ["memory://gone/s.zarr", "file:///gone/s.zarr", "nonesuch://host/s.zarr"]
)
def test_urls_that_lead_nowhere_are_named(url: str) -> None:
    for position in (url, Path(url)):
        with pytest.raises(SlideError) as caught:
            open_slide(position)
        assert str(caught.value).startswith(f"{url}: cannot be opened")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host/s.svs", "s3://bucket/a/s.ome.tif"])
def test_files_behind_urls_have_to_be_downloaded(url: str) -> None:
    with pytest.raises(SlideError, match=r"the URL of a file.*Download it, and name the file"):
        open_slide(url)


def test_a_package_that_a_url_needs_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(ome_zarr.FsspecStore, "from_url", fail)
    with pytest.raises(SlideError, match=r"Install s3fs.*Install what is missing with pip"):
        open_slide("s3://bucket/s.zarr")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zipped_stores_are_read(tmp_path: Path, zarr_format: int, inside: bool) -> None:
    folder = write(tmp_path / "s.ome.zarr", zarr_format=zarr_format)
    base = folder if inside else tmp_path
    path = tmp_path / "s.ome.zarr.zip"
    with zipfile.ZipFile(path, "w") as file:
        for part in sorted(folder.rglob("*")):
            file.write(part, part.relative_to(base))
    slide = open_slide(path)
    assert slide.reader == "ome-zarr"
    assert slide_id_of(path) == "s"
    np.testing.assert_array_equal(whole(slide), NOISE)
    slide.close()
    slide.close()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("damage", [b"", b"\xff" * 40])
def test_a_broken_chunk_is_an_error_and_its_neighbours_are_not(
    tmp_path: Path, zarr_format: int, damage: bytes
) -> None:
    path = write(tmp_path / "s.zarr", zarr_format=zarr_format)
    position = ("0", "1", "0", "2", "1")
    chunk = path.joinpath("0", *(("c",) if zarr_format == 3 else ()), *position)
    assert chunk.is_file()
    chunk.write_bytes(damage)
    slide = open_slide(path)
    with pytest.raises(
        TileError, match=r"row 2, column 1 of level 0 at \(\d+, \d+\) px0 cannot be read"
    ):
        slide.read(level=0, x_px=120, y_px=250, width_px=20, height_px=20)
    result = slide.read(level=0, x_px=0, y_px=0, width_px=421, height_px=256)
    np.testing.assert_array_equal(result, NOISE[:256])
    overview = slide.overview(downsample=4)
    assert (overview[64:, 32:64] == 255).all()
    assert np.abs(overview[:64].astype(int) - 127).max() < 128
    slide.close()


def test_a_slide_without_a_whole_chunk_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr")
    for chunk in (path / "0").rglob("[0-9]"):
        if chunk.is_file():
            chunk.write_bytes(b"damage")
    with pytest.raises(SlideError, match="none of the sampled chunks can be decoded"):
        OmeZarrSlide(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda image: image.update(datasets=[]), "without datasets"),
        (lambda image: image.pop("datasets"), "KeyError: 'datasets'"),
        (lambda image: image["datasets"].insert(0, {"path": "7"}), "no array '7'"),
        (lambda image: image["datasets"].append({"path": "../.."}), "cannot be opened"),
        (lambda image: image["axes"].pop(), "axes t, c, z, y for 5 dimensions"),
        (lambda image: image["axes"][4].update(name="w"), "axes t, c, z, y, w for 5"),
        (lambda image: image["axes"].reverse(), "more than one plane"),
        (lambda image: image["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [1]}]
        ), "IndexError"),
        (lambda image: image["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": ["wide"] * 5}]
        ), "ValueError"),
    ],
)  # fmt: skip
def test_broken_metadata_is_one_clear_error(tmp_path: Path, edit: Any, message: str) -> None:
    path = write(tmp_path / "s.zarr", [SMOOTH, SMOOTH[::2, ::2]])
    change(path, edit)
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert message in caught.value.actual
    assert caught.value.where == str(path)
    assert caught.value.expected
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mpp", [(0.3, 0.3), None])
def test_levels_listed_in_reverse_are_read_finest_first(
    tmp_path: Path, mpp: tuple[float, float] | None
) -> None:
    path = write(tmp_path / "s.zarr", [SMOOTH, SMOOTH[::2, ::2]], mpp=mpp)
    change(path, lambda image: image["datasets"].reverse())
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [421, 211]
        assert (slide.stated_mpp and slide.stated_mpp.x) == (mpp and pytest.approx(mpp[0]))
        np.testing.assert_array_equal(whole(slide), SMOOTH)


def test_a_level_that_is_narrower_and_taller_than_another_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", [SMOOTH, SMOOTH.transpose(1, 0, 2)[:, :200]])
    with pytest.raises(SlideError, match="a level of 200 × 421 px after one of 421 × 300 px"):
        open_slide(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"multiscales": 3}', '{"ome": []}'])
def test_metadata_that_is_no_metadata_is_an_error(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "s.zarr")
    (path / ".zattrs").write_text(content)
    with pytest.raises(SlideError, match=r"s\.zarr"):
        open_slide(path)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (NOISE.astype(np.float32), {}, "samples of type float32"),
        (NOISE.astype(np.uint32), {}, "samples of type uint32"),
        (NOISE.astype(np.int16), {}, "samples of type int16"),
        (NOISE[..., :2], {}, "2 channels"),
        (np.dstack([NOISE, NOISE]), {}, "6 channels"),
        (np.dstack([NOISE, NOISE[..., :1]]), {}, "the fourth is no transparency"),
        (
            np.dstack([NOISE, 0 * NOISE[..., :1]]),
            {"fill_value": 7},
            "the fourth is no transparency",
        ),
        (NOISE[:0], {}, "421 × 0 px"),
        (NOISE[:9, :9], {"chunk_px": 1 << 16}, "chunks of 1 × 1 × 1 × 65536 × 65536"),
    ],
)
def test_pixels_that_are_no_slide_are_refused(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "s.zarr"
    if "chunk_px" in options:  # such chunks can be described, but not written here
        write(path, [pixels])
        file = path / "0" / ".zarray"
        side = options["chunk_px"]
        file.write_text(
            json.dumps(json.loads(file.read_text()) | {"chunks": [1, 1, 1, side, side]})
        )
    else:
        write(path, [pixels], **options)
    with pytest.raises(SlideError, match=f"{message}.*(Export|Scale)"):
        OmeZarrSlide(path)


def test_absurd_dimensions_allocate_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr")
    file = path / "0" / ".zarray"
    for side, fits in ((1 << 31, False), (4_000_000, True)):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"shape": [1, 3, 1, side, side]}))
        if fits:
            slide = open_slide(path)
            result = slide.read(level=0, x_px=side - 4, y_px=side - 4, width_px=8, height_px=8)
            assert result[0, 0].tolist() == [0, 0, 0]
            assert result[7, 7].tolist() == [255, 255, 255]
        else:
            with pytest.raises(SlideError, match=f"{side} × {side} px"):
                open_slide(path)


def test_chunks_of_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", zarr_format=3)
    file = path / "0" / "zarr.json"
    about = json.loads(file.read_text())
    about["chunk_grid"]["configuration"]["chunk_shape"][-1] = 0
    file.write_text(json.dumps(about))
    with pytest.raises(SlideError, match=r"s\.zarr"):
        OmeZarrSlide(path).overview(downsample=8)


@pytest.mark.parametrize("position", ["compressor", "filters"])
def test_chunks_that_would_run_a_program_are_refused_and_not_run(
    tmp_path: Path, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path = write(tmp_path / "s.zarr", axes="yx", chunk_px=512)
    file = path / "0" / ".zarray"
    codec = {"id": "pickle", "protocol": 5}
    changed = {
        "compressor": None,
        "filters": None,
        position: [codec] if position == "filters" else codec,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    (path / "0" / "0" / "0").write_bytes(pickle.dumps(Harm(tmp_path / "harmed")))
    with pytest.raises(SlideError, match="pickle"):
        OmeZarrSlide(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("change", [
    {"compressor": {"id": "lzma"}}, {"filters": [{"id": "bz2"}]},
    {"filters": [{"id": "astype", "encode_dtype": "u1", "decode_dtype": "u1"}]},
])  # fmt: skip
def test_codecs_that_nobody_needs_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    file = write(tmp_path / "s.zarr", axes="yx") / "0" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(SlideError, match=r"chunks in '\w+', a codec that is not read"):
        OmeZarrSlide(tmp_path / "s.zarr")


BOMBS = {
    "blosc": numcodecs.Blosc(), "zlib": numcodecs.Zlib(), "gzip": numcodecs.GZip(),
    "bz2": numcodecs.BZ2(), "lz4": numcodecs.LZ4(), "zstd": numcodecs.Zstd(),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_every_codec_reads_what_it_wrote_and_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "s.zarr", axes="yx", chunk_px=512, compressors=BOMBS[name])
    np.testing.assert_array_equal(whole(OmeZarrSlide(path))[..., 0], NOISE[..., 0])
    (path / "0" / "0" / "0").write_bytes(BOMBS[name].encode(np.zeros(50 << 20, np.uint8)))
    tracemalloc.start()
    with pytest.raises(SlideError, match=f"{name} that unpacks to more than the 262,144 bytes"):
        OmeZarrSlide(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


CUT = {**BOMBS, "blosc without compression": numcodecs.Blosc(clevel=0), "none": None}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("name", CUT)
def test_a_chunk_that_was_cut_off_is_an_error_and_no_other_pixels(
    tmp_path: Path, name: str, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    path = write(tmp_path / "s.zarr", [noise], axes="yxc", chunk_px=512, compressors=CUT[name])
    file = max((path / "0").rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(SlideError, match="cannot be read"):
        whole(OmeZarrSlide(path))


def test_a_level_whose_scale_denies_its_size_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    # Half and a quarter of 512.
    levels = [np.full((side, side, 3), 9, np.uint8) for side in (600, 256, 128)]
    write(path, levels, axes="yxc", mpp=(0.5, 0.5))
    with closing(OmeZarrSlide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [600]
        assert slide.warnings == tuple(
            f"level '{number}' is set aside: its scale is {factor} times the finest, its size "
            f"{size:.4g} times smaller"
            for number, factor, size in ((1, 2, 600 / 256), (2, 4, 600 / 128))
        )


@pytest.mark.parametrize("codec", [zarr.codecs.GzipCodec(), zarr.codecs.ZstdCodec(),
                                   zarr.codecs.BloscCodec()])  # fmt: skip
@pytest.mark.parametrize("sharded", [False, True])
def test_a_bomb_in_a_chunk_or_shard_of_zarr_3_is_refused(
    tmp_path: Path, codec: Any, sharded: bool
) -> None:
    big = np.zeros((4096, 4096, 3), np.uint8)
    options = {"shards": (4096, 4096, 3)} if sharded else {}
    path = write(
        tmp_path / "s.zarr", [big], axes="yxc", zarr_format=3, chunk_px=2048, compressors=codec,
        fill_value=1, **options,
    )  # fmt: skip
    np.testing.assert_array_equal(OmeZarrSlide(path).overview(downsample=64), 0)
    file = path / "0" / "zarr.json"
    file.write_text(file.read_text().replace("4096", "256").replace("2048", "128"))
    with pytest.raises(SlideError, match="unpacks to more than"):
        OmeZarrSlide(path).overview(downsample=8)


def test_zstd_without_a_size_in_its_header_is_read_and_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zarr", axes="yx", chunk_px=512, compressors=numcodecs.Zstd())
    grey = np.zeros((512, 512), np.uint8)
    frame = numcodecs.Zstd().encode(grey)
    for n_bytes, is_read in ((512 * 512, True), (20 << 20, False)):
        # A frame of one repeated byte, whose header has a window but no size.
        blocks = b"".join(
            (min(left, 1 << 17) << 3 | 2 | (left <= 1 << 17)).to_bytes(3, "little") + b"\0"
            for left in range(n_bytes, 0, -(1 << 17))
        )
        (path / "0" / "0" / "0").write_bytes(frame[:4] + b"\x00\x58" + blocks)
        if is_read:
            assert (whole(OmeZarrSlide(path)) == 0).all()
        else:
            with pytest.raises(SlideError, match="unpacks to more than"):
                OmeZarrSlide(path)


def test_a_file_in_a_zip_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s.zarr", zarr_format=3)
    with zipfile.ZipFile(tmp_path / "s.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", "{}")
        archive.writestr("0/c/0/0/0", b"\0" * 100_000)
    data = (tmp_path / "s.zarr.zip").read_bytes()
    claimed = (2**32 - 16).to_bytes(4, "little")
    (tmp_path / "s.zarr.zip").write_bytes(data.replace((100_000).to_bytes(4, "little"), claimed))
    with pytest.raises(SlideError, match="a file of 4,294,967,280 bytes in its zip"):
        OmeZarrSlide(tmp_path / "s.zarr.zip")


def test_folders_and_files_that_are_no_image_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    zarr.open_group(tmp_path / "plate.zarr", mode="w", attributes={"ome": {"plate": {}}})
    zarr.create_array(tmp_path / "array.zarr", shape=(9, 9), dtype="u1")
    (tmp_path / "file.zarr").write_text("text")
    cases = {
        "empty.zarr": "cannot be opened",
        "group.zarr": "no 'multiscales'",
        "plate.zarr": "a plate of many images",
        "array.zarr": "cannot be opened",
        "file.zarr": "ome-zarr: neither a folder nor a zip",
        "gone.zarr": "there is no such file",
    }
    for name, message in cases.items():
        with pytest.raises(SlideError, match=message) as caught:
            open_slide(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("image", ["0", "2"])
def test_the_image_of_a_plate_that_is_advised_can_be_opened(tmp_path: Path, image: str) -> None:
    plate = tmp_path / "plate.zarr"
    wells = {"wells": [{"path": "B/03"}, {"path": "B/04"}]}
    zarr.open_group(plate, mode="w", attributes={"ome": {"plate": wells}})
    well = {"ome": {"well": {"images": [{"path": image}]}}}
    zarr.open_group(plate / "B" / "03", mode="w", attributes=well)
    write(plate / "B" / "03" / image, zarr_format=3)
    with pytest.raises(SlideError, match=r"a plate of many images.*Name it, such as ") as caught:
        open_slide(plate)
    advised = str(caught.value).partition("such as ")[2].removesuffix(".")
    with closing(open_slide(Path(advised))) as slide:
        assert slide.reader == "ome-zarr"


@pytest.mark.parametrize("inside", ["", "plate.zarr"])
def test_a_zip_of_a_plate_is_to_be_unzipped(tmp_path: Path, inside: str) -> None:
    plate = tmp_path / "plate.zarr"
    zarr.open_group(plate, mode="w", attributes={"ome": {"plate": {"wells": [{"path": "B/03"}]}}})
    write(plate / "B" / "03" / "0", zarr_format=3)
    root = tmp_path if inside else plate
    packed = Path(shutil.make_archive(str(plate), "zip", root, inside or None))
    with pytest.raises(SlideError, match=r"Unzip it, and name one, such as B/03/0 in it\."):
        open_slide(packed)
    advice = f"Unzip {packed}, and name B/03/0 in it."
    with pytest.raises(SlideError, match=re.escape(f"no such file; expected a slide. {advice}")):
        open_slide(packed / "B" / "03" / "0")
    with pytest.raises(SlideError, match=re.escape(advice)):
        find_slides([packed / "B" / "03" / "0"])


def test_what_is_wrong_with_a_zipped_zarr_is_told_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "s.zarr", axes="zyxc")
    zarr.create_array(
        tmp_path / "s.zarr" / "0", shape=(2, 64, 64, 3), dtype="u1", zarr_format=2, overwrite=True
    )
    packed = shutil.make_archive(str(tmp_path / "s.zarr"), "zip", tmp_path / "s.zarr")
    with pytest.raises(SlideError, match=r"more than one plane .*Export the plane to embed alone"):
        open_slide(Path(packed))


def test_a_folder_that_is_no_zarr_beside_the_images_is_passed_over_in_silence(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.zarr"
    zarr.open_group(path, mode="w")
    write(path / "image", zarr_format=3)
    (path / "notes").mkdir()
    script = "import sys; from features.slides import open_slide; open_slide(sys.argv[1]).close()"
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_warnings_of_zarr_outside_of_a_slide_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    zarr.open_group(path, mode="w")
    write(path / "image", zarr_format=3)
    (path / "notes").mkdir()
    script = (
        "import sys, zarr; from features.slides import open_slide; open_slide(sys.argv[1]).close();"
        "list(zarr.open_group(sys.argv[1], mode='r').groups())"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "notes is not recognized" in done.stderr


def test_stores_are_found_and_not_searched(tmp_path: Path) -> None:
    write(tmp_path / "b" / "s.ome.zarr")
    write(tmp_path / "t.ZARR", zarr_format=3)
    (tmp_path / "t.ZARR" / "thumbnail.png").touch()
    (tmp_path / ".hidden.zarr").mkdir()
    (tmp_path / "a.tif").touch()
    (tmp_path / "z.zarr.zip").touch()
    result = find_slides([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in result]
    assert names == ["a.tif", "b/s.ome.zarr", "t.ZARR", "z.zarr.zip"]
    assert [slide_id_of(path) for path in result] == ["a", "s", "t", "z"]
    assert find_slides([tmp_path / "t.ZARR"]) == [tmp_path / "t.ZARR"]
    for path in result[1:3]:
        np.testing.assert_array_equal(whole(open_slide(path)), NOISE)


def test_transparency_shows_the_background_as_with_other_readers(tmp_path: Path) -> None:
    alpha = np.where(NOISE[..., 1] < 20, NOISE[..., 1], 255).astype(np.uint8)
    pixels = np.dstack([NOISE, alpha])
    slide = OmeZarrSlide(write(tmp_path / "s.zarr", [pixels]))
    np.testing.assert_array_equal(whole(slide), to_rgb(pixels, background_rgb=(255, 255, 255)))
    slide.close()


def test_zeros_that_fast_settings_of_zstd_leave_are_no_damage(tmp_path: Path) -> None:
    """Where nothing matches, they skip bytes and store them: a line of black, or planes of bits."""
    pixels = np.random.default_rng(0).integers(1, 256, (512, 512, 3), np.uint8)
    pixels[60:500:9, 100:220] = 0
    path = tmp_path / "s.zarr"
    write(
        path, [pixels], axes="yxc", zarr_format=3, chunk_px=512, chunk_channels=3,
        compressors=zarr.codecs.ZstdCodec(level=1),
    )  # fmt: skip
    if bytes(256) not in (path / "0/c/0/0/0").read_bytes():
        pytest.skip("this Zstd finds all zeros")
    result = whole(path)
    np.testing.assert_array_equal(result, pixels)
