"""Kinds of DICOM slides that OpenSlide cannot read, or whose colours it would get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from features.errors import UnsupportedFormatError
from features.slides.backends.dicom_frames import DicomInstance
from features.slides.dicom_series import COMPANIONS
from features.utils.file_kinds import BFCONVERT
from features.utils.image_headers import jpeg2000_transforms_colours, jpeg_stores_rgb

__all__ = ["check_colours_and_planes", "check_format"]

_UNCOMPRESSED = "1.2.840.10008.1.2.1"
_JPEG = "1.2.840.10008.1.2.4.50"
_JPEG_2000 = {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"}
_COLOURS = {
    _UNCOMPRESSED: ("RGB",),
    _JPEG: ("RGB", "YBR_FULL_422"),
    **dict.fromkeys(_JPEG_2000, ("RGB", "YBR_ICT", "YBR_RCT")),
}
"""Values of PhotometricInterpretation that OpenSlide reads, by TransferSyntaxUID."""
_EXPECTED = "RGB of 8 bit in JPEG, in JPEG 2000 or uncompressed, in one plane"
_CONVERT = f"Convert it to OME-TIFF with bfconvert of Bio-Formats: {BFCONVERT}"
_ONE_PLANE = "Export one focal plane of one optical path."


def check_format(instances: Sequence[DicomInstance]) -> None:
    """Raise UnsupportedFormatError for the first file of a kind that OpenSlide does not read.

    The files are those of one series, with sizes in px; the message says how to convert it.
    """
    for instance in instances:
        actual, hint = _unsupported(instance.header)
        if actual:
            words = instance.header.get("ImageType") or ()
            if COMPANIONS & {str(word) for word in words}:
                hint = "Move it out of the folder: the slide is read without it."
            raise UnsupportedFormatError(
                instance.path, actual=actual, expected=_EXPECTED, hint=hint
            )


def check_colours_and_planes(instances: Sequence[DicomInstance]) -> None:
    """Raise UnsupportedFormatError for files that OpenSlide reads, but not as they are meant.

    Those are frames of shape (height, width, 3) whose colours are stored otherwise than the header
    states, and several planes of focus or optical paths of which it would show any one.
    """
    for instance in instances:
        if (n_planes := instance.n_at_one_place) > 1:
            raise UnsupportedFormatError(
                instance.path, expected="one",
                actual=f"{n_planes} frames at each place, as for focal planes or optical paths",
                hint=_ONE_PLANE,
            )  # fmt: skip
        stated = str(instance.header.get("PhotometricInterpretation"))
        syntax, stream = str(instance.header.file_meta.TransferSyntaxUID), instance.first_stream
        is_rgb = jpeg_stores_rgb(stream) if syntax == _JPEG else None
        if is_rgb is not None and is_rgb != (stated == "RGB"):
            found, right = ("RGB", "RGB") if is_rgb else ("YCbCr", "YBR_FULL_422")
            raise UnsupportedFormatError(
                instance.path,
                actual=f"JPEG frames in {found}, which its PhotometricInterpretation denies",
                expected=right, hint=_correct_header(right),
            )  # fmt: skip
        if (
            syntax in _JPEG_2000
            and stated != "RGB"
            and jpeg2000_transforms_colours(stream) is False
        ):
            raise UnsupportedFormatError(
                instance.path,
                actual="JPEG 2000 frames without the colour transform that its "
                "PhotometricInterpretation states",
                expected="RGB, YBR_ICT or YBR_RCT as the frames are", hint=_CONVERT,
            )  # fmt: skip


def _unsupported(header: Any) -> tuple[str, str]:
    """What OpenSlide does not read, and how to convert it; both empty if it reads the file."""
    syntax = header.file_meta.TransferSyntaxUID
    colours = str(header.get("PhotometricInterpretation"))
    n_bits = int(header.get("BitsAllocated") or 8)
    n_channels = int(header.get("SamplesPerPixel") or 3)
    n_planes = int(header.get("TotalPixelMatrixFocalPlanes") or 1)
    actual, hint = "", _CONVERT
    if syntax not in _COLOURS:
        name = "an encoding that DICOM does not name" if syntax.is_private else syntax.name
        actual = f"pixels in {name}"
    elif n_bits != 8:
        actual = f"samples of {n_bits} bit"
    elif n_channels != 3:
        actual = f"pixels of {n_channels} channel{'s' if n_channels > 1 else ''}"
    elif n_planes != 1:
        actual, hint = f"{n_planes} focal planes", _ONE_PLANE
    elif colours not in _COLOURS[syntax]:
        actual = f"pixels in {colours if colours.startswith('YBR_') else 'another colour space'}"
        if syntax == _JPEG and colours == "YBR_FULL":
            hint = _correct_header("YBR_FULL_422")
    elif header.get("PlanarConfiguration"):
        actual = "channels in planes"
    return actual, hint


def _correct_header(colours: str) -> str:
    return (
        "Correct this header, and those of the other levels, in a copy of the series: "
        """python -c "import pydicom; d = pydicom.dcmread('FILE.dcm'); """
        f"""d.PhotometricInterpretation = '{colours}'; d.save_as('FILE.dcm')\""""
    )
