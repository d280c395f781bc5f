"""OpenSlide formats: SVS, NDPI, MRXS, SCN, BIF, DICOM and others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import openslide

from features.errors import SlideError, TileError, UnsupportedFormatError
from features.slides.backends.base import GOLDEN_RATIO, MAX_SIDE_PX, RegionReader
from features.slides.backends.fluorescence import check_names
from features.slides.backends.level_content import AREA_PX, shows_something_else
from features.slides.backends.mirax_streams import mirax_streams
from features.slides.backends.openslide_properties import (
    illumination_in,
    mpp_in_properties,
    read_properties,
)
from features.slides.backends.scenes import require_single_scene
from features.slides.backends.scn import LEICA, scn_mpp
from features.slides.backends.tiff_scenes import slide_size_px
from features.slides.backends.tiff_streams import JoinedStreams, TiffStreams, tiff_streams
from features.slides.backends.tiff_tags import largest_byte_count
from features.slides.backends.vms_streams import vms_streams
from features.slides.base import Level, RgbArray, StatedMpp
from features.slides.pixels import to_rgb
from features.slides.resampling import AreaAccumulator, overview_level, thumbnail_accumulator
from features.slides.resolution import choose_mpp
from features.slides.zeroed import ZEROED, hole_warning

__all__ = ["OpenSlideSlide"]

_MAX_TILE_PX = 1 << 26
_SQUARE_PX = 2048
"""Side of the squares in which a level is read: whole tiles, so that each is decoded once."""
_N_COMPARED = 16
"""Areas in which a level is compared with the next coarser one."""
_COMPARED_PX = 256
"""Their side, px of the finer level."""
_N_TRIED = 3
"""Places of a level that are tried when a slide is opened."""
_GUIDE_CELLS = 32
_MAX_GUIDE_PX = 1 << 21
"""Largest level that is read whole; these cells of the coarsest, to a side, show where there is
structure."""
_LEAST_SQUARE_PX = 256
"""Side down to which what cannot be read is narrowed down."""
_CORRECT_COLOURS = (
    "python -c \"import tifffile; f = tifffile.TiffFile('COPY', mode='r+'); [page.tags[262]"
    ".overwrite({value}) for page in f.pages if page.is_tiled and page.compression == 7]; f.close()"
    '"'
)


class CompressedStreams(Protocol):
    """Compressed pixels of a level."""

    def is_zeroed(self, x_px: int, y_px: int, width_px: int, height_px: int) -> bool:
        """Return whether zeros lie in the stream of any part of a region, px of the level."""


class OpenSlideSlide(RegionReader):
    """A slide read by OpenSlide, as pixels of shape (height, width, 3), uint8.

    A handle keeps its first error for ever, so the slide is reopened after one. Raises SlideError
    if OpenSlide cannot open the file, or if it declares more pixels or bytes than can be true.
    ``more_mpp`` are places of the resolution, µm per px, that OpenSlide does not know.
    """

    reader = "openslide"
    streams: Mapping[tuple[int, int], CompressedStreams]
    """Compressed pixels of levels, by width and height in px, whose decoder notices no zeros."""

    def __init__(
        self, path: Path, scene: int | None = None, *, more_mpp: Iterable[StatedMpp] = ()
    ) -> None:
        require_single_scene(scene, where=path)
        self.path = path
        self._lock = Lock()
        self._handle = self._open()
        try:
            self._read_header(more_mpp)
        except SlideError:
            self.close()
            raise

    def _read_header(self, more_mpp: Iterable[StatedMpp]) -> None:
        """Read what the slide states of itself; an error for what OpenSlide would read wrongly."""
        properties = read_properties(self._handle)
        check_names(illumination_in(properties), where=self.path)
        self.vendor: str = properties.get(openslide.PROPERTY_NAME_VENDOR, "")
        self.levels = tuple(
            Level(width_px=width, height_px=height, downsample=downsample)
            for (width, height), downsample in zip(
                self._handle.level_dimensions, self._handle.level_downsamples, strict=True
            )
        )
        self.streams = (
            mirax_streams(self.path, properties, self._handle.level_dimensions)
            if self.vendor == "mirax"
            else tiff_streams(self.path, self.vendor, self._handle.level_dimensions)
            or vms_streams(self.path, properties)
        )
        self._numbers: tuple[int, ...] = tuple(range(len(self.levels)))
        self._small_levels: dict[int, RgbArray | None] = {}
        self._check_sizes()
        self._check_byte_counts()
        self._check_picture()
        self.associated_images = tuple(
            f"{name}, {width:,} × {height:,} px"
            for name, (width, height) in self._associated_sizes()
        )
        if self.vendor == LEICA:
            more_mpp = scn_mpp(self.path)
        self.stated_mpp, self.warnings = choose_mpp([*mpp_in_properties(properties), *more_mpp])
        parts = self.path.with_suffix("").glob("*.dat") if self.vendor == "mirax" else ()
        self.warnings += hole_warning(self.path, *sorted(parts))
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        red, green, blue = bytes.fromhex(colour)[:3]
        self.background_rgb = (red, green, blue)
        self._check_pixels()
        self._check_colours()

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

    def set_levels_aside(self) -> None:
        """Leave out coarser levels that show something else than the finer one, with a warning."""
        whole, kept = self.levels, [0]
        places = self._compared_places() if len(whole) > 1 else []
        for number in range(1, len(whole)):
            self.levels, self._numbers = (whole[kept[-1]], whole[number]), (kept[-1], number)
            if self._last_shows_something_else(places):
                size = f"{whole[number].width_px:,} × {whole[number].height_px:,} px"
                text = f"level of {size} is set aside: it does not show what the finer level shows"
                self.warnings += (text,)
            else:
                kept.append(number)
        self.levels, self._numbers = tuple(whole[number] for number in kept), tuple(kept)
        self._small_levels.clear()

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
            sides = (size.width_px, size.height_px)
            is_absurd = min(sides) < 1 or max(sides) > MAX_SIDE_PX
            if is_absurd or tile_width * tile_height > _MAX_TILE_PX:
                raise SlideError(
                    self.path,
                    actual=f"{size.width_px} × {size.height_px} px in tiles of "
                    f"{tile_width} × {tile_height} px",
                    expected=f"1 to {MAX_SIDE_PX:,} px per side",
                )

    def _compared_places(self) -> list[tuple[float, float]]:
        """Places of a level that are compared, shares of its width and height.

        Half of them are where the coarsest level has most structure, the others are spread evenly.
        """
        spread = [
            (number * GOLDEN_RATIO % 1.0, (number + 0.5) / _N_COMPARED)
            for number in range(_N_COMPARED)
        ]
        level, size = len(self.levels) - 1, self.levels[-1]
        pixels = self._small_level(level)
        if pixels is None:
            return spread
        n_cells = min(_GUIDE_CELLS, size.width_px, size.height_px)
        rows = [np.array_split(row, n_cells, axis=1) for row in np.array_split(pixels, n_cells)]
        structure = np.array([[cell.std() for cell in row] for row in rows])
        order = np.argsort(structure, axis=None)[::-1][: structure.size // 4 + 1]
        chosen = order[:: -(-len(order) // (_N_COMPARED // 2))].tolist()
        return [
            *spread[::2],
            *((index % n_cells / n_cells, index // n_cells / n_cells) for index in chosen),
        ]

    def _last_shows_something_else(self, places: Sequence[tuple[float, float]]) -> bool:
        """Whether the second of two levels differs in its colours from the first."""
        fine, coarse = self.levels
        scale_x, scale_y = fine.width_px / coarse.width_px, fine.height_px / coarse.height_px
        side_px = max(AREA_PX, int(_COMPARED_PX / max(scale_x, scale_y)))
        if side_px * max(scale_x, scale_y) > _SQUARE_PX:
            return False
        areas = []
        for across, down in places:
            left, top = (
                min(int(share * side), max(0, side - side_px))
                for share, side in ((across, coarse.width_px), (down, coarse.height_px))
            )
            right, bottom = left + side_px, top + side_px
            areas.append((left, top, min(right, coarse.width_px), min(bottom, coarse.height_px)))
        return shows_something_else(
            areas, scale_xy=(scale_x, scale_y), coarse_cells=partial(self._mean_cells, 1),
            fine_cells=partial(self._mean_cells, 0),
        )  # fmt: skip

    def _mean_cells(
        self, level: int, rows: npt.NDArray[np.float64], columns: npt.NDArray[np.float64]
    ) -> RgbArray:
        """Mean colours of cells of a level, shape (rows, columns, 3), uint8; edges in px."""
        x0, y0, x1, y1 = (int(value) for value in (columns[0], rows[0], columns[-1], rows[-1]))
        means = AreaAccumulator(rows=rows, columns=columns)
        small = self._small_level(level)
        if small is None:
            pixels = self._read_region(level, x0, y0, x1 - x0, y1 - y0)
        else:
            pixels = small[y0:y1, x0:x1]
        means.add(pixels, x_px=x0, y_px=y0)
        return means.mean_image(fill_rgb=self.background_rgb)

    def _small_level(self, level: int) -> RgbArray | None:
        """A whole level that is read as fast as two areas of it; None for others."""
        size, number = self.levels[level], self._numbers[level]
        if number not in self._small_levels:
            pixels = None
            if size.width_px * size.height_px <= _MAX_GUIDE_PX:
                with suppress(TileError):  # then its areas are read, of which some can be
                    pixels = self._read_region(level, 0, 0, size.width_px, size.height_px)
            self._small_levels[number] = pixels
        return self._small_levels[number]

    def _check_byte_counts(self) -> None:
        """Raise an error for TIFF tiles longer than the file, which OpenSlide would allocate."""
        n_bytes = self.path.stat().st_size
        if (largest := largest_byte_count(self.path)) > n_bytes:
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
            raise SlideError(
                self.path,
                actual=f"OpenSlide reads the first picture only, {first[0]:,} × {first[1]:,} px",
                expected=f"the largest, {expected[0]:,} × {expected[1]:,} px",
            )

    def _check_pixels(self) -> None:
        """Raise an error if no pixels can be read at any of some places of any level."""
        errors = []
        for level, size in reversed(list(enumerate(self.levels))):
            for place in range(_N_TRIED):
                x_px, y_px = (
                    (place + 1) * side // (_N_TRIED + 1) for side in (size.width_px, size.height_px)
                )
                try:
                    self._read_region(level, x_px, y_px, 1, 1)
                except TileError as error:
                    errors.append(error)
                else:
                    return
        raise SlideError(
            self.path, actual=f"none of {len(errors)} places can be read, first: "
            f"{errors[0].actual}", expected="pixels", hint="Copy it again.",
        ) from errors[0]  # fmt: skip

    def _check_colours(self) -> None:
        """Raise an error for JPEG tiles of a TIFF in other colours than their tag states."""
        size = self.levels[0]
        streams = self.streams.get((size.width_px, size.height_px))
        taken = ""
        with suppress(Exception):  # a damaged tile is reported where it is read
            if isinstance(streams, TiffStreams | JoinedStreams):
                taken = streams.mistaken_for()
        if taken:
            stored, value = ("RGB", 2) if taken == "YCbCr" else ("YCbCr", 6)
            raise UnsupportedFormatError(
                self.path, actual=f"JPEG tiles in {stored}, which OpenSlide takes for {taken}, as "
                "their PhotometricInterpretation states", expected=stored,
                hint=f"Correct the tag in a copy: {_CORRECT_COLOURS.format(value=value)}",
            )  # fmt: skip

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
            image = handle.read_region(corner, self._numbers[level], (width, height))
        except openslide.OpenSlideError:
            with self._lock:
                if self._handle is handle:  # another thread may have reopened it already
                    self._handle = self._open()
            try:
                image = self._handle.read_region(corner, self._numbers[level], (width, height))
            except openslide.OpenSlideError as error:
                raise TileError(
                    self.path,
                    actual=f"{width} × {height} px of level {level} at {corner} px0 cannot be read "
                    f"({error})",
                    expected="pixels",
                    hint="Copy it again.",
                ) from error
        result = to_rgb(np.asarray(image), background_rgb=self.background_rgb)
        streams = self.streams.get((self.levels[level].width_px, self.levels[level].height_px))
        is_zeroed = False
        if streams is not None:
            with suppress(Exception):  # what OpenSlide has read it judges itself
                is_zeroed = streams.is_zeroed(x_px, y_px, width, height)
        if is_zeroed and np.ptp(result, axis=(0, 1)).any():
            raise TileError(
                self.path, actual=f"{width} × {height} px of level {level} at {corner} px0: "
                f"{ZEROED}", expected="pixels", hint="Copy it again.",
            )  # fmt: skip
        return result
