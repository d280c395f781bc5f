"""Files that ``torch.save`` wrote, read without running a program or filling the memory."""

from __future__ import annotations

import io
import mmap
import warnings
import zipfile
from pathlib import Path
from typing import IO

import torch

from features.utils.pickles import require_plain_pickle

__all__ = ["safe_torch_load"]

_ARCHIVE = b"PK\x03\x04"
"""How a file begins that PyTorch reads as an archive; any other is a pickle, whatever ends it."""
_N_OLD_PICKLES = 5
"""In a file that is no archive: a mark, a version, the system, the content, names of tensors."""
_GROWING = (b"bytearray", b"_codecs")
"""Names by which a pickle of some bytes asks for gigabytes; no tensor needs them."""


def safe_torch_load(path: Path) -> object:
    """What a file holds: tensors and plain containers of them.

    Such a file is a pickle, and an ordinary pickle can run any program. PyTorch's own restricted
    reader makes tensors and plain values and refuses the rest; what it would still unpack or
    multiply is refused before.

    Raises
    ------
    ValueError
        If it could take much more memory or time than its own size.
    Exception
        Of any kind, as damage will have it; ``pickle.UnpicklingError`` for anything but tensors.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as all_:
        if all_[: len(_ARCHIVE)] == _ARCHIVE:
            _look_into_archive(path)
        else:
            _look_into_pickles(all_, file)
    with warnings.catch_warnings(action="ignore"):
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _look_into_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its size; PyTorch stores tensors unpacked."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        n_bytes = sum(part.file_size for part in parts)
        if n_bytes > path.stat().st_size:
            message = f"an archive that unpacks to {n_bytes:,} bytes, more than its own size"
            raise ValueError(message)
        for part in parts:
            if ".pkl" in part.orig_filename.lower():  # PyTorch finds DATA.PKL as well
                content = archive.read(part)
                _look_for_names(content)
                require_plain_pickle(io.BytesIO(content))


def _look_into_pickles(content: mmap.mmap, file: IO[bytes]) -> None:
    """Look into the pickles at the beginning of a file of PyTorch's older format."""
    _look_for_names(content)
    for _ in range(_N_OLD_PICKLES):
        if file.tell() < len(content):
            require_plain_pickle(file)


def _look_for_names(content: bytes | mmap.mmap) -> None:
    name = next((name for name in _GROWING if content.find(name) >= 0), None)
    if name is not None:
        message = f"it holds {name.decode()!r}, which no tensor needs and which can fill the memory"
        raise ValueError(message)
