"""DICOM slides of all encodings: right pixels, or a refusal that says what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from features.errors import UnsupportedFormatError
from features.slides.reader import open_slide
from features.slides.resolution import resolve_mpp
from features.slides.search import search_slides
from tests.features.slides.slide_files import whole
from tests.features.slides.test_absent_pixels import HALF, PIXELS
from tests.features.slides.test_dicom_frames import FRAME, sequence_item, write_level

Encode = Callable[[np.ndarray], bytes]


def frames_of(pixels: np.ndarray) -> list[np.ndarray]:
    return [
        np.ascontiguousarray(pixels[y : y + FRAME, x : x + FRAME])
        for y in range(0, len(pixels), FRAME)
        for x in range(0, pixels.shape[1], FRAME)
    ]


def recode(path: Path, encode: Encode, *, syntax: UID, colours: str, **tags: object) -> Path:
    """Store the frames of a level, and what its header says of them, in another way."""
    level = dcmread(path)
    level.file_meta.TransferSyntaxUID = syntax
    level.PhotometricInterpretation = colours
    streams = [encode(frame) for frame in frames_of(PIXELS)]
    level.PixelData = encapsulate(streams) if syntax.is_compressed else b"".join(streams)
    level["PixelData"].is_undefined_length = syntax.is_compressed
    for name, value in tags.items():
        setattr(level, name, value)
    level.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    return path


def ycbcr(frame: np.ndarray) -> np.ndarray:
    return np.asarray(pydicom.pixels.convert_color_space(frame, "RGB", "YBR_FULL"))


def jpeg(frame: np.ndarray) -> bytes:
    return imagecodecs.jpeg_encode(frame, level=98)


def rgb_jpeg(frame: np.ndarray) -> bytes:
    return imagecodecs.jpeg_encode(frame, level=98, colorspace="rgb", outcolorspace="rgb")


def jpeg_2000(frame: np.ndarray, *, transform: bool = True, lossless: bool = True) -> bytes:
    return imagecodecs.jpeg2k_encode(
        frame, codecformat="j2k", mct=transform, reversible=lossless, level=0 if lossless else 60
    )


def plain(frame: np.ndarray) -> bytes:
    return frame.tobytes()


def rle(frame: np.ndarray) -> bytes:
    return pydicom.pixels.get_encoder(RLELossless).encode(
        frame.tobytes(), rows=FRAME, columns=FRAME, samples_per_pixel=3, bits_allocated=8,
        bits_stored=8, pixel_representation=0, photometric_interpretation="RGB",
        number_of_frames=1, planar_configuration=0,
    )  # fmt: skip


RIGHT: dict[str, tuple[Encode, UID, str]] = {
    "JPEG in YCbCr": (jpeg, JPEGBaseline8Bit, "YBR_FULL_422"),
    "JPEG in RGB": (rgb_jpeg, JPEGBaseline8Bit, "RGB"),
    "uncompressed": (plain, ExplicitVRLittleEndian, "RGB"),
    "JPEG 2000, reversible": (jpeg_2000, JPEG2000Lossless, "YBR_RCT"),
    "JPEG 2000, irreversible": (
        lambda frame: jpeg_2000(frame, lossless=False), JPEG2000, "YBR_ICT"
    ),
    "JPEG 2000 in RGB": (
        lambda frame: jpeg_2000(frame, transform=False), JPEG2000Lossless, "RGB"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("encode", "syntax", "colours"), RIGHT.values(), ids=RIGHT)
def test_pixels_are_those_that_were_stored(
    tmp_path: Path, encode: Encode, syntax: UID, colours: str
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    recode(path, encode, syntax=syntax, colours=colours)
    result = whole(path)
    assert np.abs(result.astype(int) - PIXELS).mean() < 1


REFUSED: dict[str, tuple[Encode, UID, str, dict[str, object], str]] = {
    "RLE": (rle, RLELossless, "RGB", {}, "pixels in RLE Lossless"),
    "JPEG-LS": (imagecodecs.jpegls_encode, JPEGLSLossless, "RGB", {}, "pixels in JPEG-LS"),
    "implicit VR": (plain, ImplicitVRLittleEndian, "RGB", {}, "pixels in Implicit VR"),
    "deflated": (plain, DeflatedExplicitVRLittleEndian, "RGB", {}, "pixels in Deflated"),
    "uncompressed YCbCr": (
        lambda frame: ycbcr(frame).tobytes(), ExplicitVRLittleEndian, "YBR_FULL", {},
        "pixels in YBR_FULL",
    ),
    "JPEG 2000 of YCbCr": (
        lambda frame: jpeg_2000(ycbcr(frame), transform=False), JPEG2000Lossless, "YBR_FULL", {},
        "pixels in YBR_FULL",
    ),
    "JPEG 2000 without the transform": (
        lambda frame: jpeg_2000(ycbcr(frame), transform=False), JPEG2000, "YBR_ICT", {},
        "JPEG 2000 frames without the colour transform",
    ),
    "planes": (
        lambda frame: np.moveaxis(frame, -1, 0).tobytes(), ExplicitVRLittleEndian, "RGB",
        {"PlanarConfiguration": 1}, "channels in planes",
    ),
    "grey": (
        lambda frame: frame[..., 0].tobytes(), ExplicitVRLittleEndian, "MONOCHROME2",
        {"SamplesPerPixel": 1}, "pixels of 1 channel;",
    ),
    "16 bit": (
        lambda frame: (frame.astype("<u2") << 8).tobytes(), ExplicitVRLittleEndian, "RGB",
        {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}, "samples of 16 bit",
    ),
    "focal planes": (
        jpeg, JPEGBaseline8Bit, "YBR_FULL_422", {"TotalPixelMatrixFocalPlanes": 3},
        "3 focal planes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("encode", "syntax", "colours", "tags", "actual"), REFUSED.values(), ids=REFUSED
)
def test_what_openslide_does_not_show_rightly_is_refused_with_what_to_do(
    tmp_path: Path, encode: Encode, syntax: UID, colours: str, tags: dict[str, object], actual: str
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    recode(path, encode, syntax=syntax, colours=colours, **tags)
    with pytest.raises(UnsupportedFormatError) as caught:
        open_slide(path)
    assert str(caught.value).startswith(f"{path}: {actual}")
    assert re.search("Convert it to OME-TIFF|Export one focal plane", str(caught.value))


DENIED: dict[str, tuple[Encode, str]] = {
    "YCbCr called RGB, as of bfconvert": (jpeg, "RGB"),
    "subsampled YCbCr called RGB": (
        lambda frame: imagecodecs.jpeg_encode(frame, level=98, subsampling="420"), "RGB"
    ),
    "RGB called YCbCr": (rgb_jpeg, "YBR_FULL_422"),
    "YCbCr that is not subsampled": (jpeg, "YBR_FULL"),
}  # fmt: skip


@pytest.mark.parametrize(("encode", "colours"), DENIED.values(), ids=DENIED)
def test_a_header_that_denies_the_colours_of_its_frames_is_refused_and_the_advice_mends_it(
    tmp_path: Path, encode: Encode, colours: str
) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    recode(path, encode, syntax=JPEGBaseline8Bit, colours=colours)
    with pytest.raises(UnsupportedFormatError) as caught:
        open_slide(path)
    code = str(caught.value).partition('python -c "')[2].rstrip('."')
    subprocess.run([sys.executable, "-c", code.replace("FILE.dcm", str(path))], check=True)
    result = whole(path)
    assert np.abs(result.astype(int) - PIXELS).mean() < 1


def test_a_label_of_another_encoding_is_the_file_to_move(tmp_path: Path) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5)
    label = write_level(tmp_path / "b.dcm", PIXELS, mpp=5)
    kind = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    recode(label, rle, syntax=RLELossless, colours="RGB", ImageType=kind)
    with pytest.raises(UnsupportedFormatError, match=r"b\.dcm.* Move it out of the folder"):
        open_slide(path)
    label.unlink()
    with closing(open_slide(path)) as slide:
        assert slide.levels[0].width_px == 768


@pytest.mark.parametrize("sparse", [True, False])
def test_several_frames_at_each_place_are_refused(tmp_path: Path, sparse: bool) -> None:
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=sparse)
    level = dcmread(path)
    streams = [jpeg(frame) for frame in frames_of(PIXELS)]
    level.PixelData, level.NumberOfFrames = encapsulate(streams * 2), 2 * len(streams)
    if sparse:
        groups = list(level.PerFrameFunctionalGroupsSequence)
        level.PerFrameFunctionalGroupsSequence = groups * 2
    level.save_as(path)
    with pytest.raises(UnsupportedFormatError, match=r"2 frames at each place.* Export one focal"):
        open_slide(path)


def set_spacings(path: Path, spacings: list[float], *, shared: bool) -> None:
    level = dcmread(path)
    if not shared:
        del level.SharedFunctionalGroupsSequence
    groups = level.get("PerFrameFunctionalGroupsSequence") or [Dataset() for _ in range(144)]
    for group, mpp in zip(groups, np.resize(spacings, 144), strict=True):
        measures = sequence_item(PixelSpacing=[mpp / 1000, mpp / 1000])
        group.PixelMeasuresSequence = [measures]
    level.PerFrameFunctionalGroupsSequence = groups
    level.save_as(path)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    ("spacings", "shared", "mpp", "source", "warning"),
    [
        ([0.4], False, 0.4, "file", None),
        ([0.4, 0.8], False, 0.25, "assumed", "frames differ in PixelSpacing, 2 values"),
        ([0.4], True, 0.5, "file", "0.4 x 0.4 µm/px in PixelSpacing of frames is not used"),
        ([0.5], True, 0.5, "file", None),
    ],
)
def test_pixel_spacing_may_be_stated_by_frame(
    tmp_path: Path, sparse: bool, spacings: list[float], shared: bool, mpp: float, source: str,
    warning: str | None,
) -> None:  # fmt: skip
    path = write_level(tmp_path / "a.dcm", PIXELS, mpp=0.5, sparse=sparse)
    set_spacings(path, spacings, shared=shared)
    with closing(open_slide(path)) as slide:
        result = resolve_mpp(slide.stated_mpp, given_mpp=None, where=path)
        assert (result.mpp_x, result.source) == (pytest.approx(mpp), source)
        assert [text[: len(warning or "")] for text in slide.warnings] == (
            [] if warning is None else [warning]
        )


def test_a_series_in_two_folders_is_one_slide_and_the_other_part_is_said(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
    half = write_level(tmp_path / "x" / "half.dcm", HALF, mpp=1.0)
    whole = write_level(tmp_path / "y" / "a.dcm", PIXELS, mpp=0.5)
    for paths in ([tmp_path], [half, whole]):
        search = search_slides(paths)
        assert search.slides == [whole]
        assert list(search.unread) == [half]
        assert search.unread[half].reason == (
            "a part of the DICOM series of y/a.dcm, move them into one folder"
        )
    half.rename(whole.with_name("half.dcm"))
    (path,) = search_slides([tmp_path]).slides
    with closing(open_slide(path)) as slide:
        assert [level.width_px for level in slide.levels] == [768, 384]
    (tmp_path / "z" / "copy.dcm").write_bytes(whole.read_bytes())
    assert search_slides([tmp_path]).slides == [whole, tmp_path / "z" / "copy.dcm"]
