"""Rows of the arrays in a packed store, each contiguous range of them in one read.

The arrays are zarr version 3, sharded and uncompressed, with every chunk present, so rows that
follow each other in a shard are neighbouring bytes of one file. zarr's own reader decodes them
chunk by chunk: from a local folder it takes 10 to 15 times as long for embeddings and 5 times as
long for whole bags, longer than HDF5. Here the index of a shard is read once and compared with the
index that an uncompressed shard must have; from then on a range of rows costs one read of a file or
one range request. Any other zarr layout, however valid, is refused: nothing is decompressed, and no
missing chunk is replaced by zeros.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
from fsspec.implementations.local import LocalFileSystem

from features.errors import CONTENT_ERRORS, BagError
from features.utils.paths import parse_url

__all__ = ["ObjectStore", "ShardedArray", "read_json"]

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<") for name in ("uint8", "int64", "float16", "float32")
}
_PLAIN_CODECS = ({"name": "bytes"}, {"name": "bytes", "configuration": {"endian": "little"}})
_CHECKSUM_BYTES = 4
"""Bytes of the CRC-32C that follows the index of a shard."""
_MAX_JSON_BYTES = 1 << 20
_MAX_SIZE = 2**40
"""Limit of each size that a header states; keeps their products small."""


class ObjectStore:
    """Named files of a folder, or objects behind a URL that fsspec knows.

    A local folder that is replaced after the store was opened is refused. Raises BagError if the
    URL cannot be served.
    """

    def __init__(self, path: Path | str) -> None:
        url = parse_url(path)
        self.name = url or str(path)
        self._filesystem: Any = LocalFileSystem()
        self._root = str(Path(path).absolute())
        try:
            if url is not None:
                self._filesystem, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # Each fsspec back end raises errors of its own kinds.
            raise self._unreadable(self.name, error) from error
        self._is_local = url is None
        self._stamp = self._read_stamp()

    def size(self, key: str) -> int:
        """Return the size of a file in bytes; -1 where there is none."""
        try:
            return int(self._filesystem.size(f"{self._root}/{key}"))
        except FileNotFoundError:
            return -1
        except Exception as error:
            raise self._unreadable(key, error) from error

    def read_into(self, key: str, start: int, target: memoryview) -> int:
        """Fill ``target`` with the bytes from ``start`` on, and return how many there were."""
        if self._read_stamp() != self._stamp:
            raise BagError(
                self.name, actual="another store than when it was opened",
                expected="the same one", hint="Leave bags alone while they are read.",
            )  # fmt: skip
        path = f"{self._root}/{key}"
        try:
            if self._is_local:  # Saves the copy that a bytes object would cost.
                with self._filesystem.open(path, "rb") as file:
                    file.seek(start)
                    return int(file.readinto(target))
            content = self._filesystem.cat_file(path, start=start, end=start + len(target))
        except Exception as error:
            raise self._unreadable(key, error) from error
        content = content[: len(target)]
        target[: len(content)] = content
        return len(content)

    def _read_stamp(self) -> tuple[int, int]:
        """Return inode and time of change of a local store's header."""
        try:
            header = Path(self._root, "zarr.json").stat() if self._is_local else None
        except OSError:
            header = None
        return (header.st_ino, header.st_mtime_ns) if header else (0, 0)

    def _unreadable(self, key: str, error: Exception) -> BagError:
        return BagError(
            self.name, actual=f"{key} cannot be read ({type(error).__name__}: {error})",
            expected="a file or object there, and permission to read it",
        )  # fmt: skip


def read_json(store: ObjectStore, key: str) -> Any:
    """Return the content of a JSON file; None where there is none.

    Raises BagError if it is larger than 1 MiB, or not JSON.
    """
    n_bytes = store.size(key)
    if n_bytes < 0:
        return None
    if n_bytes > _MAX_JSON_BYTES:
        raise BagError(
            store.name,
            actual=f"{key} of {n_bytes:,} bytes",
            expected=f"at most {_MAX_JSON_BYTES:,}",
        )
    content = bytearray(n_bytes)
    store.read_into(key, 0, memoryview(content))
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BagError(store.name, actual=f"{key} is not JSON", expected="JSON") from error


class ShardedArray:
    """One array of a packed store, shape (rows, ...).

    Raises BagError if it is missing, or not laid out as uncompressed shards of rows.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name
        header = read_json(store, f"{name}/zarr.json")
        if header is None:
            raise BagError(store.name, actual=f"no array {name!r}", expected="a packed store")
        try:
            self.shape, self.dtype, self._shard_rows, self._chunk_rows = _parse_layout(header)
        except CONTENT_ERRORS as error:
            raise BagError(
                store.name,
                actual=f"array {name!r} has another layout ({error})",
                expected="uncompressed shards of rows, as 'mil bags pack' writes them",
            ) from error
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._checked: set[int] = set()

    def read(self, first: int, n_rows: int) -> npt.NDArray[Any]:
        """Return the rows from ``first`` on, shape (n_rows, *shape[1:]).

        Memory is allocated only after the shards that must hold the rows have been checked. Raises
        BagError if the array has no such rows, or a shard is missing, truncated or of another
        layout.
        """
        if not 0 <= first <= first + n_rows <= self.shape[0]:
            raise self._damaged(f"rows {first} to {first + n_rows}", f"at most {self.shape[0]}")
        end, size = first + n_rows, self._shard_rows
        shards = range(first // size, -(-end // size)) if n_rows else range(0)
        for shard in shards:
            self._check(shard)
        rows = np.empty((n_rows, *self.shape[1:]), self.dtype)
        target = rows.reshape(-1).view(np.uint8).data
        done = 0
        for shard in shards:
            start, stop = max(first - shard * size, 0), min(end - shard * size, size)
            part = target[done : done + (stop - start) * self._row_bytes]
            n_read = self._store.read_into(self._key(shard), start * self._row_bytes, part)
            if n_read != len(part):
                raise self._damaged(f"{self._key(shard)} is truncated", f"{len(part):,} bytes more")
            done += len(part)
        return rows

    def _check(self, shard: int) -> None:
        """Raise if the chunks of a shard are not consecutive, according to its index.

        Chunks after the last row of the array may be present or not.
        """
        if shard in self._checked:
            return
        n_rows = min(self._shard_rows, self.shape[0] - shard * self._shard_rows)
        n_chunks, n_used = self._shard_rows // self._chunk_rows, -(-n_rows // self._chunk_rows)
        chunk_bytes = self._chunk_rows * self._row_bytes
        key, n_index_bytes = self._key(shard), 16 * n_chunks + _CHECKSUM_BYTES
        expected = n_used * chunk_bytes + n_index_bytes
        if (n_bytes := self._store.size(key)) < expected:
            actual = f"{key} has {n_bytes:,} bytes" if n_bytes >= 0 else f"{key} is missing"
            raise self._damaged(actual, f"{expected:,} bytes")
        index = np.empty((n_used, 2), "<u8")
        self._store.read_into(key, n_bytes - n_index_bytes, index.reshape(-1).view(np.uint8).data)
        consecutive = np.arange(n_used, dtype=np.uint64) * np.uint64(chunk_bytes)
        if not ((index[:, 0] == consecutive).all() and (index[:, 1] == chunk_bytes).all()):
            raise self._damaged(f"chunks of {key} are in another order", "consecutive chunks")
        self._checked.add(shard)

    def _key(self, shard: int) -> str:
        return "/".join([self._name, "c", str(shard), *["0"] * (len(self.shape) - 1)])

    def _damaged(self, actual: str, expected: str) -> BagError:
        return BagError(
            self._store.name, actual=actual, expected=expected, hint="Pack the bags again."
        )


def _parse_layout(header: Any) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """Return shape, type, rows per shard and rows per chunk from an array's ``zarr.json``."""
    shape = tuple(_parse_size(size) for size in header["shape"])
    (codec,) = header["codecs"]
    inner = codec["configuration"]
    grid = header["chunk_grid"]
    shard = [_parse_size(size) for size in grid["configuration"]["chunk_shape"]]
    chunk = [_parse_size(size) for size in inner["chunk_shape"]]
    checks = {
        "zarr": (header["zarr_format"], header["node_type"]) == (3, "array"),
        "grid": grid["name"] == "regular",
        "keys": header["chunk_key_encoding"]
        in ({"name": "default"}, {"name": "default", "configuration": {"separator": "/"}}),
        "codecs": codec["name"] == "sharding_indexed"
        and inner["codecs"] in ([plain] for plain in _PLAIN_CODECS),
        "index": [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
        and inner.get("index_location", "end") == "end",
        "storage": not header.get("storage_transformers"),
        "shape": bool(shape) and math.prod(shape[1:]) < _MAX_SIZE,
        "rows": tuple(shard[1:]) == tuple(chunk[1:]) == shape[1:]
        and 0 < chunk[0] <= shard[0]
        and shard[0] % chunk[0] == 0,
    }
    if failed := [name for name, passed in checks.items() if not passed]:
        raise ValueError(", ".join(failed))
    return shape, _DTYPES[header["data_type"]], shard[0], chunk[0]


def _parse_size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SIZE:
        raise ValueError(f"size {value!r:.40}")
    return value
