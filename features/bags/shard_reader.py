"""Rows of the arrays in a packed store, each stretch of them in one read.

The arrays are zarr version 3, sharded and plain: not compressed, every chunk there. Rows that
follow each other in a shard are therefore neighbouring bytes of one file. A general zarr reader
asks for a shard's index and then for chunk after chunk; here the index is read once and compared
with what a plain shard must say, and from then on rows cost one read, of a file or of a part of
an object behind a URL. Any other zarr, however valid, is refused: nothing is unpacked, and nothing
that is missing is taken for zeros.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
import numpy.typing as npt

from features.errors import BagError
from features.utils.paths import parse_url

__all__ = ["ObjectStore", "ShardedArray", "open_object_store", "read_json"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "int64": np.dtype("<i8"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}
_PLAIN = ({"name": "bytes"}, {"name": "bytes", "configuration": {"endian": "little"}})
_CHECKSUM_BYTES = 4
"""CRC-32C behind the index of a shard."""
_MOST_JSON_BYTES = 1 << 20
_MOST = 2**40
"""Rows, columns or bytes of a row that nobody has; keeps products of claims small."""


class ObjectStore(Protocol):
    """Named files below one place."""

    where: str
    """The place, for messages."""

    def size(self, key: str) -> int:
        """Bytes of a file; -1 where there is none."""
        ...

    def read_into(self, key: str, start: int, target: memoryview) -> int:
        """Fill ``target`` from byte ``start`` on; returns how many bytes there were."""
        ...


def open_object_store(place: Path | str) -> ObjectStore:
    """Files of a folder, or behind a URL that fsspec knows.

    Raises
    ------
    BagError
        If the URL cannot be served.
    """
    url = parse_url(place)
    return _Remote(url) if url else _Local(Path(place))


def read_json(files: ObjectStore, key: str) -> Any:
    """What a JSON file of at most 1 MiB says; None where there is none.

    Raises
    ------
    BagError
        If it is larger, or no JSON.
    """
    n_bytes = files.size(key)
    if n_bytes < 0:
        return None
    if n_bytes > _MOST_JSON_BYTES:
        raise BagError(
            files.where,
            actual=f"{key} of {n_bytes:,} bytes",
            expected=f"at most {_MOST_JSON_BYTES:,}",
        )
    content = bytearray(n_bytes)
    files.read_into(key, 0, memoryview(content))
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BagError(files.where, actual=f"{key} is no JSON") from error


class ShardedArray:
    """One array of a packed store.

    Parameters
    ----------
    files
        The store.
    name
        The array.

    Raises
    ------
    BagError
        If it is missing, or laid out in another way than plain shards of rows.
    """

    def __init__(self, files: ObjectStore, name: str) -> None:
        self._files, self._name = files, name
        about = read_json(files, f"{name}/zarr.json")
        if about is None:
            raise BagError(files.where, actual=f"no array {name!r}", expected="a packed store")
        try:
            self.shape, self.dtype, self._shard_rows, self._chunk_rows = _layout_of(about)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BagError(
                files.where,
                actual=f"array {name!r} is laid out in another way ({error})",
                expected="plain shards of rows, as 'mil bags pack' writes them",
            ) from error
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._checked: set[int] = set()

    def read(self, first: int, n_rows: int) -> npt.NDArray[Any]:
        """Rows from ``first`` on, shape (n_rows, *shape[1:]).

        Nothing is allocated before the shards that must hold them were seen to be there.

        Raises
        ------
        BagError
            If the array has no such rows, or a shard is missing, cut off or of another make.
        """
        if not 0 <= first <= first + n_rows <= self.shape[0]:
            raise self._damaged(f"rows {first} to {first + n_rows}", f"at most {self.shape[0]}")
        stretches = self._shard_slices(first, n_rows)
        for shard, _, _ in stretches:
            self._check(shard)
        rows = np.empty((n_rows, *self.shape[1:]), self.dtype)
        target = rows.reshape(-1).view(np.uint8).data
        done = 0
        for shard, start, count in stretches:
            part = target[done : done + count * self._row_bytes]
            n_read = self._files.read_into(self._key(shard), start * self._row_bytes, part)
            if n_read != len(part):
                raise self._damaged(f"{self._key(shard)} is cut off", f"{len(part):,} bytes more")
            done += len(part)
        return rows

    def _shard_slices(self, first: int, n_rows: int) -> list[tuple[int, int, int]]:
        """Shard, first row in it, and rows, for every shard that holds some of the rows."""
        parts = []
        while n_rows:
            shard, start = divmod(first, self._shard_rows)
            count = min(n_rows, self._shard_rows - start)
            parts.append((shard, start, count))
            first, n_rows = first + count, n_rows - count
        return parts

    def _check(self, shard: int) -> None:
        """See that a shard's chunks lie one after the other, as its index says.

        Behind the last rows of the array, chunks may be there or not.
        """
        if shard in self._checked:
            return
        n_rows = min(self._shard_rows, self.shape[0] - shard * self._shard_rows)
        n_chunks, n_held = self._shard_rows // self._chunk_rows, -(-n_rows // self._chunk_rows)
        chunk_bytes = self._chunk_rows * self._row_bytes
        key, n_index_bytes = self._key(shard), 16 * n_chunks + _CHECKSUM_BYTES
        expected = n_held * chunk_bytes + n_index_bytes
        if (n_bytes := self._files.size(key)) < expected:
            found = f"{key} has {n_bytes:,} bytes" if n_bytes >= 0 else f"{key} is missing"
            raise self._damaged(found, f"{expected:,} bytes")
        index = np.empty((n_held, 2), "<u8")
        self._files.read_into(key, n_bytes - n_index_bytes, index.reshape(-1).view(np.uint8).data)
        plain = np.arange(n_held, dtype=np.uint64) * np.uint64(chunk_bytes)
        if not ((index[:, 0] == plain).all() and (index[:, 1] == chunk_bytes).all()):
            raise self._damaged(f"chunks of {key} lie in another order", "one after the other")
        self._checked.add(shard)

    def _key(self, shard: int) -> str:
        return "/".join([self._name, "c", str(shard), *["0"] * (len(self.shape) - 1)])

    def _damaged(self, found: str, expected: str) -> BagError:
        return BagError(
            self._files.where, actual=found, expected=expected, hint="Pack the bags again."
        )


def _layout_of(about: Any) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """Shape, type, rows of a shard and rows of a chunk, out of an array's ``zarr.json``."""
    shape = tuple(_size(size) for size in about["shape"])
    (codec,) = about["codecs"]
    inner = codec["configuration"]
    grid = about["chunk_grid"]
    shard = [_size(size) for size in grid["configuration"]["chunk_shape"]]
    chunk = [_size(size) for size in inner["chunk_shape"]]
    named = {
        "zarr": (about["zarr_format"], about["node_type"]) == (3, "array"),
        "grid": grid["name"] == "regular",
        "keys": about["chunk_key_encoding"]
        in ({"name": "default"}, {"name": "default", "configuration": {"separator": "/"}}),
        "codecs": codec["name"] == "sharding_indexed" and inner["codecs"] in ([c] for c in _PLAIN),
        "index": [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
        and inner.get("index_location", "end") == "end",
        "storage": not about.get("storage_transformers"),
        "shape": bool(shape) and math.prod(shape[1:]) < _MOST,
        "rows": tuple(shard[1:]) == tuple(chunk[1:]) == shape[1:]
        and 0 < chunk[0] <= shard[0]
        and shard[0] % chunk[0] == 0,
    }
    if wrong := [name for name, is_plain in named.items() if not is_plain]:
        raise ValueError(", ".join(wrong))
    return shape, _DTYPES[about["data_type"]], shard[0], chunk[0]


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST:
        raise ValueError(f"size {value!r:.40}")
    return value


class _Local:
    """Files of a folder; refuses to go on in a folder that was replaced meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self._folder = folder
        self._stamp = self._stamp_now()

    def size(self, key: str) -> int:
        try:
            return (self._folder / key).stat().st_size
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise self._unreadable(key, error) from error

    def read_into(self, key: str, start: int, target: memoryview) -> int:
        if self._stamp_now() != self._stamp:
            raise BagError(
                self.where, actual="another store than a moment ago", expected="the same one",
                hint="Leave bags alone while they are read.",
            )  # fmt: skip
        done = 0
        try:
            with (self._folder / key).open("rb", buffering=0) as file:
                file.seek(start)
                while done < len(target) and (n_read := file.readinto(target[done:])):
                    done += n_read
        except OSError as error:
            raise self._unreadable(key, error) from error
        return done

    def _stamp_now(self) -> tuple[int, int]:
        try:
            found = (self._folder / "zarr.json").stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def _unreadable(self, key: str, error: OSError) -> BagError:
        return BagError(
            self.where,
            actual=f"{key} cannot be read ({error.strerror or error})",
            expected="a file",
        )


class _Remote:
    """Objects behind a URL."""

    def __init__(self, url: str) -> None:
        self.where = url
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # fsspec meets what is wrong in too many ways to list
            raise self._unreadable(url, error) from error

    def size(self, key: str) -> int:
        try:
            return int(self._system.size(f"{self._root}/{key}"))
        except FileNotFoundError:
            return -1
        except Exception as error:
            raise self._unreadable(key, error) from error

    def read_into(self, key: str, start: int, target: memoryview) -> int:
        try:
            content = self._system.cat_file(
                f"{self._root}/{key}", start=start, end=start + len(target)
            )
        except Exception as error:
            raise self._unreadable(key, error) from error
        part = content[: len(target)]
        target[: len(part)] = part
        return len(part)

    def _unreadable(self, key: str, error: Exception) -> BagError:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return BagError(
            self.where,
            actual=f"{key} cannot be read ({said})",
            expected="an object there, and leave to read it",
        )
