"""Slides told apart by content, whatever they are called and wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import tifffile
from PIL import Image

from features.errors import SlideError
from features.utils.paths import parse_url

__all__ = ["compression_of", "content_hash", "file_size"]

_BLOCK_BYTES = 1 << 20
_WHOLE_BELOW_BYTES = 64 * _BLOCK_BYTES
_N_SAMPLED = 64
_MARKS_OF_ZARR = ("zarr.json", ".zgroup")
_METADATA_OF_ZARR = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


def content_hash(path: Path | str) -> str:
    """Tell a slide by its content without reading gigabytes; a copy always has the same id.

    What is covered:

    - A file up to 64 MiB: all of it. A larger one: its size and 64 blocks of 1 MiB, evenly spaced
      from the first byte to the last. Two different scans agree only if all that is the same.
    - A zarr folder, here or behind a URL: the relative names and sizes of all its files, the
      metadata whole, and of 64 other files, drawn by a hash of all names and sizes, the first and
      the last MiB. A changed chunk of unchanged size may go unnoticed where there are more than 64.
      A folder and its copy behind a URL have the same id.
    - A zarr behind a URL that lists nothing (most plain ``https``): the URL and the metadata that
      lie at its root. Its copies elsewhere have other ids.
    - Any other folder: the relative names and the ids of its files.

    Parameters
    ----------
    path
        A file, a folder or a URL, see :func:`features.utils.paths.parse_url`.

    Returns
    -------
    str
        64 hexadecimal digits (SHA-256).

    Raises
    ------
    SlideError
        If it is not there or cannot be read.
    """
    url = parse_url(path)
    try:
        return _id_of_url(url) if url is not None else _id_of_path(Path(path))
    except Exception as error:  # what fsspec meets behind a URL has too many kinds to list
        raise SlideError(
            url or path,
            actual=f"its content cannot be read ({type(error).__name__}: {error})",
            expected="a slide",
        ) from error


def _id_of_path(path: Path) -> str:
    if not path.is_dir():
        return _id_of_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if any((path / mark).is_file() for mark in _MARKS_OF_ZARR):
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
        return _id_of_zarr(sizes, lambda name: (path / name).open("rb"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(_id_of_file(file).encode())
    return digest.hexdigest()


def _id_of_file(path: Path) -> str:
    n_bytes = path.stat().st_size
    digest = hashlib.sha256(f"{n_bytes}\n".encode())
    with path.open("rb") as stream:
        if n_bytes <= _WHOLE_BELOW_BYTES:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
        else:
            n_blocks = _WHOLE_BELOW_BYTES // _BLOCK_BYTES
            for index in range(n_blocks):
                stream.seek((n_bytes - _BLOCK_BYTES) * index // (n_blocks - 1))
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _id_of_url(url: str) -> str:
    files: Any
    files, root = fsspec.url_to_fs(url)
    root = str(root).rstrip("/")
    sizes = _listed(files, root)
    if not sizes:
        return _id_of_unlisted(url, files, root)
    return _id_of_zarr(sizes, lambda name: files.open(f"{root}/{name}", "rb"))


def _listed(files: Any, root: str) -> dict[str, int]:
    """Sizes of the files of a remote folder by relative name; none where nothing is listed."""
    try:
        found = files.find(root, detail=True)
    except Exception:  # noqa: BLE001 - each kind of server forbids it in its own way
        return {}
    return {
        name[len(root) :].lstrip("/"): int(info["size"])
        for name, info in found.items()
        if name != root and info.get("size") is not None
    }


def _id_of_unlisted(url: str, files: Any, root: str) -> str:
    metadata = files.cat([f"{root}/{name}" for name in sorted(_METADATA_OF_ZARR)], on_error="omit")
    if not metadata:
        raise FileNotFoundError(f"no metadata of zarr at {root}")
    digest = hashlib.sha256(url.encode())
    for name in sorted(metadata):
        digest.update(f"\n{PurePosixPath(name).name} {len(metadata[name])}\n".encode())
        digest.update(metadata[name])
    return digest.hexdigest()


def _id_of_zarr(sizes: Mapping[str, int], open_file: Callable[[str], BinaryIO]) -> str:
    digest = hashlib.sha256()
    for name in sorted(sizes):
        digest.update(f"{name}\n{sizes[name]}\n".encode())
    seed = digest.digest()
    metadata = [name for name in sizes if PurePosixPath(name).name in _METADATA_OF_ZARR]
    chunks = sorted(
        set(sizes).difference(metadata),
        key=lambda name: hashlib.sha256(seed + name.encode()).digest(),
    )
    for name in sorted(metadata):
        with open_file(name) as stream:
            digest.update(stream.read())
    for name in chunks[:_N_SAMPLED]:
        with open_file(name) as stream:
            digest.update(stream.read(_BLOCK_BYTES))
            if sizes[name] > _BLOCK_BYTES:
                stream.seek(max(_BLOCK_BYTES, sizes[name] - _BLOCK_BYTES))
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


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


def file_size(path: Path) -> int | None:
    """Size of a slide in bytes, with the folder of data beside it; None behind a URL.

    A zarr folder counts whole. Of a DICOM slide in many files the one that is named counts.
    """
    if parse_url(path) is not None:
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
