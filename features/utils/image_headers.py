"""Image size declared in the header of a compressed stream, read without decoding it.

A decoder allocates what the stream's own header declares, whatever the file around it says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

from PIL import Image

__all__ = [
    "jpeg2000_transforms_colours",
    "jpeg_dimensions",
    "jpeg_precision",
    "jpeg_scan",
    "jpeg_stores_rgb",
    "png_or_webp_dimensions",
]

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP"
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame of JPEG, lossless JPEG or JPEG-LS and hold its size."""
_HUFFMAN_FRAMES = {0xC0, 0xC1}
"""Baseline and extended JPEG: one pass over the blocks, in Huffman codes."""
_HUFFMAN_TABLES, _SCAN = 0xC4, 0xDA
_SCAN_START = bytes((0xFF, _SCAN))
_N_HEADERS, _MOST_HEADER_BYTES = 64, 1 << 14
"""Headers that are remembered: several slides are read at a time, each with few of them."""
_JFIF, _ADOBE = 0xE0, 0xEE
_CODING_STYLE = b"\xff\x52"
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd9\xff])")
"""A marker with a length behind it, after whatever decoders skip: noise, fill, bare markers."""


def jpeg_dimensions(stream: bytes) -> tuple[int, int] | None:
    """Return width and height in px that a stream of the JPEG family declares; None if it does not.

    The family is JPEG, lossless JPEG, JPEG-LS, and JPEG 2000 with or without boxes. Pillow refuses
    JPEG-LS and more than 8 bit, and takes the size of a JP2 file from a box that decoders ignore.
    """
    declared = _declared(stream)
    return None if declared is None else declared[:2]


def jpeg_precision(stream: bytes) -> int | None:
    """Return the bits of a sample that a stream of the JPEG family declares; None if it does not.

    The stream holds one image, JPEG or JPEG 2000, with or without boxes.
    """
    declared = _declared(stream)
    return None if declared is None else declared[2]


def png_or_webp_dimensions(stream: bytes) -> tuple[int, int] | None:
    """Return width and height in px that a PNG or WebP stream declares; None for any other."""
    try:
        with Image.open(BytesIO(stream), formats=("PNG", "WEBP")) as image:
            return image.size
    except Exception:  # noqa: BLE001 - Pillow raises errors of many kinds on damaged headers
        return None


def jpeg_stores_rgb(stream: bytes, *, is_tagged_rgb: bool = False) -> bool | None:
    """Return whether the components of a JPEG stream are RGB, not YCbCr; None if it does not say.

    JFIF and subsampled components mean YCbCr; Adobe's marker states either. Components that count
    from 0 are in the colours of the file's tag, as libjpeg writes what is not YCbCr. Of a stream
    without any of these, components with quantisation tables of their own behind the first are
    chroma: those of RGB share one.
    """
    said: set[str] = set()
    try:
        for marker, position in _segments(stream):
            if marker == _JFIF and stream.startswith(b"JFIF\0", position):
                said.add("YCbCr")
            elif marker == _ADOBE and stream.startswith(b"Adobe", position):
                said.add("YCbCr" if stream[position + 11] else "RGB")
            elif marker in _FRAMES:
                components = stream[position + 6 : position + 15]
                if len(set(components[1::3])) > 1:
                    return False
                is_counted = is_tagged_rgb and not said and components[::3] == b"\0\1\2"
                if is_counted or components[::3] == b"RGB":
                    said.add("RGB")
                tables = components[2::3]
                if not said and tables and tables[0] not in tables[1:]:
                    said.add("YCbCr")
                break
    except (IndexError, struct.error):
        return None
    return said == {"RGB"} if len(said) == 1 else None


def jpeg_scan(stream: bytes, tables: bytes = b"") -> tuple[int, int, bool]:
    """Return start and end of the coded pixels of a JPEG stream, and whether zeros are flat there.

    The end is -1 where its marker is missing. Zero bits are flat where they are the codes of blocks
    that do not change, or if what they are is unknown. ``tables`` is a stream of tables alone.
    """
    shared = _cached_header(tables)
    # The stream up to its first scan, unless these bytes are in a table before it.
    header = stream[: stream.find(_SCAN_START) + 4]
    own = _cached_header(header) if len(header) <= _MOST_HEADER_BYTES else _read_header(header)
    if own.end is None:
        own = _read_header(stream)
    start = len(stream) if own.end is None else own.end
    # The code of zeros is the first; its lower half is the size of a change, in bits. Own tables
    # take the place of shared ones of their number.
    symbols = {**shared.first_symbols, **own.first_symbols}.values()
    is_flat = not own.is_huffman or not any(symbol & 0x0F for symbol in symbols)
    return start, stream.find(_JPEG_END, start), is_flat


class _Header(NamedTuple):
    """First symbols of the Huffman tables before a scan, and where its coded pixels begin, bytes.

    ``first_symbols`` are by the number of the table. ``is_huffman`` states that the frame is in
    Huffman codes, one pass over the blocks; ``end`` is None if there is no scan, or if the header
    is damaged.
    """

    first_symbols: Mapping[int, int]
    is_huffman: bool
    end: int | None


def _read_header(stream: bytes) -> _Header:
    first_symbols: dict[int, int] = {}
    is_huffman, end = False, None
    with suppress(IndexError, struct.error):
        for marker, position in _segments(stream):
            (length,) = struct.unpack_from(">H", stream, position - 2)
            if marker == _HUFFMAN_TABLES:
                first_symbols.update(_first_symbols(stream[position : position + length - 2]))
            elif marker in _FRAMES:
                is_huffman = marker in _HUFFMAN_FRAMES
            elif marker == _SCAN:
                end = position + length - 2
                break
    return _Header(first_symbols, is_huffman, end)


_cached_header = lru_cache(_N_HEADERS)(_read_header)
"""Most tiles of a slide have the same header, and reading it takes as long as a tenth of a tile."""


def _first_symbols(tables: bytes) -> Iterator[tuple[int, int]]:
    """Number and first symbol of each table in a segment of Huffman tables."""
    position = 0
    while position < len(tables):
        yield tables[position], tables[position + 17]
        position += 17 + sum(tables[position + 1 : position + 17])


def jpeg2000_transforms_colours(stream: bytes) -> bool | None:
    """Return whether a JPEG 2000 codestream has a colour transform of its own; None if unknown."""
    position = stream.find(_CODING_STYLE)
    if not stream.startswith(_JPEG_2000_START) or not 0 < position < len(stream) - 8:
        return None
    return stream[position + 8] == 1


def _declared(stream: bytes) -> tuple[int, int, int] | None:
    """Width and height, px, and bits of a sample in the first header of a frame or codestream."""
    try:
        if stream.startswith(_JPEG_START):
            for marker, position in _segments(stream):
                if marker in _FRAMES:
                    bits, height_px, width_px = struct.unpack_from(">BHH", stream, position)
                    return width_px, height_px, bits
            return None
        start = _codestream_start(stream) if stream.startswith(_JP2_START) else 0
        if not stream.startswith(_JPEG_2000_START, start):
            return None
        # The precision is of the first component.
        right, bottom, left, top, bits = struct.unpack_from(">4I18xB", stream, start + 8)
    except (OverflowError, struct.error):
        return None
    return right - left, bottom - top, (bits & 0x7F) + 1


def _segments(stream: bytes) -> Iterator[tuple[int, int]]:
    """Marker of each segment of a JPEG stream, and where its content begins, bytes."""
    position = 2
    while (match := _MARKER.search(stream, position)) is not None:
        position = match.end()
        yield match[1][0], position + 2
        (length,) = struct.unpack_from(">H", stream, position)
        position += max(2, length)


def _codestream_start(stream: bytes) -> int:
    """Offset of the first codestream in a JP2 file, bytes; struct.error where there is none."""
    position = 0
    while True:
        length, kind = struct.unpack_from(">I4s", stream, position)
        n_header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", stream, position + 8)
            n_header = 16
        if kind == b"jp2c":
            return position + n_header
        position += max(length, n_header)
