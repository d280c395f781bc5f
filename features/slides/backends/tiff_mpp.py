"""Resolution of a TIFF: OME-XML, ImageJ, the maker's description, and the resolution tags."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import tifffile

from features.errors import CONTENT_ERRORS
from features.slides.backends.mpp_text import mpp_in_ome, mpp_in_text, read_ome_image
from features.slides.base import StatedMpp
from features.slides.length_units import um_per_unit

__all__ = ["mpp_in_tiff"]

_UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""µm by ResolutionUnit: inch and cm by the standard, mm and µm as some writers extend it."""
_EXTENDED = {4, 5}
_DEFAULTS = {1.0, 72.0, 96.0}
"""Values that writers state for want of a resolution; in mm and µm they would be plausible."""
_INCH = 2
"""Value of ResolutionUnit where the tag is absent, by the standard (TIFF 6.0, 1992)."""
_XMP_TAG = 700
_SIS_TAGS = (33471, 33560)


def mpp_in_tiff(series: tifffile.TiffPageSeries, ome: str | None) -> Iterator[StatedMpp]:
    """Yield all that a TIFF states of the resolution of one of its images, µm per px, best first.

    Only the image's own directory and its own part of the OME-XML count, so that the pixel size of
    a macro image is never that of the slide. A damaged field is passed over.
    """
    page: Any = series.keyframe
    description = _text(page, "ImageDescription")
    if ome:
        pixels, _ = read_ome_image(
            ome, width_px=page.imagewidth, height_px=page.imagelength, name=series.name
        )
        yield from mpp_in_ome(pixels)
    else:
        if description.startswith("ImageJ="):
            yield from _imagej(page, description)
        yield from mpp_in_text(description)
    yield from mpp_in_text(_text(page, _XMP_TAG))
    yield from _olympus(page)
    yield from _resolution_tags(page)


def _imagej(page: Any, description: str) -> Iterator[StatedMpp]:
    """The resolution tags, in the unit that ImageJ names in the description."""
    unit = re.search(r"^unit=(.*)$", description, re.MULTILINE)
    um = um_per_unit(unit[1]) if unit else None
    y_unit = re.search(r"^yunit=(.*)$", description, re.MULTILINE)
    y_um = um_per_unit(y_unit[1]) if y_unit else um
    x, y = _pixels_per_unit(page)
    if um is not None and y_um is not None and x and y:
        yield StatedMpp(x=um / x, y=y_um / y, field="ImageJ's unit and the resolution tags")


def _olympus(page: Any) -> Iterator[StatedMpp]:
    """Pixel sizes in metres of the tags of Olympus' SIS software."""
    for tag in _SIS_TAGS:
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            found = page.tags[tag].value
            x, y = (1e6 * float(found[f"pixelsize{axis}"]) for axis in "xy")
            yield StatedMpp(x=x, y=y, field="pixelsizex of Olympus' tags")


def _resolution_tags(page: Any) -> Iterator[StatedMpp]:
    unit = _value(page, "ResolutionUnit", _INCH)
    um = _UM_PER_RESOLUTION_UNIT.get(unit)
    x, y = _pixels_per_unit(page)
    is_default = unit in _EXTENDED and {x, y} <= _DEFAULTS
    if um is not None and x and y and not is_default:
        yield StatedMpp(x=um / x, y=um / y, field="the resolution tags", kind="tags")


def _pixels_per_unit(page: Any) -> tuple[float, float]:
    """XResolution and YResolution; one stands for both, 0 is none."""
    values = []
    for name in ("XResolution", "YResolution"):
        try:
            # Some writers store a plain number in place of a fraction.
            numerator, denominator = (*_value(page, name, (0, 0)), 1)[:2]
            values.append(numerator / denominator)
        except CONTENT_ERRORS:
            values.append(0.0)
    x, y = (value if math.isfinite(value) else 0.0 for value in values)
    return x or y, y or x


def _text(page: Any, name: str | int) -> str:
    """Text of a tag; other character sets than UTF-8 keep at least what is ASCII."""
    value = _value(page, name, "")
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _value(page: Any, name: str | int, default: Any) -> Any:
    tag = page.tags.get(name)
    return default if tag is None else tag.value
