"""What OpenSlide knows of a slide: its vendor, levels and resolution."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import openslide

from features.slides.backends.mpp_text import mpp_in_text
from features.slides.base import MppKind, StatedMpp
from features.slides.length_units import parse_number

__all__ = [
    "PHILIPS",
    "VendorSlide",
    "illumination_in",
    "mpp_in_properties",
    "read_properties",
    "read_vendor_slide",
]

PHILIPS = "philips"
"""Vendor whose scanners leave out tiles of glass."""
_GENERIC = "generic-tiff"
_ILLUMINATION = re.compile(
    r"(slide_type|illumination-source|\.dye|filterset[. ]?name|OpticalPathDescription"
    r"|IlluminationTypeCodeSequence\[\d+\]\.CodeMeaning)\Z",
    re.IGNORECASE,
)
"""Ends of 3DHISTECH's, Leica's, Aperio's, Hamamatsu's and DICOM's properties on illumination."""


@dataclass(frozen=True, kw_only=True)
class VendorSlide:
    """A vendor's slide as OpenSlide sees it; ``level_sizes_px`` are widths and heights, px."""

    vendor: str
    level_sizes_px: tuple[tuple[int, int], ...]
    stated: tuple[StatedMpp, ...]


def read_vendor_slide(path: Path) -> VendorSlide | None:
    """Return what OpenSlide knows of a slide whose vendor it recognises; None for all others.

    A slide that it recognises but cannot open is None too: whoever reads it says what is wrong.
    """
    try:
        if openslide.OpenSlide.detect_format(path) in {None, _GENERIC}:
            return None
        with openslide.OpenSlide(path) as handle:
            properties = read_properties(handle)
            return VendorSlide(
                vendor=properties[openslide.PROPERTY_NAME_VENDOR],
                level_sizes_px=handle.level_dimensions,
                stated=tuple(mpp_in_properties(properties)),
            )
    except (openslide.OpenSlideError, OSError):
        return None


def read_properties(handle: openslide.OpenSlide) -> dict[str, str]:
    """Return the properties of an open slide, but those whose name is not UTF-8.

    OpenSlide lists them, as for an Aperio field with an umlaut in Latin-1, and finds none of that
    name.
    """
    return {
        name: text
        for name in handle.properties
        if (text := handle.properties.get(name)) is not None
    }


def illumination_in(properties: Mapping[str, str]) -> Iterator[str]:
    """Yield what OpenSlide's properties say of the illumination of a slide, and of fluorophores."""
    for name, text in properties.items():
        if _ILLUMINATION.search(name):
            yield text.replace("_", " ")


def mpp_in_properties(properties: Mapping[str, str]) -> Iterator[StatedMpp]:
    """Yield all that OpenSlide's properties state of the resolution, µm per px, best first.

    OpenSlide's own value comes first; then the vendor's fields, for values that it leaves out.
    """
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
    names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    found = [properties[name] for name in names if name in properties]
    if found:
        x, y = parse_number(found[0]), parse_number(found[-1])
        kind: MppKind = "tags" if vendor == _GENERIC else "stated"
        yield StatedMpp(x=x, y=y, field=f"openslide.mpp-x of {vendor}", kind=kind)
    yield from _dicom_spacing(properties)
    yield from _dicom_volume(properties)
    own = "openslide."
    yield from mpp_in_text(
        "\n".join(
            f"{name} = {text}" for name, text in properties.items() if not name.startswith(own)
        )
    )
    power = parse_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER, ""))
    if not math.isnan(power):
        yield from mpp_in_text(f"objective-power = {power:g}")


def _dicom_spacing(properties: Mapping[str, str]) -> Iterator[StatedMpp]:
    """PixelSpacing, row then column, mm, wherever it is."""
    rows = [key for key in properties if key.endswith("PixelSpacing[0]")]
    for row in rows:
        column = f"{row.removesuffix('[0]')}[1]"
        y, x = (1000 * parse_number(properties.get(key, "")) for key in (row, column))
        yield StatedMpp(x=x, y=y, field="PixelSpacing")


def _dicom_volume(properties: Mapping[str, str]) -> Iterator[StatedMpp]:
    """Extent of the imaged volume, mm, over the size of the matrix, px."""
    axes = (("Width", "Columns"), ("Height", "Rows"))
    extents = [
        parse_number(properties.get(f"dicom.ImagedVolume{extent}", "")) for extent, _ in axes
    ]
    sizes = [parse_number(properties.get(f"dicom.TotalPixelMatrix{side}", "")) for _, side in axes]
    if not any(map(math.isnan, extents)) and all(size > 0 for size in sizes):
        x, y = (1000 * extent / size for extent, size in zip(extents, sizes, strict=True))
        yield StatedMpp(x=x, y=y, field="ImagedVolumeWidth and Height")
