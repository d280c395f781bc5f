"""What the XML of a Leica SCN states of its scanned areas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tifffile

from features.slides.base import StatedMpp

__all__ = ["LEICA", "ScnArea", "scn_areas", "scn_mpp"]

LEICA = "leica"
"""OpenSlide's name of the vendor."""
_ELEMENT = re.compile(r"<(collection|image|view|dimension)\b([^>]*)>")
_NUMBER = re.compile(r'\b(\w+)="(-?\d+)"')


@dataclass(frozen=True, kw_only=True)
class ScnArea:
    """A scanned area: width and corner on the slide, nm.

    ``levels`` are the width, px, and the TIFF directory of each, of the first focal plane.
    """

    slide_width_nm: int
    width_nm: int
    left_nm: int
    top_nm: int
    levels: tuple[tuple[int, int], ...]


def scn_areas(file: tifffile.TiffFile) -> Iterator[ScnArea]:
    """Yield the scanned areas of an SCN, without its macro, which is as wide as the slide.

    KeyError for an XML of another form.
    """
    collection: dict[str, int] = {}
    levels: list[tuple[int, int]] = []
    for element, text in _ELEMENT.findall(file.pages.first.description):
        numbers = {name: int(number) for name, number in _NUMBER.findall(text)}
        if element == "collection":
            collection = numbers
        elif element == "image":
            levels = []
        elif element == "dimension" and not numbers.get("z", 0):
            levels.append((numbers["sizeX"], numbers["ifd"]))
        elif element == "view" and numbers["sizeX"] < collection["sizeX"]:
            yield ScnArea(
                slide_width_nm=collection["sizeX"], width_nm=numbers["sizeX"],
                left_nm=numbers["offsetX"], top_nm=numbers["offsetY"], levels=tuple(levels),
            )  # fmt: skip


def scn_mpp(path: Path) -> Iterator[StatedMpp]:
    """Yield the resolution of the finest area of an SCN: its width in nm over that in px."""
    with suppress(Exception), tifffile.TiffFile(path) as file:  # OpenSlide judges what is wrong
        um = min(
            area.width_nm / 1000 / width_px
            for area in scn_areas(file)
            for width_px, _ in area.levels
        )
        yield StatedMpp(x=um, y=um, field="sizeX of Leica's views")
