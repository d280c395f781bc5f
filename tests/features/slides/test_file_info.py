from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from features.errors import SlideError
from features.slides.file_info import content_hash, file_size, slide_size
from tests.features.slides.test_search import write_dicom


@pytest.fixture
def blocks_of_16_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.slides.file_info._BLOCK_BYTES", 16)
    monkeypatch.setattr("features.slides.file_info._WHOLE_BELOW_BYTES", 64)


@pytest.fixture
def memory() -> Iterator[str]:
    url = f"memory://{uuid4().hex}"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


def write_zarr(location: Any, *, seed: int = 0) -> Any:
    """An image of 100 chunks that all have the same size."""
    group = zarr.open_group(location, mode="w", zarr_format=2, attributes={"name": "image"})
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 40), np.uint8)
    group.create_array("0", data=pixels, chunks=(4, 4), compressors=None)
    return location


def test_a_file_is_told_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b.tif").write_bytes(b"same")
    (tmp_path / "c").write_bytes(b"sane")
    ids = [content_hash(tmp_path / name) for name in ("a", "b.tif", "c")]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 64
    assert content_hash(str(tmp_path / "a")) == ids[0]


@pytest.mark.usefixtures("blocks_of_16_bytes")
def test_of_a_large_file_size_first_and_last_bytes_count(tmp_path: Path) -> None:
    path, data = tmp_path / "a", np.arange(200, dtype=np.uint8).tobytes()
    ids = set()
    for content in (data, data + b"x", b"x" + data[1:], data[:-1] + b"x", data[:70] + data[71:]):
        path.write_bytes(content)
        ids.add(content_hash(path))
    assert len(ids) == 5


def test_a_folder_is_told_by_the_names_and_contents_of_its_files(tmp_path: Path) -> None:
    ids = set()
    for name, content in (("a", "x"), ("b", "x"), ("a", "y"), ("c/a", "x")):
        folder = tmp_path / uuid4().hex
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
        ids.add(content_hash(folder))
    assert len(ids) == 4


def test_copies_of_a_zarr_are_alike_wherever_they_lie(tmp_path: Path, memory: str) -> None:
    path = write_zarr(tmp_path / "s.zarr")
    url = write_zarr(f"{memory}/t.zarr")
    shutil.copytree(path, tmp_path / "copy")
    result = {
        content_hash(location)
        for location in (path, tmp_path / "copy", path.as_uri(), url, Path(url))
    }
    assert len(result) == 1
    assert content_hash(write_zarr(tmp_path / "other.zarr", seed=1)) not in result


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".zattrs", b'{"name": "another"}'),
        ("0/.zarray", b"{}"),
        ("0/0.0", b"longer than it was before"),
        ("0/99.99", b""),
    ],
)
def test_a_zarr_is_told_by_names_sizes_and_metadata(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = write_zarr(tmp_path / "s.zarr")
    before = content_hash(path)
    (path / name).write_bytes(content)
    assert content_hash(path) != before


def test_of_a_zarr_few_chunks_are_read_and_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zarr(tmp_path / "s.zarr")
    read: list[Path] = []
    original = Path.open

    def opened(self: Path, *mode: str) -> Any:
        read.append(self)
        return original(self, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        before = content_hash(path)
    chunks = {file for file in read if not file.name.startswith(".")}
    assert len(chunks) == 64
    assert len(chunks) < len(list((path / "0").rglob("[0-9]*")))
    changed = sorted(chunks)[5]
    changed.write_bytes(changed.read_bytes()[::-1])
    assert content_hash(path) != before


@pytest.mark.usefixtures("blocks_of_16_bytes")
def test_of_a_large_chunk_both_ends_count(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "s.zarr")
    shutil.rmtree(path / "0")
    ids = set()
    for content in (b"x" * 20, b"y" + b"x" * 19, b"x" * 19 + b"y", b"x" * 90, b"x" * 89 + b"y"):
        (path / "shard").write_bytes(content)
        ids.add(content_hash(path))
    assert len(ids) == 5


def test_where_nothing_is_listed_url_and_metadata_count(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise PermissionError

    urls = [write_zarr(f"{memory}/{name}.zarr") for name in "ab"]
    listed = content_hash(urls[0])
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "find", forbidden)
        ids = [content_hash(url) for url in urls]
        assert len({listed, *ids}) == 3
        fsspec.filesystem("memory").pipe(f"{urls[0]}/.zattrs", b"{}")
        assert content_hash(urls[0]) != ids[0]


@pytest.mark.parametrize(
    "location",
    ["gone.tif", "memory://gone/s.zarr", "file:///gone/s.zarr", "nonesuch://host/s.zarr"],
)
def test_what_is_not_there_is_a_clear_error(location: str) -> None:
    with pytest.raises(SlideError, match=r"its content cannot be read") as caught:
        content_hash(location)
    assert str(caught.value).startswith(f"{location}: ")


def test_the_size_of_a_slide_is_that_of_all_its_files(tmp_path: Path) -> None:
    tiff = tmp_path / "a.tif"
    tiff.write_bytes(bytes(70))
    (tmp_path / "s.vms").write_text("ImageFile=s-0.jpg\nMapFile=s_map.jpg\nMacroImage=absent.jpg\n")
    (tmp_path / "s-0.jpg").write_bytes(bytes(500))
    (tmp_path / "s_map.jpg").write_bytes(bytes(30))
    named = (tmp_path / "s.vms").stat().st_size
    assert file_size(tmp_path / "s.vms") == named
    assert slide_size(tmp_path / "s.vms") == named + 530
    assert slide_size(tiff) == 70
    assert slide_size(Path("s3://bucket/a.zarr")) is None


@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_the_size_of_a_dicom_slide_is_that_of_its_series_also_after_files_were_added(
    tmp_path: Path, suffix: str
) -> None:
    files = [write_dicom(tmp_path / f"{n}{suffix}", f"1.{n % 2}") for n in range(4)]
    (tmp_path / "notes.txt").write_text("no part")
    sizes = [path.stat().st_size for path in files]
    assert file_size(files[0]) == sizes[0]
    assert slide_size(files[0]) == sizes[0] + sizes[2]
    assert slide_size(files[1]) == sizes[1] + sizes[3]
    added = write_dicom(tmp_path / f"5{suffix}", "1.1")
    with added.open("ab") as file:
        file.write(bytes(100))
    assert slide_size(files[1]) == sizes[1] + sizes[3] + added.stat().st_size
    damaged = tmp_path / f"6{suffix}"
    damaged.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert slide_size(damaged) == 172
