"""Files of other kinds that go by the name of a slide or a table, known by their first bytes."""

from __future__ import annotations

import os
from typing import BinaryIO

__all__ = ["BFCONVERT", "START_BYTES", "find_foreign_kind", "was_copied_as_text"]

BFCONVERT = "bfconvert -noflat -bigtiff -compression LZW -tilex 512 -tiley 512 IN OUT.ome.tiff"
"""Command of Bio-Formats that makes an OME-TIFF in tiles of 512 px and keeps the pyramid."""

START_BYTES = 4096
"""Number of first bytes by which a file is known."""
_N_PIECES, _PIECE_BYTES, _LEAST_FEEDS = 4, 1 << 17, 50

_KINDS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (bytes.fromhex("00051607"),), "an AppleDouble file of macOS",
        "Name the file without '._' before its name.",
    ),
    (
        (b"version https://git-lfs",), "a pointer of Git LFS",
        "Fetch the file with 'git lfs pull'.",
    ),
    (
        (
            b"<!doctype html", b"<html", b"<error>",
            b'<?xml version="1.0" encoding="utf-8"?>\n<error>',
        ),
        "a web page, as after a failed download", "Download it again, signed in if need be.",
    ),
    (
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd"),
        "an archive", "Unpack it, and name what is in it.",
    ),
    (
        (b"\x89HDF\r\n\x1a\n",), "an HDF5 file, such as a bag of embeddings",
        "Name the slides or the table that it was made of.",
    ),
    ((b"%PDF",), "a PDF", "Export the picture in it as TIFF or PNG, a table as CSV."),
)  # fmt: skip
"""Beginnings, in small letters if they are text, what they are of, and what to do."""


def find_foreign_kind(start: bytes) -> tuple[str, str]:
    """Return of which other kind a file is, and what to do; empty texts if it is of none.

    ``start`` holds its first :data:`START_BYTES` bytes.
    """
    text = start.lstrip().lower()
    for beginnings, kind, hint in _KINDS:
        if start.startswith(beginnings) or text.startswith(beginnings):
            return kind, hint
    return "", ""


def was_copied_as_text(file: BinaryIO) -> bool:
    """Return whether a binary file was copied in text mode, which adds a byte to each line feed.

    Four pieces of it are read; in each, every one of at least 50 line feeds has to follow a
    carriage return. Text in a file may have such lines, but not all of it is text.
    """
    n_bytes = file.seek(0, os.SEEK_END)
    for piece in range(_N_PIECES):
        file.seek(piece * max(0, n_bytes - _PIECE_BYTES) // (_N_PIECES - 1))
        content = file.read(_PIECE_BYTES)
        n_feeds = content.count(b"\n")
        if n_feeds < _LEAST_FEEDS or content.count(b"\r\n") < n_feeds - 1:  # one may be cut
            return False
    return True
