"""DICOM slices: position in the scan, and Hounsfield units.

A file holds one slice, or several as frames (enhanced CT), whose own values precede those that all
frames share.

Files may be hostile. Only the tags named here are read: names, birth dates and ids of patients are
not, so that no output can contain them. Messages of pydicom may quote the file and are not repeated
for the same reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from features.errors import TileError
from features.slides.dicom_series import is_dicom
from features.utils.image_headers import jpeg_dimensions

__all__ = ["SliceHeader", "is_dicom", "read_hu", "read_slice_headers"]

_LARGEST_BYTES = 1 << 29
_LARGEST_PX = 1 << 25
"""Largest number of pixels of a slice, 34 Mpx; a CT slice has 0.26."""
_MOST_FRAMES = 4096
_LARGEST_HU = 1e6

_GEOMETRY_TAGS = [
    "ImageOrientationPatient", "ImagePositionPatient", "ImageType", "InstanceNumber", "Modality",
    "PixelSpacing", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows", "Columns",
    "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip
_STORED_TAGS = [
    "BitsAllocated", "BitsStored", "Columns", "HighBit", "PhotometricInterpretation",
    "PixelRepresentation", "Rows", "SamplesPerPixel",
]  # fmt: skip
_PIXEL_TAGS = [
    "NumberOfFrames", "PixelData", "RescaleIntercept", "RescaleSlope",
    "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", *_STORED_TAGS,
]  # fmt: skip

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")  # They quote the header.


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """Size and position of a slice; None for values that the file lacks or states wrongly.

    ``instance_uid`` is equal for copies of a slice. ``frame`` counts from 0; it is None in a file
    of one slice. A localizer is a scout view. ``position_mm`` is the centre of the first pixel in
    the patient's axes, ``normal`` has length 1 and is perpendicular to the plane, and
    ``spacing_um`` is the distance of pixels along x and y, µm.
    """

    width_px: int
    height_px: int
    study_uid: str | None
    series_uid: str | None
    instance_uid: str | None
    frame: int | None
    is_localizer: bool
    instance_number: int | None
    position_mm: tuple[float, float, float] | None
    normal: tuple[float, float, float] | None
    spacing_um: tuple[float, float] | None


def read_slice_headers(path: Path) -> tuple[SliceHeader, ...]:
    """Read the headers of a file's slices in the order of its frames.

    A DICOM file without an image, such as a report, has none.

    Raises
    ------
    TileError
        If the file is damaged, too large, or an image of another modality than CT.
    """
    with _translate_errors(path, "a damaged DICOM file"):
        header = _read(path, _GEOMETRY_TAGS, pixels=False)
        height_px, width_px = _integer(header, "Rows"), _integer(header, "Columns")
        if not height_px or not width_px:
            kind = _text(header.file_meta, "MediaStorageSOPClassUID") or ""
            if "Image Storage" in pydicom.uid.UID(kind).name:
                raise TileError(path, actual="a picture without rows or columns", expected="both")
            return ()
        if _text(header, "Modality") not in (None, "CT"):
            raise TileError(
                path, actual="a picture that is not a CT", expected="CT, whose values are HU",
                hint="Convert other images to PNG first.",
            )  # fmt: skip
        n_frames, n_bytes = _n_frames(path, header), path.stat().st_size
        n_least = 0 if header.file_meta.TransferSyntaxUID.is_compressed else n_frames
        if n_frames > 1 and n_least * height_px * width_px > n_bytes:
            raise TileError(
                path, actual=f"{n_bytes:,} bytes for {n_frames:,} frames of {width_px:,} × "
                f"{height_px:,} px", expected="at least a byte per pixel",
            )  # fmt: skip
        frames = range(n_frames) if n_frames > 1 else (None,)
        return tuple(_header_of(header, frame, size_px=(width_px, height_px)) for frame in frames)


def _header_of(header: Any, frame: int | None, *, size_px: tuple[int, int]) -> SliceHeader:
    position = _group(header, frame, "PlanePositionSequence")
    orientation = _group(header, frame, "PlaneOrientationSequence")
    measures = _group(header, frame, "PixelMeasuresSequence")
    image_type = _value(header, "ImageType")
    parts = [image_type] if isinstance(image_type, (str, float)) else image_type or ()
    return SliceHeader(
        width_px=size_px[0],
        height_px=size_px[1],
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        instance_uid=_text(header, "SOPInstanceUID"),
        frame=frame,
        is_localizer="LOCALIZER" in [str(part).upper() for part in parts],
        instance_number=_integer(header, "InstanceNumber"),
        position_mm=_triple(_numbers(position, "ImagePositionPatient", 3)),
        normal=_normal(_numbers(orientation, "ImageOrientationPatient", 6)),
        spacing_um=_spacing(_numbers(measures, "PixelSpacing", 2)),
    )


def read_hu(path: Path, *, frame: int | None = None) -> npt.NDArray[np.float32]:
    """Read a slice in Hounsfield units, float32 of shape (height, width) in px.

    They are the stored values times the slope plus the intercept; a missing slope is 1, a missing
    intercept 0. Unsigned values of 12 bits with an intercept above -100 were written by scanners
    that wrapped the range: they are shifted by 1,000, wrapped back and given the intercept -1,000,
    as Howard (2019) does for the scans of RSNA. ``frame`` counts from 0, and is None for a file of
    one slice.

    Raises
    ------
    TileError
        If the file is damaged, states an impossible or excessive size, is compressed in a way that
        no installed decoder supports, or is not a greyscale image.
    """
    with _translate_errors(path, "a damaged DICOM file"):
        if frame is None:
            header = _read(path, _PIXEL_TAGS, pixels=True)
        else:
            header = _read_frames(path, path.stat().st_mtime_ns)
        n_frames = _check_supported(path, header)
        if (n_frames > 1) != (frame is not None) or (frame or 0) >= n_frames:
            raise TileError(path, actual=f"{n_frames} frames", expected="as many as a moment ago")
        stored = _stored_values(path, header, frame)
        rescale = _group(header, frame, "PixelValueTransformationSequence")
        slope = _number(rescale, "RescaleSlope", 1.0)
        intercept = _number(rescale, "RescaleIntercept", 0)
        if slope is None or intercept is None or slope == 0:
            raise TileError(path, actual="a rescale slope or intercept that is not a usable number")
        is_unsigned = not _integer(header, "PixelRepresentation")
        if int(header.BitsStored) == 12 and is_unsigned and intercept > -100:
            stored = stored + 1000
            stored = np.where(stored >= 4096, stored - 4096, stored)
            intercept = -1000.0
    values = stored.astype(np.float64) * slope + intercept
    return np.clip(values, -_LARGEST_HU, _LARGEST_HU).astype(np.float32)


@lru_cache(maxsize=1)
def _read_frames(path: Path, changed_ns: int) -> Any:  # noqa: ARG001 - part of the cache's key
    """Read a file of several frames once, as they are requested one after another."""
    return _read(path, _PIXEL_TAGS, pixels=True)


def _read(path: Path, tags: Sequence[str], *, pixels: bool) -> Any:
    """Read only these tags of a file."""
    n_bytes = path.stat().st_size
    if n_bytes > _LARGEST_BYTES:
        raise TileError(
            path, actual=f"a file of {n_bytes:,} bytes", expected=f"at most {_LARGEST_BYTES:,}"
        )
    if not is_dicom(path):
        raise TileError(path, actual="no DICOM file", expected="DICM at byte 128")
    syntax = getattr(read_file_meta_info(path), "TransferSyntaxUID", None)
    if syntax is None or not syntax.is_transfer_syntax or syntax.is_private:
        raise TileError(path, actual="no transfer syntax", expected="one that DICOM names")
    if syntax == DeflatedExplicitVRLittleEndian:
        # Inflating it allocates whatever a few bytes ask for.
        raise TileError(
            path, actual="a deflated file", expected="pixels stored as they are, or as JPEG or RLE"
        )
    return pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels=not pixels)


@contextmanager
def _translate_errors(path: Path, actual: str) -> Iterator[None]:
    """Turn any error of pydicom and its decoders into a TileError without the error's own words."""
    try:
        yield
    except TileError:
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # Rust's is not an Exception.
        if not is_panic and not isinstance(error, Exception):
            raise
        raise TileError(
            path, actual=f"{actual} ({type(error).__name__})", expected="a whole slice",
            hint="Export it again.",
        ) from error  # fmt: skip


def _n_frames(path: Path, header: Any) -> int:
    """Return the number of slices of a file; 0 stands for 1 in some."""
    value = _value(header, "NumberOfFrames")
    n_frames = 1 if value in (None, "") else _integer(header, "NumberOfFrames")
    if n_frames is None or n_frames > _MOST_FRAMES:
        raise TileError(
            path,
            actual="an invalid number of frames" if n_frames is None else f"{n_frames:,} frames",
            expected=f"at most {_MOST_FRAMES:,} slices in a file",
        )
    return n_frames or 1


def _check_supported(path: Path, header: Any) -> int:
    """Return the number of slices; raise unless they are greyscale and of a plausible size."""
    height_px, width_px = _integer(header, "Rows") or 0, _integer(header, "Columns") or 0
    if not 0 < height_px * width_px <= _LARGEST_PX:
        raise TileError(
            path, actual=f"a picture of {width_px:,} × {height_px:,} px",
            expected=f"1 to {_LARGEST_PX:,} px",
        )  # fmt: skip
    bits, stored = _integer(header, "BitsAllocated"), _integer(header, "BitsStored")
    if bits not in (8, 16) or stored is None or not 1 <= stored <= bits:
        raise TileError(path, actual=f"{stored} of {bits} bits per pixel", expected="1 to 16 of 16")
    n_channels = _integer(header, "SamplesPerPixel") or 1
    meaning = _text(header, "PhotometricInterpretation") or ""
    if n_channels != 1 or not meaning.startswith("MONO"):
        raise TileError(
            path, actual=f"a picture of {n_channels} channels", expected="one in greyscale"
        )
    if "PixelData" not in header:
        raise TileError(path, actual="no pixels", expected="a picture")
    return _n_frames(path, header)


def _stored_values(path: Path, header: Any, frame: int | None) -> npt.NDArray[np.int32]:
    """Read the stored values of a slice, int32 of shape (height_px, width_px).

    Bits of the same bytes that do not belong to them are masked.
    """
    syntax = header.file_meta.TransferSyntaxUID
    size = (int(header.Columns), int(header.Rows))
    name = syntax.name if syntax.is_compressed else "plain"
    with _translate_errors(path, f"pixels that cannot be decoded ({name})"):
        pixels = header.PixelData
        if syntax.is_compressed:
            n_frames = _n_frames(path, header)
            stream = get_frame(pixels, frame or 0, number_of_frames=n_frames)
            stated = jpeg_dimensions(stream)  # Decoders would believe it and allocate its size.
            if stated not in (None, size):
                raise TileError(
                    path, actual=f"a stream of {stated[0]:,} × {stated[1]:,} px",
                    expected=f"{size[0]:,} × {size[1]:,} px as in the header",
                )  # fmt: skip
            pixels = encapsulate([stream]) if frame is not None else pixels
        else:
            n_bytes = size[0] * size[1] * int(header.BitsAllocated) // 8
            if frame is not None:
                pixels = pixels[frame * n_bytes : (frame + 1) * n_bytes]
            if len(pixels) < n_bytes:
                raise TileError(
                    path, actual=f"{len(pixels):,} bytes of pixels", expected=f"{n_bytes:,}"
                )
        single = header if frame is None else _single_frame(header, pixels)
        values: npt.NDArray[Any] = single.pixel_array
    if values.shape != size[::-1]:
        raise TileError(path, actual=f"pixels of shape {values.shape}", expected=f"{size[::-1]}")
    n_bits = int(header.BitsStored)
    values = values.astype(np.int32) & ((1 << n_bits) - 1)
    if _integer(header, "PixelRepresentation"):
        values = np.where(values >= 1 << (n_bits - 1), values - (1 << n_bits), values)
    return np.asarray(values, np.int32)


def _single_frame(header: Any, pixels: bytes) -> Dataset:
    """Build the header of a file that holds only one frame."""
    single = Dataset()
    single.file_meta = header.file_meta
    single.set_original_encoding(*header.original_encoding)
    for name in _STORED_TAGS:
        if name in header:
            single[name] = header[name]
    single["PixelData"] = DataElement(header["PixelData"].tag, header["PixelData"].VR, pixels)
    return single


def _group(header: Any, frame: int | None, name: str) -> Any:
    """Return a functional group of a frame: its own, the shared one, or the file's header."""
    if frame is None:
        return header
    own = _items(header, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for groups in (*own, *_items(header, "SharedFunctionalGroupsSequence")):
        if items := _items(groups, name):
            return items[0]
    return header


def _items(header: Any, name: str) -> Sequence[Any]:
    """Return the items of a sequence; empty if there is none."""
    value = _value(header, name)
    return value if isinstance(value, pydicom.Sequence) else ()


def _value(header: Any, name: str) -> Any:
    """Return a tag's value; None if it is missing, NaN if it cannot be parsed."""
    try:
        return header.get(name)
    except Exception:  # noqa: BLE001 - values are parsed when they are read, in many ways
        return math.nan


def _text(header: Any, name: str) -> str | None:
    value = _value(header, name)
    return value.strip() or None if isinstance(value, str) else None


def _number(header: Any, name: str, default: float) -> float | None:
    """Return a finite number; the default if the tag is missing or empty, None if it is invalid."""
    value = _value(header, name)
    try:
        number = default if value in (None, "") else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST_HU else None


def _integer(header: Any, name: str) -> int | None:
    """Return an integer from 0 to 2^31 - 1; None if the tag is missing or invalid."""
    try:
        value = int(_value(header, name))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 <= value < 1 << 31 else None


def _numbers(header: Any, name: str, n: int) -> npt.NDArray[np.float64] | None:
    """Return finite numbers, shape (n,); None if the tag is missing or invalid."""
    value = _value(header, name)
    try:
        numbers = np.array([float(part) for part in value], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.shape == (n,) and np.abs(numbers).max() < _LARGEST_HU else None


def _triple(numbers: npt.NDArray[np.float64] | None) -> tuple[float, float, float] | None:
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _normal(directions: npt.NDArray[np.float64] | None) -> tuple[float, float, float] | None:
    """Return the unit normal of a plane from the directions of its rows and columns, shape (6,)."""
    if directions is None:
        return None
    normal = np.cross(directions[:3], directions[3:])
    length = float(np.linalg.norm(normal))
    return _triple(normal / length) if length > 0.5 else None


def _spacing(rows_and_columns: npt.NDArray[np.float64] | None) -> tuple[float, float] | None:
    """Convert the distance of rows and of columns, mm, to that along x and y, µm."""
    if rows_and_columns is None or not (rows_and_columns > 0).all():
        return None
    along_y, along_x = (1000 * rows_and_columns).tolist()
    return along_x, along_y
