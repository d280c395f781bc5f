"""Heaps of texts in HDF5 files, over which the library steps without checking their lengths."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.bags.h5 import read_bag, read_meta, write_bag
from features.bags.safe_hdf5 import _CheckedFile, open_h5, read_array, read_attributes
from features.errors import BagError
from tests.fakes import make_bag

HEAP = b"GCOL\x01\0\0\0"


def damaged(path: Path, *, skip: int, value: bytes) -> Path:
    """The bag with other bytes in the first of its heaps."""
    data = bytearray(path.read_bytes())
    start = data.index(HEAP) + skip
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_bag(tmp_path / "s.h5", make_bag("s"))
    return tmp_path / "s.h5"


@pytest.mark.parametrize(
    ("skip", "value", "message"),
    [
        (16, b"\0" * 16, "a heap with a text of 0 bytes"),  # The library would loop for ever.
        (24, b"\xf8" + b"\xff" * 7, "a heap with a text of 18,446,744,073,709,551,608 bytes"),
        (24, b"\xff\xff\0\0\0\0\0\0", "a heap with a text of 65,535 bytes"),
        (8, b"\0\0\0\0\1\0\0\0", "a heap of 4,294,967,296 bytes"),
    ],
)
def test_a_heap_without_an_end_is_refused_and_not_walked(
    path: Path, skip: int, value: bytes, message: str
) -> None:
    damaged(path, skip=skip, value=value)
    for read in (read_meta, read_bag):
        with pytest.raises(BagError, match="damaged") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    with _CheckedFile(path) as watched:
        watched.seek(path.read_bytes().index(HEAP) + 3)  # even where a read begins inside its name
        with pytest.raises(OSError, match=message):
            watched.readinto(bytearray(64))


def test_addresses_of_another_size_are_refused(tmp_path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plist.set_sizes(4, 4)
    h5py.h5f.create(os.fsencode(tmp_path / "s.h5"), fcpl=plist).close()
    with pytest.raises(BagError, match="addresses of another size"):
        read_meta(tmp_path / "s.h5")


def test_values_packed_by_a_plug_in_are_refused_and_the_plug_in_is_not_sought(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["features"]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((4, 8))
        created.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL)  # zstd, whose plug-in is not installed
        kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4, 8))
        h5py.h5d.create(file.id, b"features", kind, space, dcpl=created)
    with pytest.raises(BagError, match="compressed by filter 32015, a plug-in"):
        read_bag(path)


def test_lists_of_one_large_text_a_thousand_times_are_not_made(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["few"] = ["a", "b"]
        file.attrs["many"] = ["x" * 100] * 1000
        numbers = np.empty(1, object)
        numbers[0] = np.arange(3)
        file.attrs.create("numbers", numbers, dtype=h5py.vlen_dtype(np.int64))
    with open_h5(path, expected="", hint="") as file:
        attributes = read_attributes(file)
    assert attributes["few"] == ("a", "b")
    assert attributes["many"] is None
    assert attributes["numbers"] is None


def test_long_texts_and_large_arrays_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "größe und ñ.h5"
    texts = [f"text {n} " * n for n in range(300)]
    values = np.random.default_rng(0).normal(size=(5000, 64)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["plain"] = values
        file.create_dataset("chunked", data=values, chunks=(100, 64), compression="gzip")
        for number, text in enumerate(texts):
            file.attrs[f"t{number}"] = text
    with open_h5(path, expected="", hint="") as file:
        assert file.filename == str(path)
        for name in ("plain", "chunked"):
            np.testing.assert_array_equal(read_array(file, name, ndim=(2,)), values)
        assert read_attributes(file) == {f"t{n}": text for n, text in enumerate(texts)}
