"""Safe codecs for untrusted zarr arrays: known ones only, limited to the size of a chunk.

A chunk names its own codecs. Some of them unpickle, which runs arbitrary code (numcodecs before
0.16.6 did so by default); others may expand a few bytes to a thousand times their length.
"""

from __future__ import annotations

import bz2
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
import zarr
from numcodecs.abc import Codec
from zarr.abc.codec import BytesBytesCodec

from features.slides.zeroed import ZEROED, has_zeroed_data

__all__ = ["with_size_limits"]

_STORED = 2
"""Flag of blosc for data that are not compressed."""
_SLACK_BYTES = 64
"""Bytes that checksums between codecs may add."""
_PLAIN = {"bytes", "crc32c", "delta", "shuffle", "transpose"}
"""Codecs that keep the size."""


def with_size_limits(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the array, of the same shape, with codecs that refuse chunks of too many bytes.

    ``array`` is of zarr version 2 or 3. Raises ValueError if it names any codec except blosc, bz2,
    gzip, lz4, zlib, zstd and those that keep the size.
    """
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        for codec in metadata.filters or ():
            _check_known(codec.codec_id, _PLAIN)
        if metadata.compressor is None:
            return array
        _check_known(metadata.compressor.codec_id, _SIZES)
        n_bytes = math.prod(array.chunks) * array.dtype.itemsize
        limited = replace(metadata, compressor=_LimitedV2(metadata.compressor, n_bytes))
    else:
        limited = replace(metadata, codecs=tuple(map(_with_limit, metadata.codecs)))
    return zarr.Array(zarr.AsyncArray(limited, array.store_path))


def _with_limit(codec: Any) -> Any:
    """A codec of zarr 3, with its inner codecs, limited to the size of a chunk."""
    name = codec.to_dict()["name"]
    if name == "sharding_indexed":
        inner = tuple(map(_with_limit, codec.codecs))
        index = tuple(map(_with_limit, codec.index_codecs))
        return type(codec)(
            chunk_shape=codec.chunk_shape, codecs=inner, index_codecs=index,
            index_location=codec.index_location,
        )  # fmt: skip
    _check_known(name, {*_PLAIN, *_SIZES})
    return _LimitedV3(codec, name) if name in _SIZES else codec


def _check_known(name: str, known: Any) -> None:
    if name not in known:
        raise ValueError(f"chunks in {name!r}, a codec that is not read from untrusted files")


class _LimitedV2(Codec):  # type: ignore[misc] # numcodecs has no types
    """A compressor of zarr 2 that refuses to unpack more than a chunk."""

    codec_id = "limited"

    def __init__(self, inner: Any, n_bytes: int) -> None:
        self._inner, self._n_bytes = inner, n_bytes

    def decode(self, data: Any, out: Any = None) -> Any:
        _check_size(self._inner.codec_id, data, self._n_bytes)
        return self._inner.decode(data, out)

    def encode(self, data: Any) -> Any:
        return self._inner.encode(data)


@dataclass(frozen=True)
class _LimitedV3(BytesBytesCodec):
    """A compressor of zarr 3 that refuses to unpack more than a chunk."""

    inner: Any
    name: str
    is_fixed_size = False

    def to_dict(self) -> Any:
        return self.inner.to_dict()

    def evolve_from_array_spec(self, array_spec: Any) -> _LimitedV3:
        return _LimitedV3(self.inner.evolve_from_array_spec(array_spec), self.name)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return int(self.inner.compute_encoded_size(input_byte_length, chunk_spec))

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        n_bytes = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        _check_size(self.name, chunk_bytes.as_numpy_array(), n_bytes)
        (decoded,) = await self.inner.decode([(chunk_bytes, chunk_spec)])
        return decoded


def _check_size(name: str, data: Any, n_bytes: int) -> None:
    """Raise ValueError for data that unpack to more than ``n_bytes``, are cut off or zeroed."""
    limit, stream = n_bytes + _SLACK_BYTES, np.ascontiguousarray(data).tobytes()
    n_least = max(16, _size_in(12, 16)(stream, limit)) if name == "blosc" else 0
    if len(stream) < n_least:
        # Its decoder does not look at the length, and goes on in other memory.
        raise ValueError(f"blosc of {len(stream):,} bytes where {n_least:,} should be")
    is_stored = name == "blosc" and stream[2] & _STORED
    if name in {"blosc", "lz4", "zstd"} and not is_stored and has_zeroed_data(stream):
        raise ValueError(ZEROED)  # the others have checksums
    if _SIZES[name](stream, limit) > limit:
        raise ValueError(f"{name} that unpacks to more than the {n_bytes:,} bytes of a chunk")


def _size_in(start: int, end: int) -> Callable[[bytes, int], int]:
    """Size stored in the header, in bytes from ``start`` to ``end``."""
    return lambda data, _: int.from_bytes(data[start:end], "little")


def _size_of_stream(unpacker: Callable[[], Any]) -> Callable[[bytes, int], int]:
    """Size by unpacking, which stops beyond the limit."""

    def measure(data: bytes, limit: int) -> int:
        n_bytes = 0
        while data and n_bytes <= limit:
            stream = unpacker()
            n_bytes += len(stream.decompress(data, limit + 1 - n_bytes))
            data = stream.unused_data
        return n_bytes

    return measure


def _size_of_zstd(data: bytes, limit: int) -> int:
    """Size in the frame header; where there is none, by unpacking."""
    if data[:4] != _ZSTD_MAGIC or len(data) < 9:
        return 0
    size_kind, is_single, dictionary_kind = data[4] >> 6, data[4] >> 5 & 1, data[4] & 3
    n_bytes = (is_single, 2, 4, 8)[size_kind]
    if n_bytes:
        start = 6 - is_single + (0, 1, 2, 4)[dictionary_kind]
        size = int.from_bytes(data[start : start + n_bytes], "little")
        return size + 256 if n_bytes == 2 else size
    try:
        return len(imagecodecs.zstd_decode(data, out=limit))
    except imagecodecs.ZstdError:
        return limit + 1


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SIZES: dict[str, Callable[[bytes, int], int]] = {
    "blosc": _size_in(4, 8),
    "bz2": _size_of_stream(bz2.BZ2Decompressor),
    "gzip": _size_of_stream(partial(zlib.decompressobj, 31)),
    "lz4": _size_in(0, 4),
    "zlib": _size_of_stream(zlib.decompressobj),
    "zstd": _size_of_zstd,
}
"""Functions by codec that return the unpacked bytes of a chunk; inexact beyond the limit."""
