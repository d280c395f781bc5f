"""Files written whole or not at all, and told apart by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from features.errors import OutputError

__all__ = ["content_id", "make_folder", "written_beside"]

_BLOCK_BYTES = 1 << 20
_WHOLE_BELOW_BYTES = 64 * _BLOCK_BYTES


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it when the block ends well.

    A reader therefore sees the old file or the whole new one, never a part. The temporary name
    keeps the suffix (some writers look at it), starts with a dot (listings skip it) and holds the
    process id (two processes never share it). The bytes are on disk before the name is.

    Parameters
    ----------
    path
        The final file; its folder must exist.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OutputError
        If the file cannot be written or replaced; the old file is then untouched.
    """
    beside = path.with_name(f".{path.stem[:80]}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise OutputError(
            path,
            found=f"cannot be written ({error.strerror or error})",
            advice="Check free space and permissions of the folder.",
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def make_folder(path: Path) -> Path:
    """Return ``path`` as an existing folder.

    Raises
    ------
    OutputError
        If it is a file or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            path,
            found=f"cannot be used as a folder ({error.strerror or error})",
            advice="Name another folder, or make this one writable.",
        ) from error
    return path


def content_id(path: Path) -> str:
    """Tell a file by its content, whatever its name, without reading gigabytes.

    Files up to 64 MiB are hashed whole. Of larger ones the size and 64 blocks of 1 MiB, evenly
    spaced from the first byte to the last, are: a copy always agrees, and two different scans
    agree only if they have the same size and the same 64 MiB. A folder (MRXS, DICOM, OME-Zarr) is
    told by the relative names, sizes and contents of its files.

    Parameters
    ----------
    path
        A file or a folder.

    Returns
    -------
    str
        64 hexadecimal digits (SHA-256).
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(content_id(file).encode())
        return digest.hexdigest()
    n_bytes = path.stat().st_size
    digest.update(f"{n_bytes}\n".encode())
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
