"""Advice on files in odd formats: what it says is done to the file, and the slide is read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit, RLELossless

from features.slides.backends import image, tiff
from tests.cli.running import expect_advice, follow_advice, mil, mil_ok
from tests.features.slides.test_absent_pixels import HALF, PIXELS
from tests.features.slides.test_dicom_frames import write_level
from tests.features.slides.test_dicom_support import jpeg, recode, rle
from tests.features.slides.test_search import write_dicom
from tests.features.slides.vendor_files import write_mrxs

OUT = re.compile(r"\bOUT\.\w+")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with a slide that can be read."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("whole.tif", PIXELS, photometric="rgb", tile=(64, 64))


def write(name: str, pixels: np.ndarray = PIXELS, **options: object) -> None:
    tifffile.imwrite(name, pixels, **{"photometric": "rgb", "metadata": None, **options})


def cut() -> None:
    """A reduced copy before the slide, which was cut off."""
    with tifffile.TiffWriter("a.tif") as file:
        for pixels, kind in ((HALF, 1), (PIXELS, 0)):
            file.write(pixels, photometric="rgb", tile=(64, 64), subfiletype=kind, metadata=None)
    with tifffile.TiffFile("a.tif") as tiff:
        start = tiff.pages[1].offset
    Path("a.tif").write_bytes(Path("a.tif").read_bytes()[:start])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: Path("a.tif").touch(),
        lambda: Path("a.tif").write_bytes(bytes(5000)),
        cut,
    ],
    ids=["empty", "zeros", "cut off"],
)
def test_a_file_that_was_damaged_is_copied_again(spoil: Callable[[], object]) -> None:
    spoil()
    failed = mil("inspect", "a.tif")
    assert failed.exit_code == 1
    assert failed.stderr.rstrip().endswith("Copy it again."), failed.stderr
    shutil.copy("whole.tif", "a.tif")
    mil_ok("inspect", "a.tif")


def test_a_file_that_was_copied_as_text_is_copied_again_in_binary_mode() -> None:
    write("a.tif", np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    whole = Path("a.tif").read_bytes()
    Path("a.tif").write_bytes(whole.replace(b"\n", b"\r\n"))
    expect_advice("inspect a.tif", "Copy it again in binary mode.")
    Path("a.tif").write_bytes(whole)
    mil_ok("inspect", "a.tif")


def test_the_data_folder_of_a_mirax_slide_is_copied_under_its_name() -> None:
    write_mrxs(Path("a.mrxs"), PIXELS, positions="raw")
    Path("a").rename("elsewhere")
    expect_advice(
        "inspect a.mrxs",
        "Copy the folder with Slidedat.ini and the .dat files, under that name.",
    )
    shutil.copytree("elsewhere", "a")
    mil_ok("inspect", "a.mrxs")


def test_a_slide_of_which_nothing_can_be_decoded_is_copied_again() -> None:
    write("a.tif", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile("a.tif") as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with Path("a.tif").open("r+b") as stream:
        for start, n_bytes in places:
            stream.seek(start)
            stream.write(b"\xff" * n_bytes)
    preview = "preview a.tif --slide-mpp 0.5 --tile-px 64 --out {}"
    failed = mil(*shlex.split(preview.format("out")))
    assert failed.exit_code == 1
    assert any(
        line.endswith("Copy or export the slide again.") for line in failed.output.splitlines()
    )
    shutil.copy("whole.tif", "a.tif")
    mil_ok(*shlex.split(preview.format("again")))


def write_cmyk(name: str) -> None:
    Image.fromarray(PIXELS).convert("CMYK").save(name)


CONVERTED: dict[str, tuple[Callable[[], object], str]] = {
    "JPEG in CMYK": (
        lambda: write_cmyk("IN.jpg"),
        "Convert its colours to sRGB first, for example with libvips: vips colourspace IN OUT.png",
    ),
    "TIFF in CMYK": (
        lambda: write_cmyk("IN.tif"),
        "Convert its colours to sRGB first, for example with libvips: vips colourspace IN.tif",
    ),
    "TIFF of float32": (
        lambda: write("IN.tif", (PIXELS / 255).astype(np.float32)),
        "Scale its values to 0 to 255 and save them as 8 bit, for example with libvips: vips",
    ),
    "one strip": (
        lambda: write("IN.tif", compression="jpeg", rowsperstrip=768),
        "Write it in tiles, for example with libvips: vips tiffsave IN.tif OUT.tif",
    ),
    "strips in YCbCr": (
        lambda: write("IN.tif", photometric="ycbcr", compression="lzw", rowsperstrip=64),
        "Convert its colours to RGB first, for example with Pillow: python -c",
    ),
    "CIELAB": (
        lambda: Image.merge("LAB", Image.fromarray(PIXELS).split()).save("IN.tif"),
        "Convert its colours to sRGB first, for example with Pillow: python -c",
    ),
}


@pytest.mark.parametrize(("make", "advice"), CONVERTED.values(), ids=CONVERTED)
def test_the_command_that_converts_a_file_makes_a_slide_of_it(
    make: Callable[[], object], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words are the documented ones; it is run where the program is installed."""
    make()
    (given,) = Path().glob("IN.*")
    with monkeypatch.context() as patched:
        patched.setattr(tiff, "_MAX_SEGMENT_PX", 50_000)
        failed = mil("inspect", given)
    assert failed.exit_code == 1
    assert advice in failed.stderr, failed.stderr
    command = failed.stderr.rstrip().partition("for example with ")[2].partition(": ")[2]
    words = shlex.split(command.replace(" IN ", f" {given} ").replace("FACTOR", "255"))
    made = OUT.search(command)
    assert made is not None
    assert any(str(given) in word for word in words)
    if words[0] == "python":
        words[0] = sys.executable
    elif shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    subprocess.run(words, check=True)
    mil_ok("inspect", made[0])


def test_a_picture_that_is_too_large_is_read_as_tiled_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_MAX_PX", 700 * 700)
    Image.fromarray(PIXELS).save("a.png")
    follow_advice("inspect a.png", "Convert it to a tiled TIFF.", "inspect whole.tif")


@pytest.mark.parametrize("axes", ["TYX", "CYX"])
def test_channels_in_pages_are_exported_in_colours(axes: str) -> None:
    n_images = 5 if axes == "CYX" else 3
    planes = np.repeat(np.moveaxis(PIXELS, -1, 0), 2, axis=0)[:n_images]
    tifffile.imwrite("a.ome.tif", planes, photometric="minisblack", tile=(64, 64),
                     metadata={"axes": axes})  # fmt: skip
    follow_advice(
        "inspect a.ome.tif", "Export the slide in colours, as one image", "inspect whole.tif"
    )


def test_samples_of_an_unknown_kind_are_copied_or_exported() -> None:
    write("a.tif", tile=(64, 64))
    with tifffile.TiffFile("a.tif") as file:
        place = file.pages[0].tags["PhotometricInterpretation"].valueoffset
    with Path("a.tif").open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\x77\x77")
    follow_advice(
        "inspect a.tif", "Copy it again, or export it as tiled TIFF.", "inspect whole.tif"
    )


def test_what_a_folder_of_dicom_has_beside_its_slide_is_moved_out() -> None:
    for name in ("s", "elsewhere"):
        Path(name).mkdir()
    write_level(Path("s/a.dcm"), PIXELS, mpp=0.5)
    label = write_level(Path("s/b.dcm"), HALF, mpp=1)
    recode(
        label, rle, syntax=RLELossless, colours="RGB",
        ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"],
    )  # fmt: skip
    failed = mil("inspect", "s/a.dcm")
    assert failed.exit_code == 1
    assert "Move it out of the folder: the slide is read without it." in failed.stderr
    label.rename("elsewhere/b.dcm")
    mil_ok("inspect", "s/a.dcm")


def test_one_focal_plane_and_another_encoding_are_exported() -> None:
    for name in ("one", "several"):
        Path(name).mkdir()
        write_level(Path(name, "a.dcm"), PIXELS, mpp=0.5)
    several = Path("several/a.dcm")
    recode(several, jpeg, syntax=JPEGBaseline8Bit, colours="YBR_FULL_422",
           TotalPixelMatrixFocalPlanes=3)  # fmt: skip
    follow_advice(
        "inspect several/a.dcm", "Export one focal plane of one optical path.", "inspect one"
    )
    recode(several, rle, syntax=RLELossless, colours="RGB", TotalPixelMatrixFocalPlanes=1)
    follow_advice(
        "inspect several/a.dcm",
        "Convert it to OME-TIFF with bfconvert of Bio-Formats: bfconvert -noflat",
        "inspect whole.tif",
    )  # fmt: skip


def test_a_header_of_dicom_is_corrected_by_the_command_that_is_said() -> None:
    path = write_level(Path("a.dcm"), PIXELS, mpp=0.5)
    recode(path, lambda frame: imagecodecs.jpeg_encode(frame, level=98),
           syntax=JPEGBaseline8Bit, colours="RGB")  # fmt: skip
    failed = mil("inspect", "a.dcm")
    assert failed.exit_code == 1
    assert "Correct this header, and those of the other levels, in a copy of" in failed.stderr
    code = failed.stderr.partition('python -c "')[2].partition('"')[0]
    subprocess.run([sys.executable, "-c", code.replace("FILE.dcm", "a.dcm")], check=True)
    mil_ok("inspect", "a.dcm")


def test_a_slide_that_lists_few_of_its_tiles_is_copied_again() -> None:
    write("a.tif", tile=(64, 64))
    with tifffile.TiffFile("a.tif") as file:
        place = file.pages[0].tags["TileOffsets"].offset
    with Path("a.tif").open("r+b") as stream:
        stream.seek(place + 4)
        stream.write(struct.pack("<I", 40))
    follow_advice("inspect a.tif", "Copy or export the slide again.", "inspect whole.tif")


def test_a_dicom_object_that_is_no_slide_is_not_the_one_to_name() -> None:
    write_dicom(Path("label.dcm"), "1.1", kind="LABEL")
    write_level(Path("slide.dcm"), PIXELS, mpp=0.5)
    follow_advice(
        "inspect label.dcm", "Name the file of its pixels, or the folder of its series.",
        "inspect slide.dcm",
    )  # fmt: skip


def test_a_folder_that_cannot_be_listed_is_made_readable_or_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scandir = os.scandir
    for name in ("open", "closed"):
        Path(name).mkdir()
        shutil.copy("whole.tif", name)

    def refuse(folder: str | Path) -> object:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", refuse)
        follow_advice(
            "inspect closed", "Make it readable, or name the other folders one by one.",
            "inspect open",
        )  # fmt: skip
    mil_ok("inspect", "closed")
