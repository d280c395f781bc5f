"""Arrays and attributes out of HDF5 files that nobody vouches for.

A few bytes of HDF5 can point into other files of the machine (external links, external storage,
virtual datasets) or claim terabytes. Here only what lies in the file itself is read, and a claim
that the file is too small to hold is refused before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from features.errors import BagError

__all__ = ["find_item", "opened", "read_array", "read_attributes"]

_LARGEST_EXPANSION = 20
"""Times the file's size that a compressed dataset may take; embeddings hardly reach 4."""

_COMPLAINTS = (ArithmeticError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What h5py and NumPy raise over damaged files."""

_ALWAYS_ALLOWED_BYTES = 1 << 20
_LARGEST_ATTRIBUTE_BYTES = 1 << 20


@contextmanager
def opened(path: Path, *, expected: str, advice: str) -> Iterator[h5py.File]:
    """Open a file for reading; whatever HDF5 dislikes, then or later, becomes a BagError.

    Parameters
    ----------
    path
        The file.
    expected
        What it should be, for the message.
    advice
        What to do where it is not.

    Raises
    ------
    BagError
        If it is missing, no HDF5, or turns out damaged inside the block.
    """
    if not path.is_file():
        raise BagError(path, found="there is no such bag", expected="a file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BagError(
            path, found="not readable as HDF5", expected=expected, advice=advice
        ) from error
    try:
        with file:
            yield file
    except _COMPLAINTS as error:
        text = " ".join(str(error).split())
        raise BagError(path, found=f"damaged ({text})", expected=expected, advice=advice) from error


def find_item(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group | None:
    """The dataset or group of this name; None if there is none.

    Parameters
    ----------
    file
        Open file.
    name
        Its path, e.g. ``features/uni``.

    Raises
    ------
    BagError
        If a link on the way leads elsewhere, above all out of the file.
    """
    item: Any = file
    for part in name.split("/"):
        key = part.encode()
        if not isinstance(item, h5py.Group) or not item.id.links.exists(key):
            return None
        if item.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise BagError(
                file.filename,
                found=f"{name!r} is a link to somewhere else, which is not followed",
                expected="data in the file itself",
            )
        item = item[part]
    return item if isinstance(item, (h5py.Dataset, h5py.Group)) else None


def read_array(
    file: h5py.File, name: str, *, ndim: tuple[int, ...], kinds: str = "fiu"
) -> npt.NDArray[Any]:
    """Read a dataset of numbers.

    Parameters
    ----------
    file
        Open file.
    name
        Path of the dataset.
    ndim
        Numbers of axes it may have, the usual one first.
    kinds
        Kinds of numbers allowed: ``f`` floating, ``i`` and ``u`` whole.

    Returns
    -------
    numpy.ndarray
        With one of these numbers of axes.

    Raises
    ------
    BagError
        If it is missing, of another kind, lies outside the file, or claims more than the file can
        hold.
    """
    dataset = find_item(file, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in ndim:
        raise BagError(file.filename, found=f"no {ndim[0]}-dimensional dataset {name!r}")
    if dataset.dtype.kind not in kinds:
        raise BagError(file.filename, found=f"{name!r} holds {dataset.dtype}", expected="numbers")
    if dataset.is_virtual or dataset.external:
        raise BagError(
            file.filename,
            found=f"the values of {name!r} lie in other files, which are not opened",
            expected="data in the file itself",
        )
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if n_bytes > (n_allowed := _allowed_bytes(file, dataset)):
        raise BagError(
            file.filename,
            found=f"{name!r} claims {dataset.shape} values, {n_bytes:,} bytes",
            expected=f"at most {n_allowed:,}, from what the file holds",
        )
    return np.asarray(dataset[()])


def read_attributes(item: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes as plain Python values; arrays become tuples, empty ones None, text is Unicode.

    Raises
    ------
    BagError
        If one is larger than 1 MiB.
    """
    values: dict[str, Any] = {}
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            values[name] = None
            continue
        n_bytes = attribute.get_storage_size()
        if n_bytes > _LARGEST_ATTRIBUTE_BYTES:
            raise BagError(
                item.file.filename,
                found=f"attribute {name!r} of {n_bytes:,} bytes",
                expected=f"at most {_LARGEST_ATTRIBUTE_BYTES:,}",
            )
        values[name] = _plain(item.attrs[name])
    return values


def _allowed_bytes(file: h5py.File, dataset: h5py.Dataset) -> int:
    n_file_bytes = Path(file.filename).stat().st_size
    if dataset.id.get_create_plist().get_nfilters():
        return max(_ALWAYS_ALLOWED_BYTES, _LARGEST_EXPANSION * n_file_bytes)
    return min(n_file_bytes, int(dataset.id.get_storage_size()))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
