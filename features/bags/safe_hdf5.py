"""HDF5 files: written whole, and read though nobody vouches for them.

A few bytes of HDF5 can point into other files of the machine (external links, external storage,
virtual datasets) or claim terabytes. Here only what lies in the file itself is read, and a claim
that the file is too small to hold is refused before anything is allocated. The library itself is
handed the bytes one by one, so that a heap in which it would go round for ever is refused first.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from features.errors import BagError
from features.utils.files import atomic_write

__all__ = ["create_h5", "find_item", "open_h5", "read_array", "read_attributes"]

_LARGEST_EXPANSION = 20
"""Times the file's size that a compressed dataset may take; embeddings hardly reach 4."""

_COMPLAINTS = (ArithmeticError, KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What h5py and NumPy raise over damaged files."""

_ALWAYS_ALLOWED_BYTES = 1 << 20
_HEAP = re.compile(rb"GCOL\x01\0\0\0")
"""How a collection of texts begins, wherever it lies."""
_HEAP_HEAD_BYTES = 16
_LARGEST_HEAP_BYTES = 1 << 26
_LARGEST_LOOKED_BYTES = 1 << 20
"""The library reads what it steps through in pieces of at most so many bytes; values in larger."""
_MOST_TEXTS = 16
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
"""Filters that come with the library; any other would be sought among programs on the machine."""
_SIZES = (8, 8)
"""Bytes of an address and of a length, as everybody writes them."""
_LARGEST_ATTRIBUTE_BYTES = 1 << 20


@contextmanager
def create_h5(path: Path) -> Iterator[h5py.File]:
    """Give a new file, which is written whole when the block ends well, or not at all.

    It is put together in memory: the library itself does not survive a full disk.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    with atomic_write(path) as beside:
        beside.write_bytes(content.getbuffer())


@contextmanager
def open_h5(path: Path, *, expected: str, advice: str) -> Iterator[h5py.File]:
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
    if not os.path.isfile(path):  # noqa: PTH113 - Path raises an error where a name is too long
        raise BagError(path, actual="there is no such bag", expected="a file")
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(_CheckedFile(path))
            file = h5py.File(path, "r", driver="fileobj", fileobj=raw)
        except _COMPLAINTS as error:
            raise BagError(
                path, actual="not readable as HDF5", expected=expected, hint=advice
            ) from error
        with _translate_errors(path, expected=expected, advice=advice), file:
            if file.id.get_create_plist().get_sizes() != _SIZES:
                raise OSError("addresses of another size than eight bytes")
            yield file


@contextmanager
def _translate_errors(path: Path, *, expected: str, advice: str) -> Iterator[None]:
    try:
        yield
    except _COMPLAINTS as error:
        text = " ".join(str(error).split())
        raise BagError(path, actual=f"damaged ({text})", expected=expected, hint=advice) from error


class _CheckedFile(io.FileIO):
    """A file that the HDF5 library reads through; heaps without an end are errors.

    The library steps from text to text of a heap by the lengths that stand there, and goes round
    for ever where one is nothing.
    """

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer from where the file stands, and look at the heaps in it."""
        start = self.tell()
        n_read = super().readinto(buffer) or 0
        n_before = min(start, _HEAP_HEAD_BYTES)  # a read may begin inside a heap's name
        before = os.pread(self.fileno(), n_before, start - n_before)
        looked = n_read if n_read <= _LARGEST_LOOKED_BYTES else _HEAP_HEAD_BYTES
        for found in _HEAP.finditer(before + bytes(memoryview(buffer)[:looked])):
            self._require_end(start - n_before + found.start())
        return n_read

    def _require_end(self, start: int) -> None:
        """Walk over a heap as the library does, and stop where it would not.

        Raises
        ------
        OSError
            If a text reaches beyond the heap, or takes no room.
        """
        head = os.pread(self.fileno(), _HEAP_HEAD_BYTES, start)
        n_bytes = int.from_bytes(head[8:], "little")
        if n_bytes > _LARGEST_HEAP_BYTES:
            raise OSError(f"a heap of {n_bytes:,} bytes")
        heap = os.pread(self.fileno(), n_bytes, start)
        place = _HEAP_HEAD_BYTES
        while place + _HEAP_HEAD_BYTES <= n_bytes:
            is_text = heap[place : place + 2] != b"\0\0"
            size = int.from_bytes(heap[place + 8 : place + 16], "little")
            step = _HEAP_HEAD_BYTES + -(-size // 8) * 8 if is_text else size
            if not _HEAP_HEAD_BYTES <= step <= n_bytes - place:
                raise OSError(f"a heap with a text of {size:,} bytes")
            place += step


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
                actual=f"{name!r} is a link to somewhere else, which is not followed",
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
        raise BagError(file.filename, actual=f"no {ndim[0]}-dimensional dataset {name!r}")
    if dataset.dtype.kind not in kinds:
        raise BagError(file.filename, actual=f"{name!r} holds {dataset.dtype}", expected="numbers")
    if dataset.is_virtual or dataset.external:
        raise BagError(
            file.filename,
            actual=f"the values of {name!r} lie in other files, which are not opened",
            expected="data in the file itself",
        )
    if strange := _filters_of(dataset) - _FILTERS.keys():
        raise BagError(
            file.filename,
            actual=f"the values of {name!r} are packed by filter {min(strange)}, a plug-in",
            expected=f"one of {', '.join(_FILTERS.values())}",
        )
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if n_bytes > (n_allowed := _allowed_bytes(file, dataset)):
        raise BagError(
            file.filename,
            actual=f"{name!r} claims {dataset.shape} values, {n_bytes:,} bytes",
            expected=f"at most {n_allowed:,}, from what the file holds",
        )
    return np.asarray(dataset[()])


def read_attributes(item: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Attributes as plain Python values; arrays become tuples, empty ones None, text is Unicode.

    Long lists of texts, each of which may be the same large one, and values with pointers that are
    no texts become None as well.

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
                actual=f"attribute {name!r} of {n_bytes:,} bytes",
                expected=f"at most {_LARGEST_ATTRIBUTE_BYTES:,}",
            )
        values[name] = None if _is_variable_length(attribute) else _plain(item.attrs[name])
    return values


def _allowed_bytes(file: h5py.File, dataset: h5py.Dataset) -> int:
    n_file_bytes = Path(file.filename).stat().st_size
    if dataset.id.get_create_plist().get_nfilters():
        return max(_ALWAYS_ALLOWED_BYTES, _LARGEST_EXPANSION * n_file_bytes)
    return min(n_file_bytes, int(dataset.id.get_storage_size()))


def _is_variable_length(attribute: Any) -> bool:
    """Whether a few bytes of it may point to any number of values."""
    if not attribute.dtype.hasobject:
        return False
    is_text = h5py.check_string_dtype(attribute.dtype) is not None
    return not is_text or math.prod(attribute.shape) > _MOST_TEXTS


def _filters_of(dataset: h5py.Dataset) -> set[int]:
    """Numbers of the filters that its values went through."""
    create_h5 = dataset.id.get_create_plist()
    return {create_h5.get_filter(place)[0] for place in range(create_h5.get_nfilters())}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
