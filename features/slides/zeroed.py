"""Zeros in the bytes of pixels that an interrupted copy left, and not the writer of the file.

Most decoders notice nothing: a JPEG or JPEG 2000 goes on with other colours and patterns, and
uncompressed pixels are black.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.utils.image_headers import jpeg_scan

__all__ = [
    "ZEROED",
    "ZERO_RUN",
    "RawPixels",
    "has_zeroed_data",
    "hole_warning",
    "is_bright",
    "is_zeroed_jpeg",
    "is_zeroed_picture",
]  # fmt: skip

ReadAt = Callable[[int, int], bytes]
"""Function of a number of bytes and an offset in a file."""

ZEROED = "its data were overwritten by zeros, as by an interrupted copy"
"""What is wrong with such a block, for messages."""

_RUN = bytes(256)
"""Half a sector of a disk; entropy coding leaves no zeros of this length."""
ZERO_RUN = re.compile(rb"\0{256,}")
_SKIPPED_SHARE, _SKIPPED_FROM_BYTES = 1 / 128, 1 << 17
"""Zeros that Zstd, LZ4 and Blosc leave, as a share of the bytes before them, up to so many: where
nothing matches, their fast settings take ever longer steps, of 1/256 of the way."""
_WAVELETS_OR_WEBP = (b"\xff\x4f", b"\0\0\0\x0cjP", b"RIFF")
_RAW_RUN = re.compile(rb"\0{512,}")
_TAIL = bytes(16)
"""Zeros at the end of a JPEG stream that lacks its end marker."""
_JPEG_END = b"\xff\xd9"
"""End marker of JPEG and of JPEG 2000."""
_SECTOR_BYTES = 512
_PAGE_BYTES = 4096
"""Unit in which systems write files; a copy stops at one, the fill of one picture in 4096 may."""
_FEW = 0.25
_STAIR_ROWS = 16
"""Rows of pixels in which a slanted border of fill gets beyond a TIFF tile."""
_DARK = 32
"""Largest byte that noise and compression leave in the pixels beside black fill."""
_READ_BYTES = 1 << 16


def hole_warning(path: Path, *parts: Path) -> tuple[str, ...]:
    """Return a warning if a piece of a file was never written, so that it reads as zeros.

    Of several files of a slide, the first is told. Its size is in bytes. Systems that keep no
    account of it give none.
    """
    return next(filter(None, map(_hole_warning, (path, *parts))), ())


def _hole_warning(path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        n_bytes = path.stat().st_size
        try:
            start = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        except (AttributeError, OSError):  # not every system and disk can tell
            return ()
        if start >= n_bytes:
            return ()
        try:
            end = os.lseek(file.fileno(), start, os.SEEK_DATA)
        except OSError:  # no data follow
            end = n_bytes
    text = (
        f"{end - start:,} bytes of {path.name} from byte {start:,} on were never written, as by an "
        "interrupted copy: what they hold of the slide is lost. Copy it again."
    )
    return (text,)


def is_zeroed_jpeg(stream: bytes, *, tables: bytes = b"") -> bool:
    """Return whether zeros lie where a JPEG stream has its coded pixels.

    ``tables`` is the stream of tables that TIFF tiles share. A stream whose codes say "no change"
    in zero bits, as optimised ones of plain glass may, is not judged.
    """
    start, end, is_flat = jpeg_scan(stream, tables)
    if end < 0:
        return stream.endswith(_TAIL)
    return not is_flat and stream.find(_RUN, start, end) >= 0


def is_zeroed_picture(file: bytes) -> bool:
    """Return whether zeros lie among the pixels of a file of JPEG, lossy WebP or BMP.

    Others have checksums (PNG), or may hold zeros; chunks around the pixels are not looked at.
    """
    if file.startswith(b"\xff\xd8"):
        return is_zeroed_jpeg(file)
    if file.startswith(b"BM"):
        return _is_zeroed_bmp(file)
    start = file.find(b"VP8 ") if file.startswith(b"RIFF") else -1
    n_bytes = int.from_bytes(file[start + 4 : start + 8], "little")
    return start >= 0 and file.find(_RUN, start + 8, start + 8 + n_bytes) >= 0


def _is_zeroed_bmp(file: bytes) -> bool:
    """Whether zeros lie in the pixels of an uncompressed BMP of 24 or 32 bit."""
    offset, _, width, height = struct.unpack_from("<IIii", file, 10)
    n_bits, compression = struct.unpack_from("<HI", file, 28)
    if n_bits not in {24, 32} or compression or width <= 0 or not 0 < offset < len(file):
        return False
    raw = RawPixels(
        offsets=np.array([offset], np.uint64), end=len(file), columns=1, block_rows=abs(height),
        sample_bytes=1, pixel_bytes=n_bits // 8, row_bytes=-(-width * n_bits // 32) * 4,
    )  # fmt: skip
    return raw.are_zeroed(lambda n, at: file[at : at + n], offset, file[offset:])


def has_zeroed_data(stream: bytes) -> bool:
    """Return whether a stream of another coder (JPEG 2000, WebP, Zstd, LZ4, Blosc) holds zeros.

    Padding behind its end does not count, nor do the empty packets with which JPEG 2000 may end.
    """
    data = stream
    if stream.startswith(b"RIFF"):
        data = stream[: 8 + int.from_bytes(stream[4:8], "little")]
    stripped = stream.rstrip(b"\0")
    if stripped.endswith(_JPEG_END):
        data = stripped[:-2].rstrip(b"\0")
    if data.startswith(_WAVELETS_OR_WEBP):
        return _RUN in data
    return any(
        match.end() - match.start() > _SKIPPED_SHARE * min(match.start(), _SKIPPED_FROM_BYTES)
        for match in ZERO_RUN.finditer(data)
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class RawPixels:
    """Places of uncompressed pixels in a file, where zeros may as well be a scanner's black fill.

    A fill ends between pixels, along straight lines of the picture. A copy that stopped ends
    anywhere within them, or where a page or sector of the disk does, and beside what it left are
    other pixels. ``offsets`` are those of all TIFF tiles or strips in the order of the picture,
    shape (n,), of which ``columns`` are side by side, each of ``block_rows`` rows;
    ``sample_bytes``, ``pixel_bytes`` and ``row_bytes`` are those of a sample of a pixel, of a pixel
    and of a row of one of them. A run must be cut at both ends, or within a pixel where a sector
    ends: a stain or ink may lack a colour. With one column, nothing but such cuts tells zeros from
    a black seam across the picture. Zeros up to ``end``, the end of all pixels, are a copy's where
    they begin with a page amid a row. Where zeros are white or an index of a palette,
    ``is_zero_black`` is false.
    """

    offsets: npt.NDArray[np.uint64]
    end: int
    columns: int
    block_rows: int
    sample_bytes: int
    pixel_bytes: int
    row_bytes: int
    is_zero_black: bool = True
    _known: list[tuple[int, int]] = field(default_factory=list)
    """Runs of zeros beyond a single TIFF tile, start and end in the file."""

    def are_zeroed(self, read: ReadAt, offset: int, stream: bytes) -> bool:
        """Return whether a run of zeros in the bytes at an offset of a file is no black fill.

        ``read`` returns so many bytes from an offset of the file on, fewer at its end.
        """
        for match in _RAW_RUN.finditer(stream):
            start, end = offset + match.start(), offset + match.end()
            if start == offset or end == offset + len(stream):
                start, end = self._whole_run(read, start, end)
            is_long = end - start > 2 * self.row_bytes
            is_within = [
                self._is_within_pixel(read, edge, is_end=edge == end) for edge in (start, end)
            ]
            at_sector = [
                is_long and edge % _SECTOR_BYTES == 0 and self._place(edge) % self.row_bytes > 0
                for edge in (start, end)
            ]
            is_cut = np.logical_or(is_within, at_sector)
            if is_cut.all() or np.logical_and(is_within, at_sector).any():
                return True
            if is_long and self.is_zero_black and self._is_hole(read, start, end):
                return True
        return False

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.offsets, kind="stable")

    @cached_property
    def _starts(self) -> npt.NDArray[np.uint64]:
        return self.offsets[self._order]

    def _find(self, position: int) -> tuple[int, int]:
        """Index of the TIFF tile that a position is in, or behind, and the bytes from its start.

        The index is -1 before the first.
        """
        rank = int(np.searchsorted(self._starts, np.uint64(position), "right")) - 1
        return (
            (int(self._order[rank]), position - int(self._starts[rank])) if rank >= 0 else (-1, 0)
        )

    def _place(self, position: int) -> int:
        """Bytes from the start of a TIFF tile to a position in the file; 0 before the first."""
        return self._find(position)[1]

    def _is_within_pixel(self, read: ReadAt, edge: int, *, is_end: bool) -> bool:
        """Whether zeros start or end in the middle of a pixel, another byte of which is not dark.

        Not where other pixels near it in its row lack one of the same colours, as a stain may.
        """
        place = self._place(edge) % self.row_bytes
        n_bytes = place % self.pixel_bytes
        n_samples = self.pixel_bytes // self.sample_bytes
        # A sample of 16 bit may have a zero byte; samples behind the colours are often zero.
        n_colours = 3 if n_samples >= 3 else 1
        if not self.sample_bytes <= n_bytes <= (n_colours - 1) * self.sample_bytes:
            return False
        beside = read(1, edge if is_end else edge - 1)
        if not beside or beside[0] <= _DARK:
            return False
        first = edge - place
        if is_end:
            first = edge - n_bytes + self.pixel_bytes
            n_near = (self.row_bytes - place) // self.pixel_bytes
            zeroed = slice(n_bytes // self.sample_bytes)
        else:
            n_near = place // self.pixel_bytes
            zeroed = slice(-(-n_bytes // self.sample_bytes), n_colours)
        stream = read(n_near * self.pixel_bytes, first)
        whole = stream[: len(stream) // self.pixel_bytes * self.pixel_bytes]
        near = np.frombuffer(whole, f"u{self.sample_bytes}").reshape(-1, n_samples)[:, zeroed]
        return near.size > 0 and bool(near.all())

    def _is_hole(self, read: ReadAt, start: int, end: int) -> bool:
        """Whether zeros are beside other pixels where black fill of their shape would go on.

        Fill has straight borders that reach the border of the scan, or goes on in the rows of TIFF
        tiles on other sides, which are elsewhere in the file. Zeros of a copy may begin amid a row
        of pixels or of tiles, and lie between other pixels.
        """
        first, place = self._find(start)
        last, behind = self._find(end - 1)
        if first < 0:
            return False
        row, column = divmod(place, self.row_bytes)
        part, one = self.row_bytes - column, self.pixel_bytes
        edge = self.block_rows - 1
        above = (first, row - 1) if row else (first - self.columns, edge)
        is_tail = end >= self.end and start % _PAGE_BYTES == 0 and column > 0
        if is_tail and self._are_bright(read, [(*above, column, part)]):
            return True
        if self.columns == 1:
            return False
        last_row, last_column = divmod(min(behind, self._block_bytes - 1), self.row_bytes)
        lower, upper = first + self.columns, last - self.columns
        is_wide = lower <= last
        beside = [(first - 1, edge, self.row_bytes - one, one)] if first % self.columns else []
        if beside and row + _STAIR_ROWS < edge and column >= one:
            # No border of fill is both slanted and along the TIFF tile.
            lower_left = [
                (first - 1, y, self.row_bytes - one, one) for y in range(row + 1, self.block_rows)
            ]
            if self._are_bright(read, [(*above, column, part), *lower_left]):
                return True
        if beside and is_wide and last + self.columns >= len(self.offsets):
            beside.append((first - 1, edge, 0, self.row_bytes))
        else:
            beside.append(
                (last, last_row + 1, 0, last_column + 1)
                if last_row < edge
                else (last + self.columns, 0, 0, last_column + 1)
            )
        beside.append((*above, column, part))
        if first % self.columns:
            beside.append((first - 1, min(row + 1, edge), self.row_bytes - one, one))
        if (last + 1) % self.columns:
            beside.append((last + 1, max(last_row - 1, 0), 0, one))
        if first < last and not is_wide:  # also below its first TIFF tile, and above its last
            beside += [
                (lower, 0, 0, self.row_bytes),
                (upper, edge, 0, self.row_bytes),
            ]
        return self._are_bright(read, beside)

    @property
    def _block_bytes(self) -> int:
        return self.block_rows * self.row_bytes

    def _are_bright(self, read: ReadAt, parts: Sequence[tuple[int, int, int, int]]) -> bool:
        """Whether parts of TIFF tiles are no fill: index, row, first byte of it, and bytes.

        What is outside of the picture may be.
        """
        return all(
            0 <= index < len(self.offsets)
            and is_bright(read(n, int(self.offsets[index]) + row * self.row_bytes + at))
            for index, row, at, n in parts
        )

    def _whole_run(self, read: ReadAt, start: int, end: int) -> tuple[int, int]:
        """Start and end of the run of zeros in the file that contains these zeros."""
        for known in self._known:
            if known[0] <= start and end <= known[1]:
                return known
        run = start, end
        while start:
            before = read(min(_READ_BYTES, start), max(0, start - _READ_BYTES))
            n_zeros = len(before) - len(before.rstrip(b"\0"))
            start -= n_zeros
            if n_zeros < len(before) or not before:
                break
        while behind := read(_READ_BYTES, end):
            n_zeros = len(behind) - len(behind.lstrip(b"\0"))
            end += n_zeros
            if n_zeros < len(behind):
                break
        if (start, end) != run:
            self._known.append((start, end))
        return start, end


def is_bright(samples: bytes) -> bool:
    """Return whether bytes of pixels are other than black fill and the noise in it."""
    return bool(samples) and sum(byte > _DARK for byte in samples) > _FEW * len(samples)
