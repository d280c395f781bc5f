"""Tiled and striped TIFF, read directly: each TIFF tile is decoded once, and only where it matters.

OpenSlide decodes on one thread a handle and, for the overview of a one-level slide, everything.
The header of a TIFF says how many bytes each tile takes; empty glass takes next to none, so most
of a slide is known to be empty before a pixel is decoded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile

from features.errors import MultiImageError, SlideError, TileError
from features.slides.base import Level, RgbArray
from features.slides.cache import TileCache
from features.slides.pixels import clip_region, filled_image, to_rgb
from features.slides.resampling import (
    AreaAccumulator,
    cell_edges,
    overview_level,
    thumbnail_accumulator,
)
from features.utils.hardware import CPU_COUNT
from features.utils.image_headers import jpeg_dimensions, png_dimensions, webp_dimensions

__all__ = ["TiffSlide"]

_CACHE_BYTES = 320 << 20
_LARGEST_SEGMENT_PX = 1 << 28
_LARGEST_SIDE_PX = 4_000_000
_MOST_OME_PLANES = 1_000_000
_N_SAMPLED = 96
_LEAST_SHARE_SKIPPED = 0.1
_PLAIN_RANGE = 16
_CENTIMETRE_UM, _INCH_UM = 10_000.0, 25_400.0
_NDPI_TAG = 65420
_COMPANION = re.compile(r"\b(label|macro|map|overview|thumbnail)\b", re.IGNORECASE)
"""How pictures beside the slide are named; in tiny files they may be of the slide's size."""
_UNNAMED, _PREMULTIPLIED, _STRAIGHT = 0, 1, 2
"""What TIFF says of channels after the colours."""
_KINDS = {"MINISWHITE", "MINISBLACK", "RGB", "PALETTE", "YCBCR"}
_CLAIMED_SIZE: dict[int, Callable[[bytes], tuple[int, int] | None]] = {
    **{kind: jpeg_dimensions for kind in tifffile.COMPRESSION if "JP" in kind.name},
    **{kind: webp_dimensions for kind in tifffile.COMPRESSION if "WEBP" in kind.name},
    tifffile.COMPRESSION.PNG: png_dimensions,
}
"""What reads the size that a TIFF tile itself claims, of JPEG and JPEG 2000 by any name."""


@dataclass(frozen=True, eq=False)
class _SegmentTable:
    """Segments of all colours, or of one where colours lie in planes of their own."""

    page: tifffile.TiffPage | tifffile.TiffFrame
    first: int
    """Number of the plane's first segment in its page."""
    offsets: Sequence[int]
    byte_counts: npt.NDArray[np.uint64]
    jpeg_tables: bytes | None


@dataclass(frozen=True, eq=False)
class _TileLayout:
    """Segments (tiles or strips) of one level."""

    page: tifffile.TiffPage
    planes: tuple[_SegmentTable, ...]
    rows: int
    columns: int
    height_px: int
    width_px: int

    @property
    def byte_counts(self) -> npt.NDArray[np.uint64]:
        """Bytes of each segment, in all planes together."""
        counts = [plane.byte_counts for plane in self.planes]
        return np.asarray(np.sum(counts, axis=0, dtype=np.uint64))


class TiffSlide:
    """A TIFF file read without OpenSlide; see :class:`features.slides.base.Slide`.

    Serves tiled and striped TIFF and BigTIFF of 8 or 16 bit, grey, RGB, RGBA, palette and
    JPEG-YCbCr, in every compression that imagecodecs knows, with pyramids in pages or SubIFDs.
    Colours may lie in planes of their own, within a page or as the three channels of an OME-TIFF.

    Raises
    ------
    MultiImageError
        If it holds several pictures of one size.
    SlideError
        If the file is no such TIFF.
    """

    reader = "tiff"
    background_rgb = (255, 255, 255)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache = TileCache(_CACHE_BYTES)
        try:
            # NDPI is refused below; its own rules would follow a circle of directories right here.
            self._file = tifffile.TiffFile(path, is_ndpi=False)
        except Exception as error:  # from struct.error to TiffFileError, as damage will have it
            raise SlideError(path, actual=f"not a TIFF ({error})", expected="TIFF") from error
        try:
            self._check_file()
            series, *others = self._file.series
            self._refuse_several(1 + sum(_same_size_series(other, series) for other in others))
            pages = [level.keyframe for level in series.levels]
            self._grids = [self._grid(level) for level in series.levels]
            self._descriptor = os.open(path, os.O_RDONLY)
        except SlideError:
            self._file.close()
            raise
        except Exception as error:  # tifffile meets a damaged directory in too many ways to list
            self._file.close()
            raise SlideError(
                path, actual=f"a damaged directory ({error})", expected="whole TIFF"
            ) from error
        width, height = pages[0].imagewidth, pages[0].imagelength
        self.levels = tuple(
            Level(
                width_px=page.imagewidth,
                height_px=page.imagelength,
                downsample=(width / page.imagewidth + height / page.imagelength) / 2,
            )
            for page in pages
        )
        try:
            self.mpp_xy = _mpp_of(pages[0], self._file.ome_metadata)
        except Exception:  # noqa: BLE001 - a damaged tag may hold anything
            self.mpp_xy = None

    def read(self, *, level: int, x_px: int, y_px: int, width_px: int, height_px: int) -> RgbArray:
        """Pixels of a rectangle; see the protocol."""
        grid, size = self._grids[level], self.levels[level]
        picture = filled_image(height_px, width_px, self.background_rgb)
        rows, columns, left, top, width, height = clip_region(
            x_px, y_px, width_px, height_px,
            level_width_px=size.width_px, level_height_px=size.height_px,
        )  # fmt: skip
        if not width or not height:
            return picture
        inside = picture[rows, columns]
        for row in range(top // grid.height_px, (top + height - 1) // grid.height_px + 1):
            for column in range(left // grid.width_px, (left + width - 1) // grid.width_px + 1):
                segment = self._segment(level, row * grid.columns + column)
                seg_top, seg_left = row * grid.height_px, column * grid.width_px
                first_y, first_x = max(top, seg_top), max(left, seg_left)
                last_y = min(top + height, seg_top + segment.shape[0])
                last_x = min(left + width, seg_left + segment.shape[1])
                inside[first_y - top : last_y - top, first_x - left : last_x - left] = segment[
                    first_y - seg_top : last_y - seg_top, first_x - seg_left : last_x - seg_left
                ]
        return picture

    def overview(self, *, downsample: int) -> RgbArray:
        """The whole slide, small; see the protocol."""
        level = overview_level(self.levels, downsample)
        grid = self._grids[level]
        means = thumbnail_accumulator(self.levels, level, downsample)
        wanted, glass_rgb = self._nonempty_tiles(level)
        n_failed = 0
        for index, segment in self._decode_many(level, np.flatnonzero(wanted)):
            if segment is None:
                n_failed += 1
                continue
            row, column = divmod(int(index), grid.columns)
            means.add(segment, x_px=column * grid.width_px, y_px=row * grid.height_px)
        if n_failed and n_failed == wanted.sum():
            raise SlideError(self.path, actual=f"none of {n_failed} TIFF tiles can be decoded",
                             expected="pixels", hint="Copy it again.")  # fmt: skip
        return means.mean_image(fill_rgb=glass_rgb)

    def close(self) -> None:
        """Give the file and the cache back."""
        self._cache.clear()
        self._file.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_file(self) -> None:
        """Refuse what tifffile would get wrong or never come back from."""
        page = self._file.pages.first
        if _NDPI_TAG in page.tags or page.is_scn or page.is_bif:
            raise self._unsupported("a vendor's TIFF, whose tiles only OpenSlide places")
        for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", self._file.ome_metadata or ""):
            n_planes = math.prod(int(n) for n in re.findall(r'\bSize[ZCT]="(\d+)"', pixels))
            if n_planes > _MOST_OME_PLANES:
                raise self._unsupported(f"OME-XML that tells of {n_planes} planes")
        self._check_chain(page.offset)

    def _check_chain(self, offset: int) -> None:
        """Refuse directories that lead back to one another: a long circle has no end."""
        kind, file = self._file.tiff, self._file.filehandle
        order: Literal["little", "big"] = "little" if kind.byteorder == "<" else "big"
        seen: set[int] = set()
        while 0 < offset < file.size:
            if offset in seen:
                raise self._unsupported("directories that lead back to one another")
            seen.add(offset)
            file.seek(offset)
            n_tags = int.from_bytes(file.read(kind.tagnosize), order)
            file.seek(min(file.size, offset + kind.tagnosize + n_tags * kind.tagsize))
            offset = int.from_bytes(file.read(kind.offsetsize), order)

    def _grid(self, level: tifffile.TiffPageSeries) -> _TileLayout:
        """Check that we can serve a level, and how it is cut into segments."""
        page: Any = level.keyframe
        self._check_colours(page)
        if len(_colour_pages(level)) == 1:
            self._refuse_several(_n_pictures(level))
        width, height = page.imagewidth, page.imagelength
        if not 0 < width <= _LARGEST_SIDE_PX or not 0 < height <= _LARGEST_SIDE_PX:
            raise self._unsupported(f"{width} × {height} px")
        seg_width = page.tilewidth if page.is_tiled else width
        seg_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        n_samples = seg_width * seg_height * page.samplesperpixel
        if not 0 < n_samples <= 4 * _LARGEST_SEGMENT_PX:
            raise self._unsupported(f"TIFF tiles of {seg_width} × {seg_height} px")
        columns, rows = -(-width // seg_width), -(-height // seg_height)
        return _TileLayout(
            page=page, planes=tuple(self._planes(level, rows * columns)), rows=rows,
            columns=columns, height_px=seg_height, width_px=seg_width,
        )  # fmt: skip

    def _refuse_several(self, n_pictures: int) -> None:
        if n_pictures > 1:
            raise MultiImageError(
                self.path,
                actual=f"{n_pictures} pictures of one size, one behind the other",
                expected="one picture, or three channels of an OME-TIFF: red, green and blue",
                hint="Export the slide in colours, as one picture.",
            )

    def _planes(self, level: tifffile.TiffPageSeries, n_segments: int) -> Iterator[_SegmentTable]:
        page: Any = level.keyframe
        separate = page.samplesperpixel > 1 and page.planarconfig != tifffile.PLANARCONFIG.CONTIG
        n_planes = page.samplesperpixel if separate else 1
        for part in _colour_pages(level):
            offsets, counts = part.dataoffsets, np.array(part.databytecounts, np.uint64)
            n_expected = n_planes * n_segments
            if len(offsets) != n_expected or len(counts) != n_expected:
                raise self._unsupported(f"{len(offsets)} TIFF tiles where {n_expected} should be")
            for first in range(0, n_expected, n_segments):
                yield _SegmentTable(
                    page=part, first=first, offsets=offsets[first : first + n_segments],
                    byte_counts=counts[first : first + n_segments], jpeg_tables=part.jpegtables,
                )  # fmt: skip

    def _check_colours(self, page: Any) -> None:
        """Refuse samples that we cannot turn into RGB."""
        if page.photometric.name not in _KINDS:
            raise self._unsupported(f"colours as {page.photometric.name}")
        if page.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)} or page.imagedepth != 1:
            raise self._unsupported(f"samples of type {page.dtype}")
        if page.bitspersample not in {8, 16}:
            raise self._unsupported(f"samples of {page.bitspersample} bit")
        if page.compression == tifffile.COMPRESSION.APERIO_JP2000_YCBC:
            raise self._unsupported("YCbCr in JPEG 2000")
        if page.photometric.name == "YCBCR" and page.compression.name not in {"JPEG", "OJPEG"}:
            raise self._unsupported(f"YCbCr in {page.compression.name}")
        if page.photometric.name == "YCBCR" and page.planarconfig != tifffile.PLANARCONFIG.CONTIG:
            raise self._unsupported("YCbCr in separate planes")

    def _unsupported(self, found: str) -> SlideError:
        return SlideError(self.path, actual=found, expected="TIFF of 8 or 16 bit")

    def _segment(self, level: int, index: int) -> RgbArray:
        return self._cache.get((level, index), lambda: self._decode(level, index))

    def _decode(self, level: int, index: int) -> RgbArray:
        """One segment, cut at the level's border; retried on a fresh handle before giving up."""
        try:
            return self._decode_once(level, index, self._descriptor)
        except Exception:  # noqa: BLE001 - imagecodecs has an exception type for each codec
            descriptor = self._open_again()
        try:
            return self._decode_once(level, index, descriptor)
        except Exception as error:
            grid = self._grids[level]
            row, column = divmod(index, grid.columns)
            raise TileError(
                self.path,
                actual=f"TIFF tile in row {row}, column {column} of level {level} cannot "
                "be decoded "
                f"({error})",
                expected="pixels",
            ) from error
        finally:
            os.close(descriptor)

    def _open_again(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SlideError(
                self.path, actual=f"cannot be opened again ({error.strerror or error})",
                expected="a file that stays while it is read",
            ) from error  # fmt: skip

    def _decode_once(self, level: int, index: int, descriptor: int) -> RgbArray:
        grid, size = self._grids[level], self.levels[level]
        row, column = divmod(index, grid.columns)
        height = min(grid.height_px, size.height_px - row * grid.height_px)
        width = min(grid.width_px, size.width_px - column * grid.width_px)
        planes = [self._decode_plane(grid, plane, index, descriptor) for plane in grid.planes]
        there = [plane for plane in planes if plane is not None]
        if not there:  # a sparse file leaves empty segments out
            return filled_image(height, width, self.background_rgb)
        whole = [np.zeros_like(there[0]) if plane is None else plane for plane in planes]
        pixels = whole[0] if len(whole) == 1 else np.concatenate(whole, axis=-1)
        colours = _colours(grid.page, pixels)[:height, :width]
        return to_rgb(colours, background_rgb=self.background_rgb)

    def _decode_plane(
        self, grid: _TileLayout, plane: _SegmentTable, index: int, descriptor: int
    ) -> npt.NDArray[Any] | None:
        """Samples of a segment, shape (height, width, samples); None where there are none."""
        n_bytes = int(plane.byte_counts[index])
        if not n_bytes:
            return None
        n_missing = plane.offsets[index] + n_bytes - os.fstat(descriptor).st_size
        if n_missing > 0:
            message = f"it ends {n_missing} bytes past the end of the file"
            raise EOFError(message)
        data = os.pread(descriptor, n_bytes, plane.offsets[index])
        if (size_of := _CLAIMED_SIZE.get(grid.page.compression)) is not None:
            _refuse_huge(size_of(data), most_px=4 * grid.height_px * grid.width_px + (1 << 16))
        decoded, _, _ = plane.page.decode(data, plane.first + index, jpegtables=plane.jpeg_tables)
        return None if decoded is None else np.asarray(decoded[0])

    def _decode_many(
        self, level: int, indices: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, RgbArray | None]]:
        """Segments in order, decoded by all cores, few at a time; None where one is broken."""

        def one(index: int) -> tuple[int, RgbArray | None]:
            try:
                return index, self._segment(level, index)
            except TileError:
                return index, None

        grid = self._grids[level]
        ahead = max(8, (64 << 20) // (grid.height_px * grid.width_px * 3))
        waiting = iter(indices.tolist())
        with ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="overview") as pool:
            while chunk := list(islice(waiting, ahead)):
                yield from pool.map(one, chunk)

    def _nonempty_tiles(self, level: int) -> tuple[npt.NDArray[np.bool_], tuple[int, int, int]]:
        """Which segments may show more than glass, and the colour of the glass.

        Segments are sampled over the whole range of byte counts, smallest first. The threshold is
        the largest count below which every sampled segment is plain glass. Where that spares little
        (noisy glass takes as many bytes as tissue), all are decoded.
        """
        counts = self._grids[level].byte_counts
        everything = np.ones(len(counts), bool)
        order = np.argsort(counts, kind="stable")
        if len(order) <= 2 * _N_SAMPLED:
            return everything, self.background_rgb
        places = np.linspace(0, len(order) - 1, _N_SAMPLED).astype(np.int64)
        glass: list[npt.NDArray[np.float64]] = []
        largest_plain = -1
        for place in places:
            index = int(order[place])
            try:
                colour = _plain_colour(self._segment(level, index))
            except TileError:
                break
            if colour is None or (glass and np.abs(colour - glass[0]).max() > _PLAIN_RANGE):
                break
            glass.append(colour)
            largest_plain = int(counts[index])
        # The last plain sample may stand beside the first with tissue; the one before does not.
        if len(glass) < 2:
            return everything, self.background_rgb
        safe = int(counts[order[places[len(glass) - 2]]])
        wanted = counts > min(safe, largest_plain)
        if (~wanted).mean() < _LEAST_SHARE_SKIPPED:
            return everything, self.background_rgb
        red, green, blue = np.rint(np.median(glass, axis=0)).astype(int).tolist()
        return wanted, (red, green, blue)


def _same_size_series(other: tifffile.TiffPageSeries, series: tifffile.TiffPageSeries) -> bool:
    """Whether another series of the file could be the slide just as well, as far as it tells."""
    page: Any = other.keyframe
    return (
        other.shape == series.shape
        and not (page.is_reduced or page.is_mask)
        and not _COMPANION.search(other.name)
    )


def _n_pictures(level: tifffile.TiffPageSeries) -> int:
    """Pictures that a level holds: 1, or as many as there are channels, planes or moments."""
    sizes = zip(level.axes, level.shape, strict=True)
    return math.prod(size for axis, size in sizes if axis not in "YXS")


def _colour_pages(level: tifffile.TiffPageSeries) -> Sequence[Any]:
    """The pages that make up the picture: one, or red, green and blue of an OME-TIFF."""
    page: Any = level.keyframe
    planes = [plane for plane in level.pages if plane is not None]
    if (
        (level.kind, level.axes, len(planes)) == ("ome", "CYX", 3)
        and page.samplesperpixel == 1
        and page.photometric.name == "MINISBLACK"
    ):
        return planes
    return [page]


def _plain_colour(segment: RgbArray) -> npt.NDArray[np.float64] | None:
    """Mean colour of a segment that is glass all over, shape (3,); None if it shows anything."""
    height, width = segment.shape[:2]
    block = max(1, min(height, width) // 8)
    means = AreaAccumulator(rows=cell_edges(height, block), columns=cell_edges(width, block))
    means.add(segment, x_px=0, y_px=0)
    blocks = means.mean_image(fill_rgb=(0, 0, 0)).reshape(-1, 3).astype(np.float64)
    if np.ptp(blocks, axis=0).max() > _PLAIN_RANGE:
        return None
    return np.asarray(blocks.mean(axis=0))


def _refuse_huge(claimed_px: tuple[int, int] | None, *, most_px: int) -> None:
    """Refuse a stream that claims a huge picture, before the decoder makes room for it."""
    width, height = claimed_px or (0, 0)
    if width * height > most_px:
        message = f"its stream claims {width:,} × {height:,} px"
        raise ValueError(message)


def _colours(page: Any, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Palette and inverted grey as plain colours, and channels after them only if transparency."""
    if page.photometric.name == "PALETTE":
        palette = np.asarray(page.colormap)  # (3, entries), uint16
        if palette.max() > 255:  # some writers forget that entries have 16 bit
            palette = palette >> 8
        colours = np.moveaxis(palette.astype(np.uint8), 0, -1)  # (entries, 3)
        return np.asarray(colours[pixels[..., 0]])
    if page.photometric.name == "MINISWHITE":
        pixels = np.concatenate(
            [np.iinfo(pixels.dtype).max - pixels[..., :1], pixels[..., 1:]], axis=-1
        )
    return _transparency(pixels, page.extrasamples)


def _transparency(pixels: npt.NDArray[Any], extra: Sequence[int]) -> npt.NDArray[Any]:
    """Colours, and behind them alpha where there is one, with colours not multiplied by it."""
    n_colours = pixels.shape[-1] - len(extra)
    if not extra or pixels.shape[-1] == 3 or n_colours not in {1, 3}:
        return pixels
    kind = extra[0]
    if n_colours == 3 and tuple(extra) == (_UNNAMED,):
        kind = _PREMULTIPLIED  # which it mostly is, and libtiff takes it for
    if kind not in {_PREMULTIPLIED, _STRAIGHT}:
        return pixels[..., :n_colours]
    if kind == _STRAIGHT:
        return pixels[..., : n_colours + 1]
    full = np.iinfo(pixels.dtype).max
    alpha = pixels[..., n_colours : n_colours + 1].astype(np.float32)
    white = pixels[..., :n_colours] + (full - alpha)
    return np.minimum(np.rint(white), full).astype(pixels.dtype)


def _mpp_of(page: Any, ome: str | None) -> tuple[float, float] | None:
    """µm per pixel as the file says: OME-XML, Aperio's description, else the resolution tags."""
    if ome:
        found = [re.search(rf'PhysicalSize{axis}="([\d.eE+-]+)"', ome) for axis in "XY"]
        unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', ome)
        if found[0] and found[1] and (unit is None or unit[1] in {"µm", "um", "&#181;m"}):
            return float(found[0][1]), float(found[1][1])
    if match := re.search(r"\bMPP ?= ?([\d.]+)", page.description or ""):
        return float(match[1]), float(match[1])
    unit_um = {2: _INCH_UM, 3: _CENTIMETRE_UM}.get(_tag(page, "ResolutionUnit", 1))
    x_resolution, y_resolution = (_tag(page, f"{axis}Resolution", None) for axis in "XY")
    if unit_um is None or not x_resolution or not y_resolution:
        return None
    if not all(x_resolution) or not all(y_resolution):
        return None
    return (
        unit_um * x_resolution[1] / x_resolution[0],
        unit_um * y_resolution[1] / y_resolution[0],
    )


def _tag(page: Any, name: str, default: Any) -> Any:
    tag = page.tags.get(name)
    return default if tag is None else tag.value
