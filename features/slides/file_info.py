"""Content hash, compression and size of a slide file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from stat import S_ISDIR
from typing import Any, BinaryIO

import fsspec
import tifffile
from PIL import Image

from features.errors import SlideError
from features.slides.dicom_series import files_of_series, may_be_dicom
from features.utils.paths import parse_url

__all__ = [
    "VMS_SUFFIXES", "compression_of", "content_hash", "file_size", "parts_of_vms", "slide_size",
]  # fmt: skip

_BLOCK_BYTES = 1 << 20
_WHOLE_BELOW_BYTES = 64 * _BLOCK_BYTES
_N_SAMPLED = 64
_ZARR_MARKERS = ("zarr.json", ".zgroup")
VMS_SUFFIXES = (".vms", ".vmu")
"""Suffixes of Hamamatsu's slides in several files, of which the named one is a list."""
_VMS_FILE = re.compile(r"^[^=\r\n]+=[ \t]*(\S[^\r\n]*)", re.MULTILINE)
_VMS_BYTES = 1 << 18
_ZARR_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}


def content_hash(path: Path | str) -> str:
    """Return a hash of a slide's content without reading gigabytes; copies have the same hash.

    It is SHA-256 in 64 hexadecimal digits, of a file, a folder or a URL, and covers:

    - of a file up to 64 MiB, everything; of a larger one, its size and 64 blocks of 1 MiB, evenly
      spaced from the first byte to the last
    - of a zarr folder, local or behind a URL, the relative names and sizes of all its files, all
      metadata, and the first and last MiB of 64 other files, drawn by a hash of all names and
      sizes. With more than 64, a changed chunk of unchanged size may go unnoticed.
    - of a zarr behind a URL without listing (most plain ``https``), the URL and the metadata at
      its root; copies elsewhere have other hashes
    - of any other folder, the relative names and the hashes of its files

    Raises SlideError if the slide is missing or cannot be read.
    """
    url = parse_url(path)
    try:
        return _hash_url(url) if url is not None else _hash_path(Path(path))
    except Exception as error:  # fsspec raises errors of many kinds
        raise SlideError(
            url or path,
            actual=f"its content cannot be read ({type(error).__name__}: {error})",
            expected="a slide",
        ) from error


def _hash_path(path: Path) -> str:
    if not path.is_dir():
        return _hash_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if any((path / mark).is_file() for mark in _ZARR_MARKERS):
        sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
        return _hash_zarr(sizes, lambda name: (path / name).open("rb"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(_hash_file(file).encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
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


def _hash_url(url: str) -> str:
    files: Any
    files, root = fsspec.url_to_fs(url)
    root = str(root).rstrip("/")
    sizes = _list_sizes(files, root)
    if not sizes:
        return _hash_unlisted(url, files, root)
    return _hash_zarr(sizes, lambda name: files.open(f"{root}/{name}", "rb"))


def _list_sizes(files: Any, root: str) -> dict[str, int]:
    """Bytes of the files of a remote folder by relative name; empty without a listing."""
    try:
        entries = files.find(root, detail=True)
    except Exception:  # noqa: BLE001 - each kind of server refuses a listing in its own way
        return {}
    return {
        name[len(root) :].lstrip("/"): int(info["size"])
        for name, info in entries.items()
        if name != root and info.get("size") is not None
    }


def _hash_unlisted(url: str, files: Any, root: str) -> str:
    metadata = files.cat([f"{root}/{name}" for name in sorted(_ZARR_METADATA)], on_error="omit")
    if not metadata:
        raise FileNotFoundError(f"no metadata of zarr at {root}")
    digest = hashlib.sha256(url.encode())
    for name in sorted(metadata):
        digest.update(f"\n{PurePosixPath(name).name} {len(metadata[name])}\n".encode())
        digest.update(metadata[name])
    return digest.hexdigest()


def _hash_zarr(sizes: Mapping[str, int], open_file: Callable[[str], BinaryIO]) -> str:
    digest = hashlib.sha256()
    for name in sorted(sizes):
        digest.update(f"{name}\n{sizes[name]}\n".encode())
    seed = digest.digest()
    metadata = [name for name in sizes if PurePosixPath(name).name in _ZARR_METADATA]
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
    """Return the compression of the first image of a file, e.g. ``LZW``, ``JPEG`` or ``NONE``.

    Only headers are read, no pixels. Empty where it is unknown: zarr, DICOM, folders and URLs.
    """
    if not path.is_file():
        return ""
    try:
        # With NDPI's own rules tifffile would follow a directory loop here.
        with tifffile.TiffFile(path, is_ndpi=False) as file:
            return tifffile.COMPRESSION(file.pages.first.compression).name
    except Exception:  # noqa: BLE001 - not a TIFF, or a damaged one
        return _image_format(path)


def file_size(path: Path) -> int | None:
    """Return the size of a slide in bytes, with the data folder of MRXS; None behind a URL.

    A zarr folder counts whole; of a DICOM or VMS slide in many files, only the named one counts, as
    in the content hash.
    """
    if parse_url(path) is not None:
        return None
    parts = [path, path.with_suffix("")] if path.suffix.lower() == ".mrxs" else [path]
    return sum(map(_n_bytes, parts))


def slide_size(path: Path) -> int | None:
    """Return the size of a slide with all its files, bytes; None behind a URL.

    Differs from :func:`file_size` for DICOM, whose headers in the slide's folder are read once for
    all of its slides, and for the pictures of a VMS. Raises OSError if a file cannot be asked.
    """
    size = file_size(path)
    if size is None:
        return size
    if may_be_dicom(path):
        others = set(files_of_series(path))
    elif path.suffix.lower() in VMS_SUFFIXES:
        others = {path.parent / name for name in parts_of_vms(path)}
    else:
        return size
    return size + sum(_n_bytes(other) for other in others - {path})


def parts_of_vms(path: Path) -> list[str]:
    """Return the names of the files that a Hamamatsu VMS or VMU lists; none if it is unreadable."""
    try:
        with path.open("rb") as file:
            text = file.read(_VMS_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return [match.strip() for match in _VMS_FILE.findall(text)]


def _n_bytes(path: Path) -> int:
    """Bytes of a file, by a single request to its storage, or of a folder; 0 if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0
    if not S_ISDIR(found.st_mode):
        return found.st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _image_format(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.format or ""
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
