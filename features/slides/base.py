"""What every reader offers: the one small door to a slide's pixels."""

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
    """Width in this level's own pixels."""
    height_px: int
    """Height in this level's own pixels."""
    downsample: float
    """Level-0 pixels per pixel of this level; 1.0 for level 0."""


class Slide(Protocol):
    """An open slide.

    Reading is safe from several threads. Pixels are RGB with transparency flattened on the
    slide's background colour, and the same whichever reader serves.
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
        """µm per level-0 pixel along x and y as the file says, plausible or not; None if silent."""
        ...

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Colour behind transparent pixels and outside the slide."""
        ...

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Pixels of a rectangle of one level.

        Parameters
        ----------
        level
            Index into ``levels``.
        x_px, y_px
            Upper left corner in this level's own pixels; may lie outside the slide.
        width_px, height_px
            Size in this level's own pixels.

        Returns
        -------
        RgbArray
            Shape (height_px, width_px, 3); outside the slide it has the background colour.

        Raises
        ------
        TileError
            If the region cannot be decoded, even on a fresh handle.
        """
        ...

    def overview(self, *, downsample: int) -> RgbArray:
        """The whole slide, small, without ever holding or needlessly decoding a whole large level.

        Parameters
        ----------
        downsample
            Level-0 pixels per pixel of the result, at least 1.

        Returns
        -------
        RgbArray
            Shape (ceil(height_px0 / downsample), ceil(width_px0 / downsample), 3); pixel (i, j) is
            the mean colour of the level-0 square from (j, i) * downsample on. Areas that the
            reader knows to be empty glass without decoding them may be filled with the glass's
            colour.

        Raises
        ------
        SlideError
            If nothing of it can be read.
        """
        ...

    def close(self) -> None:
        """Give files and memory back; harmless when called twice."""
        ...
