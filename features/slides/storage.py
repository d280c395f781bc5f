"""How a slide lies on disk: its size and how it is compressed."""

from __future__ import annotations

from pathlib import Path

import tifffile
from PIL import Image

from features.names import url_of

__all__ = ["compression_of", "stored_bytes"]


def compression_of(path: Path) -> str:
    """How the first picture of a file is compressed, e.g. ``LZW``, ``JPEG`` or ``NONE``.

    Only headers are read. Empty where that is not known: zarr, DICOM, folders and URLs.
    """
    if not path.is_file():
        return ""
    try:
        # NDPI's own rules would follow a circle of directories right here.
        with tifffile.TiffFile(path, is_ndpi=False) as file:
            return tifffile.COMPRESSION(file.pages.first.compression).name
    except Exception:  # noqa: BLE001 - no TIFF, or one that is damaged in a way of its own
        return _format_of_image(path)


def stored_bytes(path: Path) -> int | None:
    """Size of a slide in bytes, with the folder of data beside it; None behind a URL.

    A zarr folder counts whole. Of a DICOM slide in many files the one that is named counts.
    """
    if url_of(path) is not None:
        return None
    parts = [path, path.with_suffix("")] if path.suffix.lower() == ".mrxs" else [path]
    files = [file for part in parts for file in (part.rglob("*") if part.is_dir() else [part])]
    return sum(file.stat().st_size for file in files if file.is_file())


def _format_of_image(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.format or ""
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
