"""Zeros in the bytes of pixels that an interrupted copy left, and not the writer of the file.

Most decoders notice nothing: a JPEG or JPEG 2000 goes on with other colours and patterns, and
uncompressed pixels are black.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.utils.image_headers import jpeg_scan

__all__ = [
    "ZEROED", "RawPixels", "has_zeroed_data", "hole_warning", "is_zeroed_jpeg", "is_zeroed_picture",
]  # fmt: skip

ZEROED = "its data were overwritten by zeros, as by an interrupted copy"
"""What is wrong with such a block, for messages."""

_RUN = bytes(256)
"""Half a sector of a disk; entropy coding leaves no zeros of this length."""
_RAW_RUN = re.compile(rb"\0{512,}")
_TAIL = bytes(16)
"""Zeros at the end of a JPEG stream that lacks its end marker."""
_JPEG_END = b"\xff\xd9"
"""End marker of JPEG and of JPEG 2000."""
_SECTOR_BYTES = 512
_DARK = 32
"""Largest byte that noise and compression leave in the pixels beside black fill."""
_READ_BYTES = 1 << 16


def hole_warning(path: Path) -> tuple[str, ...]:
    """Return a warning if a part of a file was never written, so that it reads as zeros.

    Its size is in bytes. Systems that keep no account of it give none.
    """
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
        f"{end - start:,} bytes from byte {start:,} on were never written, as by an interrupted "
        "copy: what they hold of the slide is lost. Copy it again."
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
    """Return whether zeros lie among the coded pixels of a file of JPEG or lossy WebP.

    Others have checksums (PNG), or may hold zeros; chunks around the pixels are not looked at.
    """
    if file.startswith(b"\xff\xd8"):
        return is_zeroed_jpeg(file)
    start = file.find(b"VP8 ") if file.startswith(b"RIFF") else -1
    n_bytes = int.from_bytes(file[start + 4 : start + 8], "little")
    return start >= 0 and file.find(_RUN, start + 8, start + 8 + n_bytes) >= 0


def has_zeroed_data(stream: bytes) -> bool:
    """Return whether a stream of another entropy coder, such as JPEG 2000 or WebP, holds zeros.

    Padding behind its end does not count, nor do the empty packets with which JPEG 2000 may end.
    """
    data = stream
    if stream.startswith(b"RIFF"):
        data = stream[: 8 + int.from_bytes(stream[4:8], "little")]
    stripped = stream.rstrip(b"\0")
    if stripped.endswith(_JPEG_END):
        data = stripped[:-2].rstrip(b"\0")
    return _RUN in data


@dataclass(frozen=True, eq=False, kw_only=True)
class RawPixels:
    """Places of uncompressed pixels in a file, where zeros may as well be a scanner's black fill.

    A fill ends between pixels. A copy that stopped ends anywhere within them, or where a sector of
    the disk does. ``starts`` are the offsets of all TIFF tiles or strips, sorted, shape (n,);
    ``sample_bytes``, ``pixel_bytes`` and ``row_bytes`` are those of a sample of a pixel, of a pixel
    and of a row of one of them. Short runs must be cut at both ends: a stain may lack one colour.
    """

    starts: npt.NDArray[np.uint64]
    sample_bytes: int
    pixel_bytes: int
    row_bytes: int
    _known: list[tuple[int, int]] = field(default_factory=list)
    """Runs of zeros beyond a single TIFF tile, start and end in the file."""

    def are_zeroed(self, descriptor: int, offset: int, stream: bytes) -> bool:
        """Return whether a run of zeros in the bytes at an offset of a file is no black fill."""
        for match in _RAW_RUN.finditer(stream):
            start, end = offset + match.start(), offset + match.end()
            if start == offset or end == offset + len(stream):
                start, end = self._whole_run(descriptor, start, end)
            is_long = end - start > 2 * self.row_bytes
            is_cut = [
                self._is_within_pixel(descriptor, edge, beside)
                or (is_long and edge % _SECTOR_BYTES == 0 and self._place(edge) % self.row_bytes)
                for edge, beside in ((start, start - 1), (end, end))
            ]
            if all(is_cut) or (is_long and any(is_cut)):
                return True
        return False

    def _place(self, position: int) -> int:
        """Bytes from the start of a TIFF tile to a position in the file; 0 before the first."""
        index = int(np.searchsorted(self.starts, np.uint64(position), "right")) - 1
        return position - int(self.starts[index]) if index >= 0 else 0

    def _is_within_pixel(self, descriptor: int, edge: int, beside: int) -> bool:
        """Whether zeros end in the middle of a pixel, one of whose other bytes is not dark."""
        byte = os.pread(descriptor, 1, beside) if beside >= 0 else b""
        # A sample of 16 bit may have a zero byte.
        n_bytes = self._place(edge) % self.pixel_bytes
        is_cut = self.sample_bytes <= n_bytes <= self.pixel_bytes - self.sample_bytes
        return bool(byte) and byte[0] > _DARK and is_cut

    def _whole_run(self, descriptor: int, start: int, end: int) -> tuple[int, int]:
        """Start and end of the run of zeros in the file that contains these zeros."""
        for known in self._known:
            if known[0] <= start and end <= known[1]:
                return known
        while start:
            before = os.pread(descriptor, min(_READ_BYTES, start), max(0, start - _READ_BYTES))
            n_zeros = len(before) - len(before.rstrip(b"\0"))
            start -= n_zeros
            if n_zeros < len(before) or not before:
                break
        while behind := os.pread(descriptor, _READ_BYTES, end):
            n_zeros = len(behind) - len(behind.lstrip(b"\0"))
            end += n_zeros
            if n_zeros < len(behind):
                break
        self._known.append((start, end))
        return start, end
