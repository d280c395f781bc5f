"""DICOM files: values, headers, and one kind of error for all damage."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from features.errors import TileError
from features.series.dicom import SliceHeader, is_dicom, read_hu, read_slice_headers
from tests.scans import BIRTH_DATE, PLANTED, dataset, paint_slice, write_frames, write_slice

HU = np.rint(paint_slice(np.random.default_rng(0), bleed=True, side_px=64))


def write_compressed(path: Path, syntax: str, stream: bytes, **tags: Any) -> Path:
    header = dataset(HU, BitsStored=12, HighBit=11, PixelRepresentation=0, **tags)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = encapsulate([stream])
    header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)
    return path


def write_rle(path: Path) -> None:
    header = dataset(
        HU, BitsStored=12, HighBit=11, PixelRepresentation=0,
        PixelData=STORED.astype("<u2").tobytes(),
    )  # fmt: skip
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(path, enforce_file_format=True)


def only_header(path: Path) -> SliceHeader:
    (header,) = read_slice_headers(path)
    return header


STORED = np.clip(HU + 1024, 0, 4095).astype(np.uint16)


def test_values_are_stored_ones_times_slope_plus_intercept(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_hu(write_slice(tmp_path / "a.dcm", HU)), HU)
    stored = (HU + 1024).astype("<i2").tobytes()
    path = write_slice(
        tmp_path / "b.dcm", HU, RescaleSlope="0.5", RescaleIntercept=-500, PixelData=stored
    )
    np.testing.assert_allclose(read_hu(path), 0.5 * (HU + 1024) - 500)


def test_a_wrapped_range_of_12_bits_is_unwrapped(tmp_path: Path) -> None:
    values = np.array([[-1000, -200, 0, 40], [80, 900, 2000, 3000]], np.float64)
    stored = values.astype(np.int64) % 4096  # as such scanners write them, intercept 0
    path = write_slice(
        tmp_path / "a.dcm", values, PixelRepresentation=0, BitsStored=12, HighBit=11,
        RescaleIntercept=0, PixelData=stored.astype("<u2").tobytes(),
    )  # fmt: skip
    np.testing.assert_array_equal(read_hu(path), values)


def test_what_other_bits_hold_is_no_density(tmp_path: Path) -> None:
    stored = (STORED | 0x8000).astype("<u2").tobytes()
    path = write_slice(
        tmp_path / "a.dcm", HU, PixelRepresentation=0, BitsStored=12, HighBit=11, PixelData=stored
    )
    np.testing.assert_array_equal(read_hu(path), STORED.astype(np.float64) - 1024)


@pytest.mark.parametrize("missing", ["RescaleSlope", "HighBit", "Modality"])
def test_a_slice_is_read_where_a_tag_is_missing_that_has_a_usual_value(
    tmp_path: Path, missing: str
) -> None:
    path = write_slice(tmp_path / "a.dcm", HU, **{missing: None})
    np.testing.assert_array_equal(read_hu(path), HU)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        (RLELossless, None),
        (JPEG2000Lossless, lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k")),
        (JPEGLSLossless, imagecodecs.jpegls_encode),
        (JPEGLosslessSV1, lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16)),
    ],
    ids=["rle", "jpeg2000", "jpegls", "jpeg-lossless"],
)
def test_compressed_slices_are_read_to_the_bit(tmp_path: Path, syntax: str, encode: Any) -> None:
    path = tmp_path / "a.dcm"
    if encode is None:
        write_rle(path)
    else:
        write_compressed(path, syntax, encode(STORED))
    np.testing.assert_array_equal(read_hu(path), STORED.astype(np.float64) - 1024)


def test_a_panic_in_a_decoder_of_rust_is_an_error_of_the_slice(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write_rle(path)
    content = path.read_bytes()
    start = content.rindex(b"\xfe\xff\x00\xe0") + 8 + 64  # first segment, after the RLE header
    n_refused = 0
    for offset in range(start, start + 400):
        path = tmp_path / f"{offset}.dcm"
        path.write_bytes(content[:offset] + b"\x7f" + content[offset + 1 :])
        try:
            read_hu(path)
        except TileError as error:
            n_refused += "cannot be decoded" in str(error)
    assert n_refused


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 60000, "Columns": 60000}, "60,000 × 60,000 px"),
        ({"Rows": 4000, "Columns": 4000}, "8,192 bytes of pixels; expected 32,000,000"),
        ({"Rows": 0}, "64 × 0 px"),
        ({"Rows": None}, "64 × 0 px"),
        ({"BitsAllocated": 32}, "16 of 32 bits"),
        ({"BitsStored": 0}, "0 of 16 bits"),
        ({"BitsStored": None}, "None of 16 bits"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "a picture of 3 channels"),
        ({"NumberOfFrames": 100000}, "100,000 frames"),
        ({"PhotometricInterpretation": None}, "expected one in greyscale"),
        ({"PixelData": None}, "no pixels"),
        ({"PixelData": b"\0" * 100}, "100 bytes of pixels"),
        ({"RescaleSlope": 0}, "slope or intercept"),
    ],
)
def test_an_impossible_header_is_refused(tmp_path: Path, tags: dict, message: str) -> None:
    path = write_slice(tmp_path / "a.dcm", HU, **tags)
    with pytest.raises(TileError, match=message):
        read_hu(path)


def test_an_absurd_size_allocates_nothing(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", HU, Rows=65000, Columns=65000)
    tracemalloc.start()
    with pytest.raises(TileError):
        read_hu(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 5_000_000


def test_a_stream_of_another_size_than_the_header_is_not_decoded(tmp_path: Path) -> None:
    honest = imagecodecs.jpeg2k_encode(STORED, level=0, codecformat="j2k")
    lying = honest[:8] + struct.pack(">II", 60000, 60000) + honest[16:]
    with pytest.raises(TileError, match="60,000 × 60,000 px; expected 64 × 64"):
        read_hu(write_compressed(tmp_path / "a.dcm", JPEG2000Lossless, lying))


def test_a_deflated_file_is_refused_before_it_swells(tmp_path: Path) -> None:
    header = dataset(HU)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for read in (read_slice_headers, read_hu):
        with pytest.raises(TileError, match="a deflated file"):
            read(tmp_path / "a.dcm")


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about the damage
@pytest.mark.parametrize("seed", range(6))
def test_a_file_with_broken_bytes_gives_values_or_one_error_without_a_name(
    tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    whole = bytearray(write_slice(tmp_path / "a.dcm", HU).read_bytes())
    for round_ in range(40):
        broken = bytearray(whole)
        for offset in rng.integers(132, 1400, 1 + round_ % 9):
            broken[offset] = rng.integers(256)
        (tmp_path / "b.dcm").write_bytes(broken[: rng.integers(200, len(broken))]
                                         if round_ % 3 == 0 else broken)  # fmt: skip
        for read in (read_slice_headers, read_hu):
            text = result_or_error(read, tmp_path / "b.dcm")
            assert PLANTED not in text
            assert BIRTH_DATE not in text


def result_or_error(read: Callable[[Path], object], path: Path) -> str:
    """Return the result, or the one error that may be raised, as text."""
    try:
        return repr(read(path))
    except TileError as error:
        return str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no DICOM file"),
        (b"just text", "no DICOM file"),
        (b"\0" * 128 + b"DICM", "no transfer syntax"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 64, "damaged|no transfer syntax"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_without_a_slice_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(TileError, match=message):
        read_slice_headers(tmp_path / "a.dcm")


def test_a_header_states_the_position_and_nothing_of_the_patient(tmp_path: Path) -> None:
    header = only_header(
        write_slice(
            tmp_path / "a.dcm", HU, InstanceNumber=7, ImagePositionPatient=[1, 2, 3.5],
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1], PixelSpacing=[0.4, 0.5],
        )
    )  # fmt: skip
    assert header.instance_number == 7
    assert header.position_mm == (1, 2, 3.5)
    assert header.normal == (-1, 0, 0)
    assert header.spacing_um == pytest.approx((500, 400))
    assert PLANTED not in repr(header)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({"ImagePositionPatient": None}, "position_mm"),
        ({"ImagePositionPatient": [1, 2]}, "position_mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "normal"),
        ({"InstanceNumber": None}, "instance_number"),
        ({"PixelSpacing": [0, 0.5]}, "spacing_um"),
        ({"StudyInstanceUID": None}, "study_uid"),
        ({"SeriesInstanceUID": None}, "series_uid"),
    ],
)
def test_a_missing_or_senseless_tag_is_none(tmp_path: Path, tags: dict, name: str) -> None:
    header = only_header(write_slice(tmp_path / "a.dcm", HU, **tags))
    assert getattr(header, name) is None


def test_a_report_has_no_picture_and_a_magnetic_resonance_no_hounsfield(tmp_path: Path) -> None:
    report = dataset(HU, Rows=None, Columns=None, Modality="SR", SOPClassUID=BasicTextSRStorage)
    report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    report.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_slice_headers(tmp_path / "a.dcm") == ()
    with pytest.raises(TileError, match="a picture without rows or columns"):
        read_slice_headers(write_slice(tmp_path / "c.dcm", HU, Rows=None))
    with pytest.raises(TileError, match="not a CT"):
        read_slice_headers(write_slice(tmp_path / "b.dcm", HU, Modality="MR"))


def test_dicom_is_recognised_by_its_bytes(tmp_path: Path) -> None:
    write_slice(tmp_path / "without_suffix", HU)
    (tmp_path / "a.dcm").write_text("no")
    assert is_dicom(tmp_path / "without_suffix")
    assert not is_dicom(tmp_path / "a.dcm")
    assert not is_dicom(tmp_path / "gone")


def test_the_library_does_not_validate_headers() -> None:
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE


FRAMES = [np.rint(paint_slice(np.random.default_rng(n), side_px=48)) for n in range(4)]


def test_frames_of_a_file_have_their_own_positions_and_rescaling(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.dcm", FRAMES, positions=[15, 5, 10, 0])
    headers = read_slice_headers(path)
    assert [header.frame for header in headers] == [0, 1, 2, 3]
    assert [header.position_mm for header in headers] == [(0, 0, z) for z in (15, 5, 10, 0)]
    assert {header.normal for header in headers} == {(0, 0, 1)}
    assert {header.spacing_um for header in headers} == {(500, 500)}
    for number, values in enumerate(FRAMES):  # each frame has an intercept of its own
        np.testing.assert_array_equal(read_hu(path, frame=number), values)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, RLELossless])
def test_compressed_frames_are_read_to_the_bit(tmp_path: Path, syntax: str) -> None:
    path = write_frames(tmp_path / "a.dcm", FRAMES, positions=[0, 5, 10, 15])
    header = pydicom.dcmread(path)
    if syntax == RLELossless:
        header.compress(syntax, generate_instance_uid=False)
    else:
        stored = header.pixel_array.astype(np.uint16)
        header.PixelData = encapsulate(
            [imagecodecs.jpeg2k_encode(one, level=0, codecformat="j2k") for one in stored]
        )
        header.file_meta.TransferSyntaxUID = syntax
        header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)
    for number, values in enumerate(FRAMES):
        np.testing.assert_array_equal(read_hu(path, frame=number), values)


def test_frames_without_groups_use_the_values_of_the_file(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.dcm", FRAMES, positions=None)
    assert [header.position_mm for header in read_slice_headers(path)] == [(0, 0, 0)] * 4
    np.testing.assert_array_equal(read_hu(path, frame=2), FRAMES[2])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"NumberOfFrames": 3000}, "frames of 48 × 48 px; expected at least a byte per pixel"),
        ({"NumberOfFrames": 5000}, "5,000 frames; expected at most 4,096"),
        ({"NumberOfFrames": -3}, "an invalid number of frames"),
    ],
)
def test_more_frames_than_a_file_holds_are_refused_at_once(
    tmp_path: Path, tags: dict, message: str
) -> None:
    path = write_frames(tmp_path / "a.dcm", FRAMES, positions=[0, 5, 10, 15], **tags)
    with pytest.raises(TileError, match=message):
        read_slice_headers(path)


def test_a_frame_that_is_cut_off_costs_itself(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "a.dcm", FRAMES, positions=[0, 5, 10, 15], NumberOfFrames=5)
    np.testing.assert_array_equal(read_hu(path, frame=3), FRAMES[3])
    with pytest.raises(TileError, match="0 bytes of pixels; expected 4,608"):
        read_hu(path, frame=4)
    with pytest.raises(TileError, match="5 frames; expected as many as a moment ago"):
        read_hu(path, frame=5)
    with pytest.raises(TileError, match="5 frames; expected as many as a moment ago"):
        read_hu(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("frame", [None, 1])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_wrong_value_representation_of_any_tag_gives_values_or_one_error(
    tmp_path: Path, frame: int | None, compressed: bool
) -> None:
    path = tmp_path / "a.dcm"
    write_slice(path, HU) if frame is None else write_frames(path, FRAMES, positions=[0, 1, 2, 3])
    header = pydicom.dcmread(path)
    if compressed:
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    for element in [*header.file_meta, *header]:
        tag = struct.pack("<HH", element.tag.group, element.tag.element)
        before, _, after = content.partition(tag)
        for representation in (b"ZZ", b"\xff\xff", b"US", b"DS", b"AT", b"PN", b"SQ", b"UN"):
            path.write_bytes(before + tag + representation + after[2:])
            result_or_error(read_slice_headers, path)
            result_or_error(lambda path: read_hu(path, frame=frame), path)


def test_a_file_that_disappears_is_an_error_of_its_slice(tmp_path: Path) -> None:
    for read in (read_slice_headers, read_hu, lambda path: read_hu(path, frame=1)):
        with pytest.raises(TileError, match="FileNotFoundError"):
            read(tmp_path / "gone.dcm")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_bytes_in_groups_give_slices_or_one_error_without_a_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = write_frames(tmp_path / "a.dcm", FRAMES, positions=[0, 5, 10, 15]).read_bytes()
    end_of_header = len(whole) - 4 * 48 * 48 * 2
    for number in range(120):
        broken = bytearray(whole)
        for offset in rng.integers(132, end_of_header, 1 + number % 9):
            broken[offset] = rng.integers(256)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(broken)
        text = result_or_error(read_slice_headers, path)
        text += result_or_error(lambda path: read_hu(path, frame=1), path)
        assert PLANTED not in text
        assert BIRTH_DATE not in text
