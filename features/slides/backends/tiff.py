"""Tiled and striped TIFF, read directly: each TIFF tile is decoded once, and only where needed.

OpenSlide decodes on one thread per handle and, for the overview of a one-level slide, everything.
The header of a TIFF has the byte count of each tile; empty glass compresses to few bytes, so most
of a slide is known to be empty before a pixel is decoded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from features.errors import MultiImageError, SlideError, TileError, UnsupportedFormatError
from features.slides.backends.base import MAX_SIDE_PX, BlockGrid, BlockReader
from features.slides.backends.fluorescence import (
    channel_names_in,
    check_names,
    check_ome_channels,
)
from features.slides.backends.mpp_text import read_ome_image
from features.slides.backends.openslide_properties import PHILIPS, read_vendor_slide
from features.slides.backends.sample_bits import resolve_bits
from features.slides.backends.samples import is_ycbcr, misread_reason, rgb_order
from features.slides.backends.tiff_mpp import mpp_in_tiff
from features.slides.backends.tiff_scenes import choose_tiff_scene, is_reduced
from features.slides.backends.tiff_strips import decode_rows, divide_strips, rows_per_part
from features.slides.backends.tiff_tags import (
    ENTROPY_CODED,
    JPEG_2000,
    PLAIN_JPEGS,
    alpha_index,
    channel_pages,
    check_declared_size,
    conversion_hint,
    count_images,
    decodes_as_rgb,
    directory_fault,
    is_ndpi,
    orientation_warning,
    stated_bits,
    states_ycbcr,
    to_colours,
    unsupported_samples,
    ventana_warning,
)
from features.slides.backends.unstored import PLAIN_RANGE, plain_colour
from features.slides.base import RgbArray, StatedMpp
from features.slides.pixels import (
    hides_picture,
    is_cut_jpeg,
    rgb_of_ycbcr,
    to_rgb,
    without_sign,
)
from features.slides.resolution import choose_mpp
from features.slides.zeroed import ZEROED, RawPixels, has_zeroed_data, is_zeroed_jpeg
from features.utils.image_headers import jpeg_precision, jpeg_stores_rgb

__all__ = ["TiffSlide"]

_MAX_SEGMENT_PX = 1 << 28
_MAX_CHANNELS = 64
_TEXTS = {"ImageDescription", "IJMetadata", "PageName"}
"""Tags in which writers name the channel that a page holds."""
_MAX_OME_PLANES = 1_000_000
_N_SAMPLED = 96
_N_BIT_SAMPLES = 8
_PADDING_BYTES = 512
"""Most that follows uncompressed pixels."""
_N_CHECKED, _N_TRIED = 4, 8
"""Segments that are looked at when a slide is opened, and those that are tried for it."""
_MAX_SAMPLED_PX = 1 << 24
_MIN_SHARE_SKIPPED = 0.1


@dataclass(frozen=True, eq=False)
class _SegmentTable:
    """Segments of all channels, or of one of a planar image, from ``first`` of its page on."""

    page: tifffile.TiffPage | tifffile.TiffFrame
    first: int
    offsets: Sequence[int]
    byte_counts: npt.NDArray[np.uint64]
    jpeg_tables: bytes | None
    raw: RawPixels | None


@dataclass(frozen=True, eq=False, kw_only=True)
class _SegmentGrid(BlockGrid):
    """Segments (tiles or strips) of one level."""

    page: tifffile.TiffPage
    planes: tuple[_SegmentTable, ...]
    is_divided: bool = False
    """Whether segments are rows of uncompressed strips."""

    @property
    def byte_counts(self) -> npt.NDArray[np.uint64]:
        """Bytes of each segment, summed over planes, shape (segments,)."""
        counts = [plane.byte_counts for plane in self.planes]
        return np.asarray(np.sum(counts, axis=0, dtype=np.uint64))


class TiffSlide(BlockReader):
    """A TIFF file read without OpenSlide, as pixels of shape (height, width, 3), uint8.

    Serves tiled and striped TIFF and BigTIFF of 8 or 16 bit, grey, RGB, RGBA, palette and
    JPEG-YCbCr, in every compression that imagecodecs knows, with pyramids in pages or SubIFDs.
    Channels may be planar, within a page or as the three channels of an OME-TIFF. Raises
    MultiImageError if the largest of its images are of one size, SceneError if it has no such
    scene, SlideError if it is not such a TIFF.
    """

    reader = "tiff"
    _block_noun = "TIFF tile"
    _channels: Sequence[Mapping[str, str]] = ()
    _ome_pixels: Mapping[str, str] = MappingProxyType({})
    """Attributes of the channels and of the pixels of an OME-TIFF."""
    _has_alpha = True
    _leaves_out_glass = False
    """Whether its scanner stores no tiles of glass."""
    _ycbcr_levels: Collection[int] = ()
    """Those whose decoded samples are luma and chroma; most JPEG and WebP are converted as they are
    decoded."""
    _grids: list[_SegmentGrid]

    def __init__(self, path: Path, scene: int | None = None) -> None:
        super().__init__(path)
        try:
            # NDPI is refused below; with its own rules tifffile would follow a directory loop here.
            self._file = tifffile.TiffFile(path, is_ndpi=False)
        except Exception as error:  # from struct.error to TiffFileError, depending on the damage
            raise SlideError(path, actual=f"not a TIFF ({error})", expected="TIFF") from error
        try:
            self._check_file()
            levels, choice = choose_tiff_scene(self._file, scene=scene, where=path)
            self.scene, self.other_scenes = choice.scene, choice.other_scenes
            self.associated_images = choice.associated_images
            if self._is_cut:
                self._check_cut(levels[0].keyframe)
            self._check_channels(levels[0])
            self._grids = list(self._read_grids(levels))
            self.stated_mpp, notes = choose_mpp(self._read_mpp(levels[0]))
            self.warnings += notes
            self._descriptor = os.open(path, os.O_RDONLY)
            self._n_bytes = os.fstat(self._descriptor).st_size
            self._bits, notes = self._read_bits()
            self.warnings += notes + self._describe_gaps()
            self._check_samples()
            self.warnings += ventana_warning(levels[0].keyframe.description)
            self.warnings += orientation_warning(levels[0].keyframe.tags.valueof(274))
            self.levels = self._make_levels()
        except SlideError:
            self._file.close()
            raise
        except Exception as error:  # tifffile raises errors of many kinds on damaged directories
            self._file.close()
            raise SlideError(
                path, actual=f"a damaged directory ({error})", expected="whole TIFF"
            ) from error

    def close(self) -> None:
        """Close the file and release cached tiles."""
        super().close()
        self._file.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check_file(self) -> None:
        """Raise an error for files that tifffile would misread or never finish reading."""
        page = self._file.pages.first
        if is_ndpi(page) or page.is_scn or page.is_bif:
            raise self._unsupported(
                "a vendor's TIFF, in which only OpenSlide knows where its tiles are"
            )
        for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", self._file.ome_metadata or ""):
            n_planes = math.prod(int(n) for n in re.findall(r'\bSize[ZCT]="(\d+)"', pixels))
            if n_planes > _MAX_OME_PLANES:
                raise self._unsupported(f"OME-XML that declares {n_planes} planes")
        fault = directory_fault(self._file)
        if fault == "loop":
            raise self._unsupported("directories that lead back to one another")
        self._is_cut = fault == "cut"

    def _check_channels(self, level: tifffile.TiffPageSeries) -> None:
        """Raise an error for channels of fluorescence, by the OME-XML or texts of grey pages."""
        page: Any = level.keyframe
        ome = self._file.ome_metadata
        if ome:
            self._ome_pixels, self._channels = read_ome_image(
                ome, width_px=page.imagewidth, height_px=page.imagelength, name=level.name
            )
            check_ome_channels(self._channels, where=self.path)
        elif getattr(page.photometric, "name", "") in {"MINISBLACK", "MINISWHITE"}:
            pages: list[Any] = [each.aspage() for each in level.pages[:_MAX_CHANNELS] if each]
            texts = [str(tag.value) for each in pages for tag in each.tags.values()
                     if tag.name in _TEXTS]  # fmt: skip
            check_names(map(channel_names_in, texts), where=self.path)

    def _check_cut(self, page: Any) -> None:
        """Raise an error for a file without its last pages, unless it begins with the slide."""
        actual = "its list of pages leads past the end of the file, which was cut off"
        if page.index or is_reduced(page):  # OpenSlide would read it without a word
            raise UnsupportedFormatError(
                self.path, actual=f"{actual}: the slide may be among the pages that are missing",
                expected="a whole file", hint="Copy it again.",
            )  # fmt: skip
        self.warnings += (f"{actual}: levels may be missing. Copy it again.",)

    def _read_mpp(self, series: tifffile.TiffPageSeries) -> Iterator[StatedMpp]:
        """What the vendor's reader and the file state; an error if the former sees other levels."""
        vendor = read_vendor_slide(self.path)
        if vendor is not None:
            sizes = tuple((grid.width_px, grid.height_px) for grid in self._grids)
            page: Any = series.keyframe
            if sizes != vendor.level_sizes_px or page.compression.name == "APERIO_JP2000_YCBC":
                raise self._unsupported(
                    f"a slide of {vendor.vendor}, whose levels or colours OpenSlide reads otherwise"
                )
            self._leaves_out_glass = vendor.vendor == PHILIPS
            yield from vendor.stated
        with suppress(Exception):  # a damaged tag may hold anything, and costs the resolution alone
            yield from mpp_in_tiff(series, self._file.ome_metadata)

    def _read_bits(self) -> tuple[int, tuple[str, ...]]:
        """Bits that samples of 16 bit use, and warnings; some segments are decoded for it."""
        grid = self._grids[0]
        page: Any = grid.page
        if page.dtype != np.uint16 or page.photometric.name == "PALETTE":
            return 16, ()
        counts = grid.byte_counts
        n_bytes, offset = grid.planes[0].byte_counts, grid.planes[0].offsets
        first = int(np.argmax(n_bytes > 0))
        stream = os.pread(self._descriptor, min(int(n_bytes[first]), 1 << 16), offset[first])
        stated, field = stated_bits(page, self._ome_pixels, stream)
        largest = 0
        if grid.block_width_px * grid.block_height_px <= _MAX_SAMPLED_PX:
            stored = np.flatnonzero(counts)
            for rank in np.unique(
                np.linspace(0, max(0, len(stored) - 1), _N_BIT_SAMPLES, dtype=int)
            ):
                with suppress(Exception):  # a damaged segment is reported where it is read
                    samples = self._decode_samples(grid, int(stored[rank]), self._descriptor)
                    n_colours = samples.shape[-1] - len(page.extrasamples)
                    largest = max(largest, int(samples[..., : max(1, n_colours)].max()))
        if page.photometric.name == "MINISWHITE":  # glass has small values there
            if stated is None:
                return 16, ()
            largest = max(largest, (1 << stated) - 1)
        return resolve_bits(stated, field=field, largest=largest)

    def _check_samples(self) -> None:
        """Decode some segments: an error if none can be, or if a tag denies what they hold."""
        page: Any = self._grids[0].page
        alpha = alpha_index(page)
        is_coded = page.compression in PLAIN_JPEGS | ENTROPY_CODED
        may_be_ycbcr = any(_may_be_ycbcr(grid.page) for grid in self._grids)
        n_sampled = 1 if is_coded and alpha is None and not may_be_ycbcr else _N_CHECKED
        reason: Exception | None = None
        for level in range(len(self._grids)):
            samples, error = self._sample_segments(level, n_sampled)
            if error is None:
                break
            reason = reason or error
            self.warnings += (f"none of the sampled TIFF tiles of level {level} can be decoded",)
        else:
            # OpenSlide would show whatever its decoder makes of them.
            raise UnsupportedFormatError(
                self.path, actual=f"none of the sampled TIFF tiles can be decoded, first: {reason}",
                expected="pixels as its tags state them", hint="Copy or export the slide again.",
            )  # fmt: skip
        causes = [misread_reason(part) for part in samples]
        cause = next(filter(None, causes), "")
        if causes.count(cause) > len(causes) // 2 and cause:
            raise UnsupportedFormatError(
                self.path, actual=cause, expected="a picture", hint="Copy or export it again."
            )
        if may_be_ycbcr:
            self._ycbcr_levels = set(self._find_ycbcr_levels(samples))
            if self._ycbcr_levels and not states_ycbcr(page):
                self.warnings += ("its tags state RGB, its samples are YCbCr: read as YCbCr",)
        hidden = [] if alpha is None else [hides_picture(p[..., : alpha + 1]) for p in samples]
        if hidden and all(hidden):
            self._has_alpha = False
            self.warnings += ("its alpha channel hides the whole picture: it is not used",)

    def _sample_segments(
        self, level: int, n_sampled: int
    ) -> tuple[list[npt.NDArray[Any]], Exception | None]:
        """Samples of some of the longer segments of a level; the error if none can be decoded.

        There are none, and no error, if it stores none, or they are too large.
        """
        grid = self._grids[level]
        if grid.block_width_px * grid.block_height_px > _MAX_SAMPLED_PX:
            return [], None
        order = np.argsort(grid.byte_counts, kind="stable")
        order = order[np.searchsorted(grid.byte_counts[order], 1) :]
        ranks = np.unique(np.linspace(len(order) // 2, len(order) - 1, _N_TRIED).astype(int))
        samples: list[npt.NDArray[Any]] = []
        first_error = None
        for index in order[ranks[::-1]].tolist() if len(order) else ():
            try:
                part = self._decode_samples(grid, index, self._descriptor)
                to_colours(grid.page, part, bits=self._bits)
                samples.append(part)
            except Exception as error:  # noqa: BLE001 - imagecodecs has an exception for each codec
                first_error = first_error or error
            if len(samples) == n_sampled:
                break
        return samples, None if samples else first_error

    def _find_ycbcr_levels(self, samples: Sequence[npt.NDArray[np.uint8]]) -> Iterator[int]:
        """Yield the levels whose samples, shape (height, width, 3), are YCbCr when decoded.

        A level that does not say is as the finer one, and the finest as most of ``samples`` are.
        """
        n_found = sum(map(is_ycbcr, samples))
        is_stored = 2 * n_found > len(samples) and _may_be_ycbcr(self._grids[0].page)
        for level, grid in enumerate(self._grids):
            if _may_be_ycbcr(grid.page):
                is_rgb = self._stored_as_rgb(grid) if decodes_as_rgb(grid.page) else None
                is_stored = is_stored if is_rgb is None else not is_rgb
                if is_stored:
                    yield level

    def _stored_as_rgb(self, grid: _SegmentGrid) -> bool | None:
        """Whether the JPEG streams of the longest segments are RGB; None if they do not say."""
        longest = np.argsort(grid.byte_counts, kind="stable")[-_N_CHECKED:].tolist()
        said = set[bool | None]()
        for index in longest:
            with suppress(Exception):  # a damaged segment is reported where it is read
                stream = self._read_stream(grid, grid.planes[0], index, self._descriptor)
                said.add(jpeg_stores_rgb(stream, is_tagged_rgb=True))
        return said.pop() if len(said) == 1 else None

    def _describe_gaps(self) -> tuple[str, ...]:
        """Sentences on TIFF tiles that the file does not hold, by level."""
        texts = []
        for level, grid in enumerate(self._grids):
            counts = grid.byte_counts
            is_cut = [
                np.asarray(plane.offsets, np.uint64) + plane.byte_counts > self._n_bytes
                for plane in grid.planes
            ]
            of_all = f"of {len(counts):,} TIFF tiles of level {level}"
            if not self._leaves_out_glass and (n_empty := int(np.count_nonzero(counts == 0))):
                texts.append(f"{n_empty:,} {of_all} have no bytes")
            if n_cut := int(np.count_nonzero(np.any(is_cut, axis=0))):
                texts.append(
                    f"{n_cut:,} {of_all} end past the end of the file, which was cut off. "
                    "Copy it again."
                )
        return tuple(texts)

    def _read_grids(self, levels: Sequence[tifffile.TiffPageSeries]) -> Iterator[_SegmentGrid]:
        """Segments of all levels, without coarser ones that cannot be served."""
        yield self._read_grid(levels[0])
        for level in levels[1:]:
            try:
                yield self._read_grid(level)
            except SlideError as error:
                page: Any = level.keyframe
                size = f"{page.imagewidth:,} × {page.imagelength:,} px"
                self.warnings += (f"a level of {size} is set aside: {error.actual}",)

    def _read_grid(self, level: tifffile.TiffPageSeries) -> _SegmentGrid:
        """Segments of a level, after checks that it can be served."""
        page: Any = level.keyframe
        if hint := conversion_hint(page):
            raise UnsupportedFormatError(
                self.path, actual=unsupported_samples(page), expected="8 or 16 bit grey or RGB",
                hint=hint,
            )  # fmt: skip
        if reason := unsupported_samples(page):
            raise self._unsupported(reason)
        pages = channel_pages(level)
        width, height = page.imagewidth, page.imagelength
        if len(pages) > 1:
            pages = self._in_rgb_order(pages)
        elif (n_images := count_images(level)) > 1:
            raise MultiImageError(
                self.path, actual=f"{n_images} images of one size, one after another",
                expected="one image, or three channels of an OME-TIFF: red, green and blue",
                hint="Export the slide in colours, as one image.",
            )  # fmt: skip
        if not 0 < width <= MAX_SIDE_PX or not 0 < height <= MAX_SIDE_PX:
            raise self._unsupported(f"{width} × {height} px")
        block_width = page.tilewidth if page.is_tiled else width
        block_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        part_rows = rows_per_part(page)
        n_strips = -(-height // block_height) if part_rows else 0
        block_height = part_rows or block_height
        if not block_width * block_height:
            raise self._unsupported(f"TIFF tiles of {block_width:,} × {block_height:,} px")
        if block_width * block_height * page.samplesperpixel > 4 * _MAX_SEGMENT_PX:
            raise self._too_large(page, block_width, block_height)
        n_segments = -(-width // block_width) * -(-height // block_height)
        return _SegmentGrid(
            width_px=width, height_px=height, block_width_px=block_width,
            block_height_px=block_height, page=page,
            planes=tuple(self._read_planes(pages, n_strips or n_segments, part_rows)),
            is_divided=part_rows is not None,
        )  # fmt: skip

    def _in_rgb_order(self, pages: Sequence[Any]) -> Sequence[Any]:
        """Pages of three channels in the order red, green, blue, if the OME-XML states another."""
        # Color is RGBA in a signed number of 32 bit.
        colours = [
            int(channel["Color"]) >> 8 & 0xFFFFFF
            if re.fullmatch(r"-?\d+", channel["Color"])
            else None
            for channel in self._channels
            if "Color" in channel
        ]
        order = rgb_order([channel.get("Name", "") for channel in self._channels], colours)
        return pages if order is None else [pages[index] for index in order]

    def _read_planes(
        self, pages: Sequence[Any], n_segments: int, part_rows: int | None
    ) -> Iterator[_SegmentTable]:
        keyframe = pages[0].keyframe
        is_planar = keyframe.planarconfig != tifffile.PLANARCONFIG.CONTIG
        n_planes = keyframe.samplesperpixel if is_planar and keyframe.samplesperpixel > 1 else 1
        n_expected = n_planes * n_segments
        for page in pages:
            offsets, counts = page.dataoffsets, np.array(page.databytecounts, np.uint64)
            n_listed = min(len(offsets), len(counts))
            # At the start is the header: without compression, it would be taken for pixels.
            counts[:n_listed][np.equal(offsets[:n_listed], 0)] = 0
            if n_planes == 1 and n_expected / 2 <= n_listed < n_expected:  # the last are not stored
                n_missing = n_expected - n_listed
                offsets = (*offsets[:n_listed], *[0] * n_missing)
                counts = np.pad(counts[:n_listed], (0, n_missing))
            if len(offsets) != n_expected or len(counts) != n_expected:
                # OpenSlide would show as glass the tiles that are not listed, and others elsewhere.
                is_counted = {"TileByteCounts", "StripByteCounts"} & {
                    tag.name for tag in keyframe.tags
                }
                actual = f"{n_listed} TIFF tiles where {n_expected} should be"
                raise UnsupportedFormatError(
                    self.path, actual=actual if is_counted else "no byte counts of its TIFF tiles",
                    expected="as many as its size needs", hint="Copy or export the slide again.",
                )  # fmt: skip
            rows = keyframe.tilelength if keyframe.is_tiled else part_rows or keyframe.rowsperstrip
            for first in range(0, n_expected, n_segments):
                own_offsets = offsets[first : first + n_segments]
                own_counts = counts[first : first + n_segments]
                if part_rows is not None:
                    own_offsets, own_counts = divide_strips(
                        keyframe, part_rows, own_offsets, own_counts
                    )
                yield _SegmentTable(
                    page=page, first=first, offsets=own_offsets, byte_counts=own_counts,
                    jpeg_tables=page.jpegtables,
                    raw=_raw_pixels(keyframe, own_offsets, own_counts, rows),
                )  # fmt: skip

    def _too_large(self, page: Any, width_px: int, height_px: int) -> SlideError:
        kind = "tiles" if page.is_tiled else "strips"
        return UnsupportedFormatError(
            self.path,
            actual=f"{kind} of {width_px:,} × {height_px:,} px in {page.compression.name}, each of "
            "which has to be decoded as a whole",
            expected="smaller tiles",
            hint="Write it in tiles, for example with libvips: "
            "vips tiffsave IN.tif OUT.tif --tile --pyramid --bigtiff --compression jpeg",
        )

    def _unsupported(self, actual: str) -> SlideError:
        return SlideError(self.path, actual=actual, expected="TIFF of 8 or 16 bit")

    def _is_stored(self, level: int, row: int, column: int) -> bool:
        grid = self._grids[level]
        index = row * grid.columns + column
        return any(plane.byte_counts[index] for plane in grid.planes)

    def _decode(self, level: int, row: int, column: int) -> RgbArray | None:
        """One segment, None if it has no bytes; a failure is retried on a fresh handle."""
        try:
            return self._decode_segment(level, row, column, self._descriptor)
        except Exception:  # noqa: BLE001 - imagecodecs has an exception type for each codec
            descriptor = self._reopen()
        try:
            return self._decode_segment(level, row, column, descriptor)
        except Exception as error:
            raise TileError(
                self.path,
                actual=f"{self._name_block(level, row, column)} cannot be decoded ({error})",
                expected="pixels",
                hint="Copy or export the slide again.",
            ) from error
        finally:
            os.close(descriptor)

    def _reopen(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SlideError(
                self.path, actual=f"cannot be opened again ({error.strerror or error})",
                expected="a file that stays while it is read",
            ) from error  # fmt: skip

    def _decode_segment(
        self, level: int, row: int, column: int, descriptor: int
    ) -> RgbArray | None:
        grid = self._grids[level]
        index = row * grid.columns + column
        if not self._is_stored(level, row, column):
            return None
        height = min(grid.block_height_px, grid.height_px - row * grid.block_height_px)
        width = min(grid.block_width_px, grid.width_px - column * grid.block_width_px)
        samples = self._decode_samples(grid, index, descriptor)
        if level in self._ycbcr_levels:
            samples = rgb_of_ycbcr(samples)
        colours = to_colours(grid.page, samples, bits=self._bits, has_alpha=self._has_alpha)
        return to_rgb(colours[:height, :width], background_rgb=self.background_rgb)

    def _decode_samples(self, grid: _SegmentGrid, index: int, descriptor: int) -> npt.NDArray[Any]:
        """Samples of a segment, shape (height, width, samples), of all planes."""
        planes = [self._decode_plane(grid, plane, index, descriptor) for plane in grid.planes]
        channels = [plane for plane in planes if plane is not None]
        if len(channels) < len(planes):
            message = f"{len(planes) - len(channels)} of {len(planes)} planes have no bytes"
            raise EOFError(message)
        return channels[0] if len(channels) == 1 else np.concatenate(channels, axis=-1)

    def _read_stream(
        self, grid: _SegmentGrid, plane: _SegmentTable, index: int, descriptor: int
    ) -> bytes:
        """Bytes of a segment; EOFError or ValueError if they cannot be its pixels."""
        n_bytes, offset = int(plane.byte_counts[index]), plane.offsets[index]
        end = offset + n_bytes
        if end > self._n_bytes:  # it may have grown; asked each time, it would slow every segment
            self._n_bytes = os.fstat(descriptor).st_size
        stream = os.pread(descriptor, n_bytes, offset) if end <= self._n_bytes else b""
        if len(stream) < n_bytes:
            message = f"it ends {end - os.fstat(descriptor).st_size} bytes past the end of the file"
            raise EOFError(message)
        if plane.raw is not None:
            block_bytes = plane.raw.row_bytes * grid.block_height_px
            if n_bytes > block_bytes + _PADDING_BYTES:
                message = f"{n_bytes:,} bytes without compression, where {block_bytes:,} should be"
                raise ValueError(message)
            shown_rows = grid.height_px - index // grid.columns * grid.block_height_px
            shown = stream[: shown_rows * plane.raw.row_bytes]
            if plane.raw.are_zeroed(lambda n, at: os.pread(descriptor, n, at), offset, shown):
                raise EOFError(ZEROED)
        return stream

    def _decode_plane(
        self, grid: _SegmentGrid, plane: _SegmentTable, index: int, descriptor: int
    ) -> npt.NDArray[Any] | None:
        """Samples of a segment, shape (height, width, samples) in px; None if not stored."""
        if not plane.byte_counts[index]:
            return None
        stream = self._read_stream(grid, plane, index, descriptor)
        if grid.is_divided:
            return decode_rows(grid.page, stream)
        max_px = 4 * grid.block_height_px * grid.block_width_px + (1 << 16)
        check_declared_size(stream, compression=grid.page.compression, max_px=max_px)
        decoded, _, _ = plane.page.decode(stream, plane.first + index, jpegtables=plane.jpeg_tables)
        if decoded is None:
            return None
        samples = np.asarray(decoded[0])
        if samples.dtype.kind == "i":
            samples = without_sign(samples, bits=jpeg_precision(stream) or 8 * samples.itemsize)
        row, column = divmod(index, grid.columns)
        shown = samples[
            : grid.height_px - row * grid.block_height_px,
            : grid.width_px - column * grid.block_width_px,
        ]
        if grid.page.compression in PLAIN_JPEGS:
            if is_zeroed_jpeg(stream, tables=plane.jpeg_tables or b""):
                raise EOFError(ZEROED)
            if is_cut_jpeg(shown):
                raise EOFError("its JPEG stream ends early")
        elif grid.page.compression in ENTROPY_CODED and has_zeroed_data(stream) and np.ptp(shown):
            raise EOFError(ZEROED)
        return samples

    def _compared_blocks(self, n_blocks: int) -> Iterator[tuple[int, int]]:
        """Row and column of TIFF tiles of the longer half, which tissue is in."""
        order = np.argsort(self._grids[0].byte_counts, kind="stable")
        ranks = np.linspace(len(order) // 2, len(order) - 1, n_blocks)
        for index in order[ranks.astype(int)].tolist():
            yield divmod(index, self._grids[0].columns)

    def _nonempty_blocks(self, level: int) -> tuple[npt.NDArray[np.int64], tuple[int, int, int]]:
        """Indices of segments that may show more than glass, and the colour of the glass.

        Segments are sampled over the whole range of byte counts, smallest first. The threshold is
        the largest count below which every sampled segment is plain glass. Where that skips few
        (noisy glass has as many bytes as tissue), all are decoded.
        """
        grid = self._grids[level]
        counts = grid.byte_counts
        everything = super()._nonempty_blocks(level)
        order = np.argsort(counts, kind="stable")
        order = order[np.searchsorted(counts[order], 1) :]  # some have no bytes
        if len(order) <= 2 * _N_SAMPLED:
            return everything
        ranks = np.linspace(0, len(order) - 1, _N_SAMPLED).astype(np.int64)
        glass: list[npt.NDArray[np.float64]] = []
        for index in order[ranks].tolist():
            try:
                colour = plain_colour(self._block(level, *divmod(index, grid.columns)))
            except TileError:
                break
            if colour is None or (glass and np.abs(colour - glass[0]).max() > PLAIN_RANGE):
                break
            glass.append(colour)
        # The last plain sample may be next to the first with tissue; the one before is not.
        if len(glass) < 2:
            return everything
        plain, other = counts[order[ranks[[len(glass) - 2, min(len(glass), len(ranks) - 1)]]]]
        # Segments without bytes cost nothing to read, and may be lost tissue. Segments of one size,
        # as those without compression, are all decoded.
        is_above = (counts > plain) | (counts >= other) | (counts == 0)
        if (~is_above).mean() < _MIN_SHARE_SKIPPED:
            return everything
        red, green, blue = np.rint(np.median(glass, axis=0)).astype(int).tolist()
        return np.flatnonzero(is_above), (red, green, blue)


def _may_be_ycbcr(page: Any) -> bool:
    """Return whether the decoded samples of a page may be YCbCr, whatever its tags say."""
    is_jpeg_2000 = page.compression in JPEG_2000 and page.samplesperpixel == 3
    return bool(page.dtype == np.uint8 and (is_jpeg_2000 or decodes_as_rgb(page)))


def _raw_pixels(
    page: Any, offsets: Sequence[int], counts: npt.NDArray[np.uint64], rows: int
) -> RawPixels | None:
    """Places of the pixels of a plane that is not compressed, offsets and bytes; None for others.

    ``rows`` are those of a TIFF tile, a strip or a part of one, px.
    """
    if page.compression != tifffile.COMPRESSION.NONE or page.bitspersample not in {8, 16}:
        return None
    is_contiguous = page.planarconfig == tifffile.PLANARCONFIG.CONTIG
    pixel_bytes = page.bitspersample // 8 * (page.samplesperpixel if is_contiguous else 1)
    width_px = page.tilewidth if page.is_tiled else page.imagewidth
    return RawPixels(
        offsets=np.array(offsets, np.uint64), sample_bytes=page.bitspersample // 8,
        end=int((np.array(offsets, np.uint64) + counts).max(initial=0)),
        columns=-(-page.imagewidth // width_px), block_rows=rows,
        pixel_bytes=pixel_bytes, row_bytes=width_px * pixel_bytes,
        is_zero_black=getattr(page.photometric, "name", "") not in {"MINISWHITE", "PALETTE"},
    )  # fmt: skip
