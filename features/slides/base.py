"""Slide protocol: the interface of every reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Level", "RgbArray", "Slide"]

RgbArray = npt.NDArray[np.uint8]
"""Pixels of shape (height, width, 3), uint8, sRGB; row 0 is the top."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution of a slide."""

    width_px: int
    height_px: int
    downsample: float
    """Level-0 pixels per pixel of this level; 1.0 for level 0."""


class Slide(Protocol):
    """An open slide.

    Reading is thread-safe. Pixels are RGB, with transparency flattened onto the slide's background
    colour, and do not depend on the reader.
    """

    @property
    def path(self) -> Path:
        """The file or folder that was opened."""
        ...

    @property
    def reader(self) -> str:
        """Short name of the reader: ``tiff``, ``openslide``, ``image`` or ``ome-zarr``."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """All resolutions, the finest (level 0) first."""
        ...

    @property
    def mpp_xy(self) -> tuple[float, float] | None:
        """µm per level-0 px along x and y from the file, plausible or not; None if it has none."""
        ...

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Colour behind transparent pixels and outside the slide."""
        ...

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
            Shape (height_px, width_px, 3), uint8; the background colour outside the slide.

        Raises
        ------
        TileError
            If the region cannot be decoded, even on a fresh handle.
        """
        ...

    def overview(self, *, downsample: int) -> RgbArray:
        """Read the whole slide downsampled, without holding a whole large level in memory.

        Parameters
        ----------
        downsample
            Level-0 pixels per pixel of the result, at least 1.

        Returns
        -------
        RgbArray
            Shape (ceil(height_px0 / downsample), ceil(width_px0 / downsample), 3), uint8; pixel
            (i, j) is the mean colour of the level-0 square from (j, i) * downsample on. Areas
            known to be empty without decoding may be filled with the colour of the glass.

        Raises
        ------
        SlideError
            If none of it can be read.
        """
        ...

    def close(self) -> None:
        """Release files and memory; may be called twice."""
        ...
