"""HDF5 files written atomically, and read without trusting them.

A few bytes of HDF5 can refer to other files of the machine (external links, external storage,
virtual datasets) or state sizes of terabytes. Only data inside the file itself are read, and a size
that the file cannot hold is refused before memory is allocated. The library reads the file through
:class:`_CheckedFile`, which refuses a heap over which it would loop for ever.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from features.errors import BagError
from features.utils.files import atomic_write

__all__ = ["create_h5", "find_item", "open_h5", "read_array", "read_attributes"]

_MAX_EXPANSION = 20
"""Limit of a compressed dataset, as a multiple of the file's size; embeddings hardly reach 4."""
_ALWAYS_ALLOWED_BYTES = 1 << 20
_MAX_ATTRIBUTE_BYTES = 1 << 20
_MAX_TEXTS = 16
_H5PY_ERRORS = (
    ArithmeticError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that h5py and NumPy raise for damaged files."""

_HEAP = re.compile(rb"GCOL\x01\0\0\0")
"""Signature of a global heap, which holds texts of variable length."""
_HEAP_HEADER_BYTES = 16
_MAX_HEAP_BYTES = 1 << 26
_MAX_METADATA_BYTES = 1 << 20
"""Longest read that may hold a heap after its first bytes; longer ones are values of datasets."""
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 32000: "lzf"}
"""Filters built into the library; any other would be loaded as a plug-in from the machine."""
_SIZES = (8, 8)
"""Bytes of an address and of a length in every file that common writers make."""


@contextmanager
def create_h5(path: Path) -> Iterator[h5py.File]:
    """Yield a new file, which is written atomically when the block ends without an error.

    Its bytes are built in memory, because the library crashes on a full disk. Raises
    OutputError if the file cannot be written.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


@contextmanager
def open_h5(path: Path, *, expected: str, hint: str) -> Iterator[h5py.File]:
    """Open a file for reading; errors of the library, then or inside the block, become a BagError.

    ``expected`` names the kind of file, and ``hint`` says what to do if it is missing or damaged.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - Path raises an error where a name is too long
        raise BagError(path, actual="there is no such bag", expected="a file")
    is_open = False
    try:
        with (
            _CheckedFile(path) as raw,
            h5py.File(path, "r", driver="fileobj", fileobj=raw) as file,
        ):
            is_open = True
            if file.id.get_create_plist().get_sizes() != _SIZES:
                raise OSError("addresses of another size than eight bytes")
            yield file
    except _H5PY_ERRORS as error:
        reason = f"damaged ({error})" if is_open else "not readable as HDF5"
        raise BagError(path, actual=reason, expected=expected, hint=hint) from error


class _CheckedFile(io.FileIO):
    """A file for the HDF5 library; raises for a heap over which the library would loop for ever.

    The library steps from text to text of a heap by the stored lengths, and never ends where one
    is zero.
    """

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer from the current position, check its heaps, and return the bytes read."""
        start = self.tell()
        n_read = super().readinto(buffer) or 0
        n_before = min(start, _HEAP_HEADER_BYTES)  # A read may begin inside a heap's signature.
        before = os.pread(self.fileno(), n_before, start - n_before)
        n_searched = n_read if n_read <= _MAX_METADATA_BYTES else _HEAP_HEADER_BYTES
        for match in _HEAP.finditer(before + bytes(memoryview(buffer)[:n_searched])):
            self._check_heap(start - n_before + match.start())
        return n_read

    def _check_heap(self, start: int) -> None:
        """Step over a heap as the library does, and raise OSError where it would not end."""
        header = os.pread(self.fileno(), _HEAP_HEADER_BYTES, start)
        n_bytes = int.from_bytes(header[8:], "little")
        if n_bytes > _MAX_HEAP_BYTES:
            raise OSError(f"a heap of {n_bytes:,} bytes")
        heap = os.pread(self.fileno(), n_bytes, start)
        position = _HEAP_HEADER_BYTES
        while position + _HEAP_HEADER_BYTES <= n_bytes:
            is_text = heap[position : position + 2] != b"\0\0"
            size = int.from_bytes(heap[position + 8 : position + 16], "little")
            step = _HEAP_HEADER_BYTES + -(-size // 8) * 8 if is_text else size
            if not _HEAP_HEADER_BYTES <= step <= n_bytes - position:
                raise OSError(f"a heap with a text of {size:,} bytes")
            position += step


def find_item(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group | None:
    """Return the dataset or group at a path such as ``features/uni``; None if there is none.

    Raises BagError if a link on the way leads elsewhere, e.g. out of the file.
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
    file: h5py.File, name: str, *, ndim: tuple[int, ...], kinds: str = "fiu", hint: str = ""
) -> npt.NDArray[Any]:
    """Read a dataset of numbers, whose shape has one of the allowed numbers of axes.

    ``kinds`` are allowed NumPy kinds: ``f`` floating, ``i`` and ``u`` integer, ``S`` bytes;
    ``hint`` says what to do if there is no such dataset. Raises BagError if the dataset is missing,
    of another kind, outside the file, or larger than the bytes of the file can hold.
    """
    dataset = find_item(file, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim not in ndim:
        raise BagError(
            file.filename, actual=f"no {ndim[0]}-dimensional dataset {name!r}", hint=hint
        )
    if dataset.dtype.kind not in kinds:
        expected = "floating-point numbers" if kinds == "f" else "numbers"
        raise BagError(file.filename, actual=f"{name!r} holds {dataset.dtype}", expected=expected)
    if dataset.is_virtual or dataset.external:
        raise BagError(
            file.filename,
            actual=f"the values of {name!r} are in other files, which are not opened",
            expected="data in the file itself",
        )
    if unknown := _filter_ids(dataset) - _FILTERS.keys():
        raise BagError(
            file.filename,
            actual=f"the values of {name!r} are compressed by filter {min(unknown)}, a plug-in",
            expected=f"one of {', '.join(_FILTERS.values())}",
        )
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if n_bytes > (n_allowed := _allowed_bytes(file, dataset)):
        raise BagError(
            file.filename,
            actual=f"{name!r} states {dataset.shape} values, {n_bytes:,} bytes",
            expected=f"at most {n_allowed:,}, from what the file holds",
        )
    return np.asarray(dataset[()])


def read_attributes(item: h5py.File | h5py.Group | h5py.Dataset) -> dict[str, Any]:
    """Return attributes as plain Python values; arrays become tuples, empty ones None.

    Values of variable length other than texts, and long lists of texts, become None as well: a few
    bytes of them may refer to any number of values. Raises BagError if one is larger than 1 MiB.
    """
    values: dict[str, Any] = {}
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            values[name] = None
            continue
        n_bytes = attribute.get_storage_size()
        if n_bytes > _MAX_ATTRIBUTE_BYTES:
            raise BagError(
                item.file.filename,
                actual=f"attribute {name!r} of {n_bytes:,} bytes",
                expected=f"at most {_MAX_ATTRIBUTE_BYTES:,}",
            )
        values[name] = None if _is_variable_length(attribute) else _to_plain(item.attrs[name])
    return values


def _allowed_bytes(file: h5py.File, dataset: h5py.Dataset) -> int:
    n_file_bytes = Path(file.filename).stat().st_size
    if dataset.id.get_create_plist().get_nfilters():
        return max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * n_file_bytes)
    return min(n_file_bytes, int(dataset.id.get_storage_size()))


def _is_variable_length(attribute: Any) -> bool:
    """Return whether an attribute may refer to any number of values."""
    if not attribute.dtype.hasobject:
        return False
    is_text = h5py.check_string_dtype(attribute.dtype) is not None
    return not is_text or math.prod(attribute.shape) > _MAX_TEXTS


def _filter_ids(dataset: h5py.Dataset) -> set[int]:
    properties = dataset.id.get_create_plist()
    return {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
