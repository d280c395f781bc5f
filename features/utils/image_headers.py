"""How large a picture a compressed stream claims to be, read without decoding it.

A decoder allocates what the stream's own header says, whatever the file around it promises.
"""

from __future__ import annotations

import re
import struct
from contextlib import suppress

__all__ = ["jpeg_dimensions", "png_dimensions", "webp_dimensions"]

_JPEG_START = b"\xff\xd8"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP"
_LOSSLESS_WEBP_START = b"\x2f"
_WEBP_SIDE = 1 << 14
"""Sides in frames of WebP have 14 bit."""
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame of JPEG, lossless JPEG or JPEG-LS and tell its size."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd9\xff])")
"""A marker with a length behind it, after whatever decoders skip: noise, fill, bare markers."""


def jpeg_dimensions(stream: bytes) -> tuple[int, int] | None:
    """Width and height in px that a stream of the JPEG family claims.

    Parameters
    ----------
    stream
        JPEG, lossless JPEG, JPEG-LS, or JPEG 2000 with or without boxes.

    Returns
    -------
    tuple of int or None
        None for any other stream, and where none is told.
    """
    try:
        if stream.startswith(_JPEG_START):
            return _of_jpeg(stream)
        if stream.startswith(_JP2_START):
            return _of_jpeg_2000(stream, _start_in_boxes(stream))
        return _of_jpeg_2000(stream, 0)
    except (OverflowError, struct.error):
        return None


def webp_dimensions(stream: bytes) -> tuple[int, int] | None:
    """Width and height in px that a WebP stream claims, and none of its frames exceeds.

    Parameters
    ----------
    stream
        WebP in its container, or bare chunks or frames, which decoders take as well.

    Returns
    -------
    tuple of int or None
        None where none is told.
    """
    try:
        place = 12 if stream.startswith(b"RIFF") else 0
        while stream.startswith(b"ALPH", place):
            (length,) = struct.unpack_from("<I", stream, place + 4)
            place += 8 + length + length % 2
        if stream.startswith(b"VP8X", place):
            low_x, high_x, low_y, high_y = struct.unpack_from("<HBHB", stream, place + 12)
            return 1 + low_x + (high_x << 16), 1 + low_y + (high_y << 16)
        if stream.startswith((b"VP8 ", b"VP8L"), place):
            place += 8
        if stream.startswith(_LOSSLESS_WEBP_START, place):
            (sides,) = struct.unpack_from("<I", stream, place + 1)
            return 1 + sides % _WEBP_SIDE, 1 + (sides >> 14) % _WEBP_SIDE
        width, height = struct.unpack_from("<HH", stream, place + 6)
    except struct.error:
        return None
    return width % _WEBP_SIDE, height % _WEBP_SIDE


def png_dimensions(stream: bytes) -> tuple[int, int] | None:
    """Width and height in px that a PNG stream claims; None where none is told."""
    place = 8
    with suppress(struct.error):
        while True:
            length, kind, width, height = struct.unpack_from(">I4sII", stream, place)
            if kind == b"IHDR":
                return width, height
            place += 12 + length
    return None


def _of_jpeg(stream: bytes) -> tuple[int, int] | None:
    """Size in the first frame."""
    place = 2
    while (found := _MARKER.search(stream, place)) is not None:
        place = found.end()
        if found[1][0] in _FRAMES:
            height_px, width_px = struct.unpack_from(">HH", stream, place + 3)
            return width_px, height_px
        (length,) = struct.unpack_from(">H", stream, place)
        place += max(2, length)
    return None


def _start_in_boxes(stream: bytes) -> int:
    """Where the first codestream begins in the boxes of a JP2 file; raises where there is none."""
    place = 0
    while True:
        length, kind = struct.unpack_from(">I4s", stream, place)
        n_head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", stream, place + 8)
            n_head = 16
        if kind == b"jp2c":
            return place + n_head
        place += max(length, n_head)


def _of_jpeg_2000(stream: bytes, start: int) -> tuple[int, int] | None:
    if not stream.startswith(_JPEG_2000_START, start):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", stream, start + 8)
    return right - left, bottom - top
