"""DICOM slices: where each lies in its scan, and its Hounsfield units.

A file holds one slice, or several as frames (enhanced CT); then what is told of a frame by itself
comes before what is told of all.

Files are hostile until shown otherwise. Of a header only the few tags named here are ever looked
at: names, birth dates and ids of patients are not, so they cannot reach anything that is written.
What the library says of a damaged file may quote it and is not repeated for the same reason.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
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
from features.utils.image_headers import jpeg_dimensions

__all__ = ["SliceHeader", "is_dicom", "read_hu", "read_slice_headers"]

_LARGEST_BYTES = 1 << 29
_LARGEST_PX = 1 << 25
"""Pixels of a slice at most, 34 Mpx; a CT slice has 0.26."""
_MOST_FRAMES = 4096
_LARGEST_HU = 1e6
_MAGIC = b"DICM"
_MAGIC_AT = 128

_PLACE_TAGS = [
    "ImageOrientationPatient", "ImagePositionPatient", "ImageType", "InstanceNumber", "Modality",
    "PixelSpacing", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows", "Columns",
    "NumberOfFrames", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip
_PIXEL_TAGS = [
    "BitsAllocated", "BitsStored", "Columns", "NumberOfFrames", "PhotometricInterpretation",
    "PixelData", "PixelRepresentation", "RescaleIntercept", "RescaleSlope", "Rows",
    "SamplesPerPixel", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip

_STORED_TAGS = [
    "BitsAllocated", "BitsStored", "Columns", "HighBit", "PhotometricInterpretation",
    "PixelRepresentation", "Rows", "SamplesPerPixel",
]  # fmt: skip
_IN_PIECES = "pixels in pieces that do not fit"

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")  # they quote what a header holds


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """What a slice says of its place; what a file does not tell, or tells as nonsense, is None."""

    width_px: int
    """Width of the picture."""
    height_px: int
    """Height of the picture."""
    study_uid: str | None
    """The study it belongs to."""
    series_uid: str | None
    """The series of that study."""
    instance_uid: str | None
    """The file: equal for copies of it."""
    frame: int | None
    """Which slice of the file it is, from 0; None where the file holds one."""
    is_localizer: bool
    """Whether it is a scout view, not a slice."""
    instance_number: int | None
    """Number that the scanner gave it."""
    position_mm: tuple[float, float, float] | None
    """Centre of its first pixel in the patient's axes, mm."""
    normal: tuple[float, float, float] | None
    """Direction across its plane, of length 1."""
    spacing_um: tuple[float, float] | None
    """Distance of pixels along x and y, µm."""


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC
    except OSError:
        return False


def read_slice_headers(path: Path) -> tuple[SliceHeader, ...]:
    """Where the slices of a file lie, in the order of its frames.

    Returns
    -------
    tuple of SliceHeader
        One, or one a frame; none of a DICOM file without a picture, such as a report.

    Raises
    ------
    TileError
        If the file is damaged, too large, or no picture of a CT.
    """
    header = _read(path, _PLACE_TAGS, pixels=False)
    height_px, width_px = _whole(header, "Rows"), _whole(header, "Columns")
    if not height_px or not width_px:
        kind = _text(header.file_meta, "MediaStorageSOPClassUID") or ""
        if "Image Storage" in pydicom.uid.UID(kind).name:
            raise TileError(path, actual="a picture without rows or columns", expected="both")
        return ()
    modality = _text(header, "Modality")
    if modality not in (None, "CT"):
        raise TileError(
            path, actual="a picture that is not a CT", expected="CT, whose values are HU",
            hint="Turn pictures of other kinds into PNG first.",
        )  # fmt: skip
    n_frames = _n_frames(path, header)
    n_least = 0 if header.file_meta.TransferSyntaxUID.is_compressed else n_frames
    if n_frames > 1 and n_least * height_px * width_px > path.stat().st_size:
        raise TileError(
            path, actual=f"{path.stat().st_size:,} bytes for {n_frames:,} frames of "
            f"{width_px:,} × {height_px:,} px", expected="a byte a pixel at least",
        )  # fmt: skip
    frames = range(n_frames) if n_frames > 1 else (None,)
    return tuple(_header_of(header, frame, size_px=(width_px, height_px)) for frame in frames)


def _header_of(header: Any, frame: int | None, *, size_px: tuple[int, int]) -> SliceHeader:
    place = _group(header, frame, "PlanePositionSequence")
    plane = _group(header, frame, "PlaneOrientationSequence")
    measures = _group(header, frame, "PixelMeasuresSequence")
    return SliceHeader(
        width_px=size_px[0],
        height_px=size_px[1],
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        instance_uid=_text(header, "SOPInstanceUID"),
        frame=frame,
        is_localizer="LOCALIZER" in map(str.upper, _texts(header, "ImageType")),
        instance_number=_whole(header, "InstanceNumber"),
        position_mm=_triple(_numbers(place, "ImagePositionPatient", 3)),
        normal=_normal(_numbers(plane, "ImageOrientationPatient", 6)),
        spacing_um=_spacing(_numbers(measures, "PixelSpacing", 2)),
    )


def read_hu(path: Path, *, frame: int | None = None) -> npt.NDArray[np.float32]:
    """Hounsfield units of a slice.

    Stored values times the slope plus the intercept; a missing slope is 1, a missing intercept 0.
    Unsigned values of 12 bits whose intercept is above -100 were written by scanners that wrapped
    the range: they are shifted by 1,000, wrapped back and given the intercept -1,000, as Howard
    (2019) does for the scans of RSNA.

    Parameters
    ----------
    path
        The file.
    frame
        Which of its slices, from 0; None of a file that holds one.

    Returns
    -------
    numpy.ndarray
        Shape (height_px, width_px), float32, HU.

    Raises
    ------
    TileError
        If the file is damaged, claims more than it can hold or than is sane, is compressed in a
        way that no installed decoder knows, or is not one grey picture.
    """
    header = _read_whole(path) if frame is None else _read_once(path, path.stat().st_mtime_ns)
    n_frames = _check_supported(path, header)
    if (n_frames > 1) != (frame is not None) or (frame or 0) >= n_frames:
        raise TileError(path, actual=f"{n_frames} frames", expected="as many as a moment ago")
    stored = _stored_values(path, _single_frame(path, header, frame))
    rescale = _group(header, frame, "PixelValueTransformationSequence")
    slope = _number(rescale, "RescaleSlope", 1.0)
    intercept = _number(rescale, "RescaleIntercept", 0)
    if slope is None or intercept is None or slope == 0:
        raise TileError(path, actual="a rescale slope or intercept that is no number")
    if (
        int(header.BitsStored) == 12
        and not _whole(header, "PixelRepresentation")
        and intercept > -100
    ):
        stored = stored + 1000
        stored = np.where(stored >= 4096, stored - 4096, stored)
        intercept = -1000.0
    values = stored.astype(np.float64) * slope + intercept
    return np.clip(values, -_LARGEST_HU, _LARGEST_HU).astype(np.float32)


def _read_whole(path: Path) -> Any:
    return _read(path, _PIXEL_TAGS, pixels=True)


@lru_cache(maxsize=1)
def _read_once(path: Path, changed_ns: int) -> Any:  # noqa: ARG001 - tells files of one name apart
    """A file of many slices, which are asked for one after another."""
    return _read_whole(path)


def _read(path: Path, tags: Sequence[str], *, pixels: bool) -> Any:
    """These tags of a file and nothing else of it."""

    def read() -> Any:
        if path.stat().st_size > _LARGEST_BYTES:
            raise TileError(
                path, actual=f"a file of {path.stat().st_size:,} bytes",
                expected=f"one slice, at most {_LARGEST_BYTES:,}",
            )  # fmt: skip
        if not is_dicom(path):
            raise TileError(path, actual="no DICOM file", expected="DICM at byte 128")
        syntax = getattr(read_file_meta_info(path), "TransferSyntaxUID", None)
        if syntax is None or not syntax.is_transfer_syntax or syntax.is_private:
            raise TileError(path, actual="no transfer syntax", expected="one that DICOM names")
        if syntax == DeflatedExplicitVRLittleEndian:
            # Inflating it allocates whatever a few bytes ask for.
            raise TileError(
                path, actual="a deflated file",
                expected="pixels stored plainly or compressed as pictures",
            )  # fmt: skip
        return pydicom.dcmread(path, specific_tags=list(tags), stop_before_pixels=not pixels)

    return _translate_errors(path, read, what="a damaged DICOM file")


def _translate_errors(path: Path, act: Callable[[], Any], *, what: str) -> Any:
    """Do it; whatever the library dislikes becomes one error, told without its words."""
    try:
        return act()
    except TileError:
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of Rust, and no Exception in Python
        if not is_panic and not isinstance(error, Exception):
            raise
        raise TileError(
            path, actual=f"{what} ({type(error).__name__})", expected="a whole slice",
            hint="Export it again.",
        ) from error  # fmt: skip


def _n_frames(path: Path, header: Any) -> int:
    """Slices of a file; a number of 0 is written by some for 1."""
    value = _value(header, "NumberOfFrames")
    n_frames = 1 if value in (None, "") else _whole(header, "NumberOfFrames")
    if n_frames is None or n_frames > _MOST_FRAMES:
        raise TileError(
            path,
            actual="a number of frames that is none"
            if n_frames is None
            else f"{n_frames:,} frames",
            expected=f"at most {_MOST_FRAMES:,} slices in a file",
        )
    return n_frames or 1


def _check_supported(path: Path, header: Any) -> int:
    """Refuse what is not grey pictures of a sane size; gives how many."""
    height_px, width_px = _whole(header, "Rows") or 0, _whole(header, "Columns") or 0
    if not 0 < height_px * width_px <= _LARGEST_PX:
        raise TileError(
            path, actual=f"a picture of {width_px:,} × {height_px:,} px",
            expected=f"1 to {_LARGEST_PX:,} px",
        )  # fmt: skip
    bits, stored = _whole(header, "BitsAllocated"), _whole(header, "BitsStored")
    if bits not in (8, 16) or stored is None or not 1 <= stored <= bits:
        raise TileError(path, actual=f"{stored} of {bits} bits a pixel", expected="1 to 16 of 16")
    n_channels = _whole(header, "SamplesPerPixel") or 1
    meaning = _text(header, "PhotometricInterpretation") or ""
    if n_channels != 1 or not meaning.startswith("MONO"):
        raise TileError(
            path, actual=f"a picture of {n_channels} channels", expected="a grey one",
        )  # fmt: skip
    if "PixelData" not in header:
        raise TileError(path, actual="no pixels", expected="a picture")
    return _n_frames(path, header)


def _single_frame(path: Path, header: Any, frame: int | None) -> Any:
    """One frame as a file of its own would say it."""
    if frame is None:
        return header
    pixels, n_frames = header.PixelData, _n_frames(path, header)
    if header.file_meta.TransferSyntaxUID.is_compressed:
        stream = _translate_errors(
            path, lambda: get_frame(pixels, frame, number_of_frames=n_frames), what=_IN_PIECES
        )
        pixels = encapsulate([stream])
    else:
        n_bytes = int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8
        pixels = pixels[frame * n_bytes : (frame + 1) * n_bytes]
    alone = Dataset()
    alone.file_meta = header.file_meta
    alone.set_original_encoding(*header.original_encoding)
    for name in _STORED_TAGS:
        if name in header:
            alone[name] = header[name]
    alone["PixelData"] = DataElement(header["PixelData"].tag, header["PixelData"].VR, pixels)
    return alone


def _stored_values(path: Path, header: Any) -> npt.NDArray[np.int32]:
    """Values as stored, without what other bits of the same bytes hold."""
    size = (int(header.Columns), int(header.Rows))
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        n_bytes = size[0] * size[1] * int(header.BitsAllocated) // 8
        if len(header.PixelData) < n_bytes:
            raise TileError(
                path, actual=f"{len(header.PixelData):,} bytes of pixels", expected=f"{n_bytes:,}"
            )
    else:
        _refuse_other_size(path, header, size)
    pixels = _translate_errors(
        path, lambda: header.pixel_array,
        what=f"pixels that cannot be decoded ({syntax.name if syntax.is_compressed else 'plain'})",
    )  # fmt: skip
    if pixels.shape != size[::-1]:
        raise TileError(path, actual=f"pixels of shape {pixels.shape}", expected=f"{size[::-1]}")
    n_bits = int(header.BitsStored)
    values = pixels.astype(np.int32) & ((1 << n_bits) - 1)
    if _whole(header, "PixelRepresentation"):
        values = np.where(values >= 1 << (n_bits - 1), values - (1 << n_bits), values)
    return np.asarray(values, np.int32)


def _refuse_other_size(path: Path, header: Any, size: tuple[int, int]) -> None:
    """Refuse a stream that claims another size than the header: decoders would believe it."""
    stream = _translate_errors(
        path, lambda: get_frame(header.PixelData, 0, number_of_frames=1), what=_IN_PIECES
    )
    claimed = jpeg_dimensions(stream)
    if claimed not in (None, size):
        raise TileError(
            path, actual=f"a stream of {claimed[0]:,} × {claimed[1]:,} px",
            expected=f"{size[0]:,} × {size[1]:,} px, as its header says",
        )  # fmt: skip


def _group(header: Any, frame: int | None, name: str) -> Any:
    """What is told of a frame in a group: of it alone, else of all frames, else of the file."""
    if frame is None:
        return header
    each = _items(header, "PerFrameFunctionalGroupsSequence")
    for about in (*each[frame : frame + 1], *_items(header, "SharedFunctionalGroupsSequence")):
        for found in _items(about, name):
            return found
    return header


def _items(header: Any, name: str) -> Sequence[Any]:
    """Items of a sequence; none where there is no such sequence."""
    value = _value(header, name)
    return value if isinstance(value, pydicom.Sequence) else ()


def _value(header: Any, name: str) -> Any:
    """A tag's value; None where there is none, NaN where it cannot be read as what it should be."""
    try:
        return header.get(name)
    except Exception:  # noqa: BLE001 - values are parsed when they are asked for, in many ways
        return math.nan


def _text(header: Any, name: str) -> str | None:
    value = _value(header, name)
    return value.strip() or None if isinstance(value, str) else None


def _texts(header: Any, name: str) -> list[str]:
    value = _value(header, name)
    parts = [value] if isinstance(value, (str, float)) else value or ()
    return [str(part) for part in parts]


def _number(header: Any, name: str, default: float) -> float | None:
    """A finite number; the default where the tag is absent or empty, None where it is nonsense."""
    value = _value(header, name)
    try:
        number = default if value in (None, "") else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST_HU else None


def _whole(header: Any, name: str) -> int | None:
    try:
        value = int(_value(header, name))
    except (TypeError, ValueError, OverflowError):
        return None
    return value if 0 <= value < 1 << 31 else None


def _numbers(header: Any, name: str, n: int) -> npt.NDArray[np.float64] | None:
    """So many finite numbers."""
    value = _value(header, name)
    try:
        numbers = np.array([float(part) for part in value], np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if numbers.shape == (n,) and np.abs(numbers).max() < _LARGEST_HU else None


def _triple(numbers: npt.NDArray[np.float64] | None) -> tuple[float, float, float] | None:
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _normal(directions: npt.NDArray[np.float64] | None) -> tuple[float, float, float] | None:
    if directions is None:
        return None
    across = np.cross(directions[:3], directions[3:])
    length = float(np.linalg.norm(across))
    return _triple(across / length) if length > 0.5 else None


def _spacing(rows_and_columns: npt.NDArray[np.float64] | None) -> tuple[float, float] | None:
    if rows_and_columns is None or not (rows_and_columns > 0).all():
        return None
    along_y, along_x = (1000 * rows_and_columns).tolist()
    return along_x, along_y
