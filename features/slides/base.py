"""Slide protocol: the interface of every reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Level", "MppKind", "RgbArray", "Scene", "Slide", "StatedMpp"]

RgbArray = npt.NDArray[np.uint8]
"""Pixels of shape (height, width, 3), uint8, sRGB; row 0 is the top."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of a slide, of shape (height_px, width_px, 3).

    ``downsample`` is in level-0 px per px of this level; 1.0 for level 0.
    """

    width_px: int
    height_px: int
    downsample: float


MppKind = Literal["stated", "tags", "derived"]
"""Origin of a resolution: a field for it, tags of printing resolution, or a magnification."""


@dataclass(frozen=True, kw_only=True)
class StatedMpp:
    """Resolution that a file states, plausible or not: µm per level-0 px along x and y.

    ``field`` names the place in the file. Tags (``kind`` "tags") often hold a default of printing,
    such as 72 px per inch; from a magnification ("derived") the resolution follows only roughly.
    """

    x: float
    y: float
    field: str
    kind: MppKind = "stated"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture of a file that may be the slide, such as one of two sections, of a size in px.

    ``number`` counts from 1 in the file's order; ``name`` is empty if the file states none.
    """

    number: int
    name: str
    width_px: int
    height_px: int

    def __str__(self) -> str:
        """Return number, size and name in one line."""
        name = f" {self.name!r}" if self.name else ""
        return f"{self.number}: {self.width_px:,} × {self.height_px:,} px{name}"


class Slide(Protocol):
    """An open slide: pixels of shape (height, width, 3), uint8, sRGB, at several resolutions.

    Reading is thread-safe. Transparency is flattened onto the slide's background colour, and pixels
    do not depend on the reader.
    """

    path: Path
    """The file or folder that was opened."""
    reader: str
    """Short name of the reader: ``tiff``, ``openslide``, ``image`` or ``ome-zarr``."""
    levels: tuple[Level, ...]
    """Shape and downsample of all resolutions, the finest (level 0) first."""
    stated_mpp: StatedMpp | None = None
    """µm per level-0 px and its place in the file, plausible or not; None if it has none."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the file although it can be read, a sentence each; mostly none."""
    scene: int = 1
    """Number of the picture that is read, from 1 in the file's order without companions."""
    other_scenes: tuple[Scene, ...] = ()
    """Other pictures of the file that could be the slide, with their size in px."""
    associated_images: tuple[str, ...] = ()
    """Names and sizes, px, of pictures that were set aside, such as label and macro."""
    unreadable_px0: tuple[tuple[int, int, int, int], ...] = ()
    """Left, top, width and height, level-0 px, of what the last overview could not read."""
    background_rgb: tuple[int, int, int] = (255, 255, 255)
    """Colour behind transparent pixels and outside the slide."""

    @property
    def mpp_xy(self) -> tuple[float, float] | None:
        """µm per level-0 px along x and y from the file, plausible or not; None if it has none."""
        return None if self.stated_mpp is None else (self.stated_mpp.x, self.stated_mpp.y)

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Read a rectangle of one level.

        Parameters
        ----------
        level
            Index into ``levels``.
        x_px, y_px
            Upper left corner in px of this level; may be outside the slide.
        width_px, height_px
            Size in px of this level.

        Returns
        -------
        RgbArray
            Pixels of shape (height_px, width_px, 3), uint8; background colour outside the slide.

        Raises
        ------
        TileError
            If the region cannot be decoded, even on a fresh handle.
        """

    def overview(self, *, downsample: int) -> RgbArray:
        """Read the whole slide downsampled, without holding a whole large level in memory.

        Parameters
        ----------
        downsample
            Level-0 px per px of the result, at least 1.

        Returns
        -------
        RgbArray
            Means of shape (ceil(height_px0 / downsample), ceil(width_px0 / downsample), 3), uint8;
            pixel (i, j) is that of the level-0 square from (j, i) * downsample on. Areas known to
            be empty without decoding may be filled with the colour of the glass.

        Raises
        ------
        SlideError
            If none of it can be read.
        """

    def release_memory(self) -> None:
        """Release what is kept to read pixels again; they can be read as before."""

    def close(self) -> None:
        """Release files and memory; may be called twice."""
