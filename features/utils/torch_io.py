"""Loading of files that ``torch.save`` wrote, restricted to tensors and plain containers."""

from __future__ import annotations

import warnings
import zipfile
from argparse import Namespace
from pathlib import Path

import torch

from features.utils.hardware import available_memory

__all__ = ["safe_torch_load"]

_ARCHIVE_START = b"PK\x03\x04"
"""First bytes of a file that PyTorch reads as a zip archive; any other is a bare pickle."""


def safe_torch_load(path: Path) -> object:
    """Load tensors of any shape, and plain containers of them, onto the CPU, without running code.

    The arguments of a command line, which training scripts store, are read as plain values.

    Raises
    ------
    ValueError
        If the file is empty, larger than the free memory, or an archive that unpacks to more than
        its own size in bytes (PyTorch stores tensors uncompressed).
    Exception
        Of any kind if the file is damaged; UnpicklingError if it holds anything else.
    """
    n_bytes, n_free = path.stat().st_size, available_memory()
    if not n_bytes:
        raise ValueError("an empty file")
    if n_bytes > n_free:
        raise ValueError(f"{n_bytes:,} bytes, more than the {n_free:,} bytes of free memory")
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE_START)) == _ARCHIVE_START
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            n_unpacked = sum(member.file_size for member in archive.infolist())
        if n_unpacked > n_bytes:
            raise ValueError(
                f"an archive that unpacks to {n_unpacked:,} bytes, more than its own size"
            )
    plain = torch.serialization.safe_globals([Namespace])
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"), plain:
        # By its path, a file would be read as what its name says.
        content: object = torch.load(file, map_location="cpu", weights_only=True)
    return content
