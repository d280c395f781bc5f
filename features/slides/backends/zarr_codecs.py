"""Codecs of zarr arrays that nobody vouches for: known ones only, held to the size of a chunk.

A chunk names its own codecs. Some of them unpickle, which runs any program (numcodecs before 0.16.6
did so unasked); others give back whatever they were given, a thousand times as long.
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

__all__ = ["with_size_limits"]

_SLACK_BYTES = 64
"""What checksums between codecs may add."""
_PLAIN = {"bytes", "crc32c", "delta", "shuffle", "transpose"}
"""Codecs that give back as much as they are given."""


def with_size_limits(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, whose chunks are refused where they unpack to more than a chunk.

    Parameters
    ----------
    array
        Of zarr version 2 or 3, opened for reading.

    Raises
    ------
    ValueError
        If it names any codec but blosc, bz2, gzip, lz4, zlib and zstd, and those that keep
        the size.
    """
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        for codec in metadata.filters or ():
            _require(codec.codec_id, _PLAIN)
        if metadata.compressor is None:
            return array
        _require(metadata.compressor.codec_id, _SIZES)
        n_bytes = math.prod(array.chunks) * array.dtype.itemsize
        held = replace(metadata, compressor=_LimitedV2(metadata.compressor, n_bytes))
    else:
        held = replace(metadata, codecs=tuple(map(_held, metadata.codecs)))
    return zarr.Array(zarr.AsyncArray(held, array.store_path))


def _held(codec: Any) -> Any:
    """A codec of zarr 3, and those inside it, held to the size of a chunk."""
    name = codec.to_dict()["name"]
    if name == "sharding_indexed":
        inner = tuple(map(_held, codec.codecs))
        index = tuple(map(_held, codec.index_codecs))
        return type(codec)(
            chunk_shape=codec.chunk_shape, codecs=inner, index_codecs=index,
            index_location=codec.index_location,
        )  # fmt: skip
    _require(name, {*_PLAIN, *_SIZES})
    return _LimitedV3(codec, name) if name in _SIZES else codec


def _require(name: str, known: Any) -> None:
    if name not in known:
        raise ValueError(f"chunks in {name!r}, which is not read from files of others")


class _LimitedV2(Codec):  # type: ignore[misc] # numcodecs has no types
    """A compressor of zarr 2 that refuses to unpack more than a chunk."""

    codec_id = "held"

    def __init__(self, inner: Any, n_bytes: int) -> None:
        self._inner, self._n_bytes = inner, n_bytes

    def decode(self, data: Any, out: Any = None) -> Any:
        _require_size(self._inner.codec_id, data, self._n_bytes)
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
        _require_size(self.name, chunk_bytes.as_numpy_array(), n_bytes)
        (decoded,) = await self.inner.decode([(chunk_bytes, chunk_spec)])
        return decoded


def _require_size(name: str, data: Any, n_bytes: int) -> None:
    """Refuse what unpacks to more than ``n_bytes``, without unpacking more than that."""
    most = n_bytes + _SLACK_BYTES
    if _SIZES[name](np.ascontiguousarray(data).tobytes(), most) > most:
        raise ValueError(f"{name} that unpacks to more than the {n_bytes:,} bytes of a chunk")


def _size_in(start: int, end: int) -> Callable[[bytes, int], int]:
    """Size that stands in the header."""
    return lambda data, _: int.from_bytes(data[start:end], "little")


def _size_of_stream(unpacker: Callable[[], Any]) -> Callable[[bytes, int], int]:
    """Size by unpacking, given up where there is more than enough."""

    def measure(data: bytes, most: int) -> int:
        n_bytes = 0
        while data and n_bytes <= most:
            stream = unpacker()
            n_bytes += len(stream.decompress(data, most + 1 - n_bytes))
            data = stream.unused_data
        return n_bytes

    return measure


def _size_of_zstd(data: bytes, most: int) -> int:
    """Size in the header of the frame; where there is none, by unpacking."""
    if data[:4] != _ZSTD_MAGIC or len(data) < 9:
        return 0
    size_kind, is_single, dictionary_kind = data[4] >> 6, data[4] >> 5 & 1, data[4] & 3
    n_bytes = (is_single, 2, 4, 8)[size_kind]
    if n_bytes:
        start = 6 - is_single + (0, 1, 2, 4)[dictionary_kind]
        told = int.from_bytes(data[start : start + n_bytes], "little")
        return told + 256 if n_bytes == 2 else told
    try:
        return len(imagecodecs.zstd_decode(data, out=most))
    except imagecodecs.ZstdError:
        return most + 1


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SIZES: dict[str, Callable[[bytes, int], int]] = {
    "blosc": _size_in(4, 8),
    "bz2": _size_of_stream(bz2.BZ2Decompressor),
    "gzip": _size_of_stream(partial(zlib.decompressobj, 31)),
    "lz4": _size_in(0, 4),
    "zlib": _size_of_stream(zlib.decompressobj),
    "zstd": _size_of_zstd,
}
"""By codec, what a chunk unpacks to; more than enough need not be exact."""
