"""How large a picture a compressed stream claims to be, read without decoding it.

A decoder allocates what the stream's own header says, whatever the file around it promises.
"""

from __future__ import annotations

import struct

__all__ = ["claimed_size"]

_JPEG_START = b"\xff\xd8"
_JPEG_2000_START = b"\xff\x4f\xff\x51"
_JP2_BOX = b"\x00\x00\x00\x0cjP"
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame of JPEG, lossless JPEG or JPEG-LS and tell its size."""
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
_SEARCHED_BYTES = 1 << 20


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
        if stream.startswith(_JPEG_2000_START):
            return _of_jpeg_2000(stream, 0)
        if stream.startswith(_JP2_BOX):
            start = stream.find(_JPEG_2000_START, 0, _SEARCHED_BYTES)
            return None if start < 0 else _of_jpeg_2000(stream, start)
    except struct.error:
        return None
    return None


def _of_jpeg(stream: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 4 <= len(stream):
        if stream[place] != 0xFF:
            return None
        marker = stream[place + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:  # fill bytes and bare markers
            place += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height_px, width_px = struct.unpack_from(">HH", stream, place + 5)
            return width_px, height_px
        (length,) = struct.unpack_from(">H", stream, place + 2)
        place += 2 + max(2, length)
    return None


def _of_jpeg_2000(stream: bytes, start: int) -> tuple[int, int]:
    right, bottom, left, top = struct.unpack_from(">IIII", stream, start + 8)
    return right - left, bottom - top
