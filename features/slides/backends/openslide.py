"""Every format that OpenSlide knows: SVS, NDPI, MRXS, SCN, BIF, DICOM and others."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import openslide
import tifffile
from PIL import Image

from features.errors import SlideError, TileError
from features.slides.base import Level, RgbArray
from features.slides.pixels import clip_region, filled_image, to_rgb
from features.slides.resampling import overview_level, thumbnail_accumulator

__all__ = ["OpenSlideSlide"]

_LARGEST_SIDE_PX = 4_000_000
_LARGEST_TILE_PX = 1 << 26
_MOST_DIRECTORIES = 64
_NDPI_TAG = 65420
_PIECE_PX = 2048
"""Side of the squares in which a level is read: whole tiles, so that each is decoded once."""


class OpenSlideSlide:
    """A slide read by OpenSlide; see :class:`features.slides.base.Slide`.

    A handle keeps its first error for ever, so after one the slide is opened anew.

    Raises
    ------
    SlideError
        If OpenSlide cannot open the file.
    """

    reader = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._handle = self._open()
        properties = self._handle.properties
        self.levels = tuple(
            Level(width_px=width, height_px=height, downsample=downsample)
            for (width, height), downsample in zip(
                self._handle.level_dimensions, self._handle.level_downsamples, strict=True
            )
        )
        self._check_sizes()
        self._check_byte_counts()
        self.mpp_xy = None
        with suppress(KeyError, ValueError):
            self.mpp_xy = (
                float(properties[openslide.PROPERTY_NAME_MPP_X]),
                float(properties[openslide.PROPERTY_NAME_MPP_Y]),
            )
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        red, green, blue = bytes.fromhex(colour)[:3]
        self.background_rgb = (red, green, blue)

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Pixels of a rectangle; see the protocol."""
        size = self.levels[level]
        picture = filled_image(height_px, width_px, self.background_rgb)
        rows, columns, left, top, width, height = clip_region(
            x_px, y_px, width_px, height_px,
            level_width_px=size.width_px, level_height_px=size.height_px,
        )  # fmt: skip
        if width and height:
            picture[rows, columns] = self._read_region(level, left, top, width, height)
        return picture

    def overview(self, *, downsample: int) -> RgbArray:
        """The whole slide, small; see the protocol."""
        level = overview_level(self.levels, downsample)
        size = self.levels[level]
        means = thumbnail_accumulator(self.levels, level, downsample)
        for y_px in range(0, size.height_px, _PIECE_PX):
            height = min(_PIECE_PX, size.height_px - y_px)
            for x_px in range(0, size.width_px, _PIECE_PX):
                width = min(_PIECE_PX, size.width_px - x_px)
                pixels = self._read_region(level, x_px, y_px, width, height)
                means.add(pixels, x_px=x_px, y_px=y_px)
        return means.mean_image(fill_rgb=self.background_rgb)

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._handle.close()

    def _check_sizes(self) -> None:
        """Refuse sizes that only damage can say: OpenSlide ends the process when memory fails."""
        properties = self._handle.properties
        for index, size in enumerate(self.levels):
            tile_width, tile_height = (
                int(properties.get(f"openslide.level[{index}].tile-{side}", 0))
                for side in ("width", "height")
            )
            too_large = max(size.width_px, size.height_px) > _LARGEST_SIDE_PX
            if too_large or tile_width * tile_height > _LARGEST_TILE_PX:
                self._handle.close()
                raise SlideError(
                    self.path,
                    actual=f"{size.width_px} × {size.height_px} px in tiles of "
                    f"{tile_width} × {tile_height} px",
                    expected=f"at most {_LARGEST_SIDE_PX:,} px a side",
                )

    def _check_byte_counts(self) -> None:
        """Refuse TIFF tiles longer than the file, for which OpenSlide would make room."""
        n_bytes = self.path.stat().st_size
        if (largest := _largest_byte_count(self.path)) > n_bytes:
            self._handle.close()
            raise SlideError(
                self.path,
                actual=f"a TIFF tile of {largest:,} bytes",
                expected=f"at most {n_bytes:,}, as many as the file has",
                hint="Copy it again.",
            )

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                self.path, actual=f"OpenSlide cannot open it ({error})", expected="a slide"
            ) from error

    def _read_region(self, level: int, x_px: int, y_px: int, width: int, height: int) -> RgbArray:
        downsample = self.levels[level].downsample
        corner = (round(x_px * downsample), round(y_px * downsample))
        handle = self._handle
        try:
            image = handle.read_region(corner, level, (width, height))
        except openslide.OpenSlideError:
            image = self._retry_region(handle, corner, level, (width, height))
        return to_rgb(np.asarray(image), background_rgb=self.background_rgb)

    def _retry_region(
        self,
        broken: openslide.OpenSlide,
        corner: tuple[int, int],
        level: int,
        size: tuple[int, int],
    ) -> Image.Image:
        with self._lock:
            if self._handle is broken:  # another thread may have opened it anew already
                self._handle = self._open()
        try:
            return self._handle.read_region(corner, level, size)
        except openslide.OpenSlideError as error:
            raise TileError(
                self.path,
                actual=f"{size[0]} × {size[1]} px at {corner} px0 of level {level} cannot be read "
                f"({error})",
                expected="pixels",
            ) from error


def _largest_byte_count(path: Path) -> int:
    """Bytes of the longest TIFF tile or strip; 0 of what is no TIFF, and of NDPI.

    NDPI keeps the upper half of its numbers elsewhere, and OpenSlide does not use its counts.
    """
    try:
        with tifffile.TiffFile(path, is_ndpi=False) as file:
            if _NDPI_TAG in file.pages.first.tags:
                return 0
            pages = islice(file.pages, _MOST_DIRECTORIES)
            return max(max(page.databytecounts, default=0) for page in pages)
    except Exception:  # noqa: BLE001 - tifffile meets damage in many ways; OpenSlide took the file
        return 0
