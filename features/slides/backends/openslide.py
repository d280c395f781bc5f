"""OpenSlide formats: SVS, NDPI, MRXS, SCN, BIF, DICOM and others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import openslide

from features.errors import SlideError, TileError
from features.slides.backends.base import MAX_SIDE_PX, RegionReader
from features.slides.backends.openslide_properties import mpp_in_properties, read_properties
from features.slides.backends.scenes import require_single_scene
from features.slides.backends.tiff_scenes import slide_size_px
from features.slides.backends.tiff_tags import largest_byte_count
from features.slides.base import Level, RgbArray, StatedMpp
from features.slides.pixels import to_rgb
from features.slides.resampling import overview_level, thumbnail_accumulator
from features.slides.resolution import choose_mpp

__all__ = ["OpenSlideSlide"]

_MAX_TILE_PX = 1 << 26
_SQUARE_PX = 2048
"""Side of the squares in which a level is read: whole tiles, so that each is decoded once."""
_LEAST_SQUARE_PX = 256
"""Side down to which what cannot be read is narrowed down."""


class OpenSlideSlide(RegionReader):
    """A slide read by OpenSlide, as pixels of shape (height, width, 3), uint8.

    A handle keeps its first error for ever, so the slide is reopened after one. Raises SlideError
    if OpenSlide cannot open the file, or if it declares more pixels or bytes than can be true.
    ``more_mpp`` are places of the resolution, µm per px, that OpenSlide does not know.
    """

    reader = "openslide"

    def __init__(
        self, path: Path, scene: int | None = None, *, more_mpp: Iterable[StatedMpp] = ()
    ) -> None:
        require_single_scene(scene, where=path)
        self.path = path
        self._lock = Lock()
        self._handle = self._open()
        properties = read_properties(self._handle)
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self.levels = tuple(
            Level(width_px=width, height_px=height, downsample=downsample)
            for (width, height), downsample in zip(
                self._handle.level_dimensions, self._handle.level_downsamples, strict=True
            )
        )
        self._check_sizes()
        self._check_byte_counts()
        self._check_picture()
        self.associated_images = tuple(
            f"{name}, {width:,} × {height:,} px"
            for name, (width, height) in self._associated_sizes()
        )
        self.stated_mpp, self.warnings = choose_mpp([*mpp_in_properties(properties), *more_mpp])
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        red, green, blue = bytes.fromhex(colour)[:3]
        self.background_rgb = (red, green, blue)

    def overview(self, *, downsample: int) -> RgbArray:
        """Read the whole slide downsampled, shape (height, width, 3) in px, uint8.

        What cannot be read has the background colour, and is listed in ``unreadable_px0``.
        """
        level = overview_level(self.levels, downsample)
        size, factor = self.levels[level], self.levels[level].downsample
        means = thumbnail_accumulator(self.levels, level, downsample)
        errors: list[TileError] = []
        lost: list[tuple[int, int, int, int]] = []
        is_any_read = False
        whole = (0, 0, size.width_px, size.height_px)
        for box, pixels in self._read_squares(level, whole, side_px=_SQUARE_PX):
            if isinstance(pixels, TileError):
                errors.append(pixels)
                left, top, right, bottom = (
                    round(edge * factor)
                    for edge in (box[0], box[1], box[0] + box[2], box[1] + box[3])
                )
                lost.append((left, top, right - left, bottom - top))
            else:
                is_any_read = True
                means.add(pixels, x_px=box[0], y_px=box[1])
        if not is_any_read:
            raise SlideError(
                self.path, actual=f"none of level {level} can be read, first: {errors[0].actual}",
                expected="pixels", hint="Copy it again.",
            ) from errors[0]  # fmt: skip
        self.unreadable_px0 = tuple(lost)
        return means.mean_image(fill_rgb=self.background_rgb)

    def _read_squares(
        self, level: int, box: tuple[int, int, int, int], *, side_px: int
    ) -> Iterator[tuple[tuple[int, int, int, int], RgbArray | TileError]]:
        """Left, top, width, height, px, and pixels of squares; where one fails, of its quarters."""
        left, top, width, height = box
        for y_px in range(top, top + height, side_px):
            for x_px in range(left, left + width, side_px):
                part = (
                    x_px, y_px, min(side_px, left + width - x_px), min(side_px, top + height - y_px)
                )  # fmt: skip
                try:
                    yield part, self._read_region(level, *part)
                except TileError as error:
                    if side_px > _LEAST_SQUARE_PX:
                        yield from self._read_squares(level, part, side_px=side_px // 2)
                    else:
                        yield part, error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._handle.close()

    def _read_inside(self, level: int, x_px: int, y_px: int, *, out: RgbArray) -> None:
        out[:] = self._read_region(level, x_px, y_px, out.shape[1], out.shape[0])

    def _check_sizes(self) -> None:
        """Raise an error for absurd sizes, as OpenSlide ends the process when memory runs out."""
        properties = self._handle.properties
        for index, size in enumerate(self.levels):
            tile_width, tile_height = (
                int(properties.get(f"openslide.level[{index}].tile-{side}", 0))
                for side in ("width", "height")
            )
            too_large = max(size.width_px, size.height_px) > MAX_SIDE_PX
            if too_large or tile_width * tile_height > _MAX_TILE_PX:
                self._handle.close()
                raise SlideError(
                    self.path,
                    actual=f"{size.width_px} × {size.height_px} px in tiles of "
                    f"{tile_width} × {tile_height} px",
                    expected=f"at most {MAX_SIDE_PX:,} px per side",
                )

    def _check_byte_counts(self) -> None:
        """Raise an error for TIFF tiles longer than the file, which OpenSlide would allocate."""
        n_bytes = self.path.stat().st_size
        if (largest := largest_byte_count(self.path)) > n_bytes:
            self._handle.close()
            raise SlideError(
                self.path,
                actual=f"a TIFF tile of {largest:,} bytes",
                expected=f"at most {n_bytes:,}, as many as the file has",
                hint="Copy it again.",
            )

    def _check_picture(self) -> None:
        """Raise an error where OpenSlide takes the first page of a TIFF and it is not the slide."""
        first = (self.levels[0].width_px, self.levels[0].height_px)
        expected = slide_size_px(self.path) if self.vendor == "generic-tiff" else None
        if expected is not None and expected != first:
            self._handle.close()
            raise SlideError(
                self.path,
                actual=f"OpenSlide reads the first picture only, {first[0]:,} × {first[1]:,} px",
                expected=f"the largest, {expected[0]:,} × {expected[1]:,} px",
            )

    def _associated_sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name, and width and height in px, of each associated image, from its properties."""
        properties = self._handle.properties
        for name in self._handle.associated_images:
            sizes = [properties.get(f"openslide.associated.{name}.{side}", "0")
                     for side in ("width", "height")]  # fmt: skip
            yield name, (int(sizes[0]), int(sizes[1]))

    def _open(self) -> openslide.OpenSlide:
        try:
            return openslide.OpenSlide(self.path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                self.path, actual=f"OpenSlide cannot open it ({error})", expected="a slide"
            ) from error

    def _read_region(self, level: int, x_px: int, y_px: int, width: int, height: int) -> RgbArray:
        """Read a region, shape (height, width, 3) in px; retry an error on a fresh handle."""
        downsample = self.levels[level].downsample
        corner = (round(x_px * downsample), round(y_px * downsample))
        handle = self._handle
        try:
            image = handle.read_region(corner, level, (width, height))
        except openslide.OpenSlideError:
            with self._lock:
                if self._handle is handle:  # another thread may have reopened it already
                    self._handle = self._open()
            try:
                image = self._handle.read_region(corner, level, (width, height))
            except openslide.OpenSlideError as error:
                raise TileError(
                    self.path,
                    actual=f"{width} × {height} px at {corner} px0 of level {level} cannot be "
                    f"read ({error})",
                    expected="pixels",
                ) from error
        return to_rgb(np.asarray(image), background_rgb=self.background_rgb)
