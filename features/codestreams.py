"""How large a picture a compressed stream claims to be, read without decoding it.

A decoder allocates what the stream's own header says, whatever the file around it promises.
"""

from __future__ import annotations

import re
import struct

__all__ = ["claimed_size"]

_JPEG_START = b"\xff\xd8"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\x00\x00\x00\x0cjP"
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame of JPEG, lossless JPEG or JPEG-LS and tell its size."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd9\xff])")
"""A marker with a length behind it, after whatever decoders skip: noise, fill, bare markers."""


def claimed_size(stream: bytes) -> tuple[int, int] | None:
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
