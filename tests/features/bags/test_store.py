from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import zarr

from features.bags import store_writer
from features.bags.bag import IMAGE, Bag, BagRef
from features.bags.h5 import (
    find_bags,
    read_bag,
    read_bag_info,
    read_features,
    read_views,
    write_bag,
)
from features.bags.isolated_reader import IsolatedReader
from features.bags.store import BagStore, open_bags
from features.bags.store_writer import write_store
from features.bags.verify import verify_bags
from features.errors import BagError, OutputError
from features.filters.classifier import copy_filter
from tests.fakes import make_bag

SIZES = {"a": 7, "b": 0, "c": 40, "d": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four bags, one of them without tiles."""
    bags_dir = tmp_path / "bags"
    bags_dir.mkdir()
    for name, n_tiles in SIZES.items():
        reason = "" if n_tiles else "no tissue"
        bag = make_bag(name, n_tiles=n_tiles, empty_reason=reason)
        bag.tissue_fraction[:] = np.linspace(0, 1, n_tiles)
        write_bag(bags_dir / f"{name}.h5", bag)
    return bags_dir


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 8 embeddings in chunks of 2, so that bags extend over several."""
    monkeypatch.setattr(store_writer, "_SHARD_BYTES", 8 * 16)
    monkeypatch.setattr(store_writer, "_CHUNK_BYTES", 2 * 16)


def pack(folder: Path, store: Path, *, overwrite: bool = False) -> BagStore:
    write_store(
        folder,
        store,
        overwrite=overwrite,
        on_bag=lambda n_done, n_all: None,
        copy_filter=copy_filter,
    )
    return BagStore(store)


def memory_url() -> str:
    return f"memory://{uuid4().hex}/bags.zarr"


def assert_same(packed: BagRef, file: BagRef) -> None:
    ours, theirs = read_bag(packed), read_bag(file)
    assert ours.meta == theirs.meta
    assert ours.features.dtype == theirs.features.dtype
    assert ours.features.tobytes() == theirs.features.tobytes()
    assert ours.features_sha256 == theirs.features_sha256
    np.testing.assert_array_equal(ours.coords_px0, theirs.coords_px0)
    np.testing.assert_array_equal(ours.tissue_fraction, theirs.tissue_fraction)
    np.testing.assert_array_equal(ours.order, theirs.order)
    assert ours.source == theirs.source
    assert read_features(packed).tobytes() == read_features(file).tobytes()
    assert read_bag_info(packed) == read_bag_info(file)
    assert ours.features.flags.writeable


@pytest.mark.parametrize("remote", [False, True])
def test_every_bag_comes_out_of_a_store_as_it_went_in(
    folder: Path, tmp_path: Path, small_shards: None, remote: bool
) -> None:
    store = Path(memory_url()) if remote else tmp_path / "bags.zarr"
    packed = pack(folder, store)
    assert list(packed) == list(SIZES)
    for name, path in find_bags(folder).items():
        assert_same(packed[name], path)
    again = pack(store, tmp_path / "again.zarr")
    assert_same(again["c"], folder / "c.h5")


def test_a_plain_zarr_reader_sees_the_rows_of_all_bags(
    folder: Path, tmp_path: Path, small_shards: None
) -> None:
    pack(folder, tmp_path / "bags.zarr")
    store = zarr.open_group(tmp_path / "bags.zarr", mode="r")
    bags = [read_bag(path) for path in find_bags(folder).values()]
    features, coords, table = (store[name] for name in ("features", "coords", "bags"))
    assert isinstance(features, zarr.Array)
    assert isinstance(coords, zarr.Array)
    assert isinstance(table, zarr.Array)
    np.testing.assert_array_equal(features[:], np.concatenate([b.features for b in bags]))
    np.testing.assert_array_equal(coords[:], np.concatenate([b.coords_px0 for b in bags]))
    columns = json.loads(np.asarray(table[:]).tobytes())
    assert columns["slide_id"] == list(SIZES)
    assert columns["n_tiles"] == list(SIZES.values())
    assert store.attrs["complete"] is True


def test_the_table_alone_says_what_each_bag_says_about_itself(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "bags.zarr")
    for name in ("features", "coords", "tissue_fraction"):
        (tmp_path / "bags.zarr" / name / "c").rename(tmp_path / name)
    for name, path in find_bags(folder).items():
        assert read_bag_info(packed[name]) == read_bag_info(path)


def test_one_bag_in_float32_widens_the_store_and_no_other_bag(folder: Path, tmp_path: Path) -> None:
    bag = make_bag("e", n_tiles=3)
    write_bag(folder / "e.h5", replace(bag, features=bag.features.astype(np.float32) + 1e6))
    packed = pack(folder, tmp_path / "bags.zarr")
    for name, path in find_bags(folder).items():
        assert_same(packed[name], path)
    assert read_features(packed["e"]).dtype == np.float32
    assert read_features(packed["a"]).dtype == np.float16


def test_bags_of_images_keep_their_order_and_source(folder: Path, tmp_path: Path) -> None:
    bag = make_bag("e", n_tiles=3)
    series = Bag.from_series(
        bag.features, order=np.array([0, 2, 7]), source=("a.png", "ü.png", "c.png"),
        meta=replace(bag.meta, kind=IMAGE),
    )  # fmt: skip
    write_bag(folder / "e.h5", series)
    assert_same(pack(folder, tmp_path / "bags.zarr")["e"], folder / "e.h5")


def test_bags_without_any_tile_make_a_store_too(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", make_bag("a", n_tiles=0, empty_reason="no tissue"))
    assert_same(pack(tmp_path, tmp_path / "bags.zarr")["a"], tmp_path / "a.h5")


def test_a_bag_of_a_store_travels_to_another_process(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "bags.zarr")
    sent = pickle.dumps(packed["c"])
    assert len(sent) < 5000
    assert_same(pickle.loads(sent), folder / "c.h5")  # noqa: S301 - sent a line before


def test_bags_of_two_makes_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path
) -> None:
    bag = make_bag("d", n_tiles=1)
    fingerprint = replace(bag.meta.fingerprint, target_mpp=1.0)
    write_bag(folder / "d.h5", replace(bag, meta=replace(bag.meta, fingerprint=fingerprint)))
    with pytest.raises(
        BagError, match=r"d\.h5: made with --mpp 1; expected --mpp 0\.5 as in 3 of 4 bags"
    ):
        pack(folder, tmp_path / "bags.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["bags"]


@pytest.mark.parametrize("remote", [False, True])
def test_bags_with_views_come_out_with_them(
    tmp_path: Path, small_shards: None, remote: bool
) -> None:
    folder, store = tmp_path / "bags", Path(memory_url()) if remote else tmp_path / "bags.zarr"
    folder.mkdir()
    for name, n_tiles in SIZES.items():
        bag = make_bag(
            name, n_tiles=n_tiles, n_views=3, empty_reason="" if n_tiles else "no tissue"
        )
        if name == "c" and bag.views is not None:  # beyond the largest float16
            bag = replace(bag, views=bag.views.astype(np.float32) + 1e5)
        write_bag(folder / f"{name}.h5", bag)
    packed = pack(folder, store)
    for name, path in find_bags(folder).items():
        assert_same(packed[name], path)
        assert read_views(packed[name]).dtype == (np.float32 if name == "c" else np.float16)
        assert read_views(packed[name]).tobytes() == read_views(path).tobytes()


def test_views_that_changed_since_they_were_packed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bags").mkdir()
    write_bag(tmp_path / "bags" / "a.h5", make_bag("a", n_tiles=2, n_views=2))
    pack(tmp_path / "bags", tmp_path / "bags.zarr")
    views = zarr.open_group(tmp_path / "bags.zarr", mode="r+")["views"]
    assert isinstance(views, zarr.Array)
    views[1, 1, 0] = 77
    with pytest.raises(BagError, match="as when they were packed"):
        read_bag(BagStore(tmp_path / "bags.zarr")["a"])


def test_a_bag_without_views_has_none_to_read(folder: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "bags.zarr")
    with pytest.raises(BagError, match="bag 'a': no views; expected a bag with views"):
        read_views(packed["a"])


def test_a_bag_under_another_name_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a.h5").rename(folder / "x.h5")
    with pytest.raises(BagError, match=r"x\.h5: the bag of slide 'a'"):
        pack(folder, tmp_path / "bags.zarr")


def test_memory_holds_one_shard_whatever_the_bags_are(
    folder: Path, tmp_path: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = store_writer._StoreWriter._write_shard

    def watch(writer: store_writer._StoreWriter) -> None:
        written.append(len(writer._shard["features"]))
        write(writer)

    monkeypatch.setattr(store_writer._StoreWriter, "_write_shard", watch)
    pack(folder, tmp_path / "bags.zarr")
    assert set(written) == {8}
    assert len(written) == sum(SIZES.values()) // 8 + 1


class Killed(BaseException):
    """An exception that no code catches, as if the process were killed."""


@pytest.mark.parametrize("remote", [False, True])
def test_a_killed_pack_leaves_nothing_that_looks_whole(
    folder: Path, tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Path(memory_url()) if remote else tmp_path / "bags.zarr"

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store_writer._StoreWriter, "_write_table", die)
        patched.setattr("features.utils.files.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            pack(folder, store)
    with pytest.raises(BagError, match="not complete" if remote else "there is no zarr store"):
        BagStore(store)
    assert_same(pack(folder, store, overwrite=True)["c"], folder / "c.h5")


@pytest.mark.parametrize("remote", [False, True])
def test_a_store_is_replaced_only_when_asked_and_only_when_it_is_one(
    folder: Path, tmp_path: Path, remote: bool
) -> None:
    store = Path(memory_url()) if remote else tmp_path / "bags.zarr"
    pack(folder, store)
    (folder / "a.h5").unlink()
    with pytest.raises(OutputError, match=r"there is a packed store already.*--overwrite"):
        pack(folder, store)
    assert "a" in BagStore(store)
    assert "a" not in pack(folder, store, overwrite=True)
    other = memory_url() if remote else str(tmp_path / "other")
    with fsspec.open(f"{other}/notes.txt", "w", auto_mkdir=True) as file:
        file.write("mine")
    with pytest.raises(OutputError, match="there is something already"):
        pack(folder, Path(other), overwrite=True)
    foreign = tmp_path / "foreign.zarr"
    zarr.create_group(foreign)
    with pytest.raises(OutputError, match="there is another zarr store"):
        pack(folder, foreign, overwrite=True)


def test_the_old_store_stays_whole_until_the_new_one_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "bags.zarr"
    pack(folder, store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_writer._StoreWriter, "_write_table", full)
    with pytest.raises(OutputError, match=r"bags\.zarr: cannot be written \(No space left"):
        pack(folder, store, overwrite=True)
    assert_same(BagStore(store)["c"], folder / "c.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bags", "bags.zarr"]


def test_a_store_that_is_replaced_while_it_is_read_is_refused(folder: Path, tmp_path: Path) -> None:
    old = pack(folder, tmp_path / "bags.zarr")["c"]
    pack(folder, tmp_path / "bags.zarr", overwrite=True)
    with pytest.raises(BagError, match="another store than when it was opened"):
        read_features(old)


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    url = memory_url()
    with pytest.raises(BagError, match=r"memory://.*: there is no zarr store"):
        open_bags(Path(url))
    with pytest.raises(BagError, match="there is no such folder"):
        open_bags(tmp_path / "gone")
    with pytest.raises(BagError, match="cannot be read"):
        open_bags(Path("nosuchscheme://bucket/bags.zarr"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_table(store: Path, change: Callable[[dict], object]) -> None:
    columns = json.loads(np.asarray(zarr.open_array(store, path="bags", mode="r")[:]).tobytes())
    change(columns)
    text = np.frombuffer(json.dumps(columns).encode(), np.uint8)
    zarr.create_array(
        store, name="bags", data=text, chunks=(len(text),), shards=(len(text),),
        compressors=None, overwrite=True, config={"write_empty_chunks": True},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "",
            lambda c: c["attributes"].update(format="other"),
            "format .other.; expected .mil-pack.",
        ),
        ("", lambda c: c["attributes"].update(format_version=99), "format version 99"),
        ("", lambda c: c["attributes"].update(complete=False), "not complete"),
        ("", lambda c: c["attributes"].pop("fingerprint"), "table of bags is damaged"),
        ("", lambda c: c["attributes"]["fingerprint"].update(dim=9), "arrays of rows"),
        ("features", lambda c: c.update(shape=[10**9, 8]), "48 tiles in its table"),
        ("features", lambda c: c.update(shape=[2**50, 8]), "has another layout"),
        ("features", lambda c: c.update(shape=[-1, 8]), "has another layout"),
        ("features", lambda c: c.update(data_type="complex128"), "has another layout"),
        ("coords", lambda c: c.update(data_type="float32"), "arrays of rows"),
        ("features", lambda c: c.update(codecs=[]), "has another layout"),
        (
            "features",
            lambda c: c["codecs"][0]["configuration"]["codecs"].append({"name": "zstd"}),
            r"has another layout \(codecs\)",
        ),
        (
            "features",
            lambda c: c["chunk_grid"]["configuration"].update(chunk_shape=[0, 8]),
            r"has another layout \(rows\)",
        ),
        (
            "features",
            lambda c: c["codecs"][0]["configuration"].update(chunk_shape=[]),
            "has another layout",
        ),
        (
            "bags",
            lambda c: c.update(shape=[2**31]),
            "a table of 2,147,483,648 bytes",
        ),
    ],
)
def test_a_store_that_is_not_ours_or_lies_is_refused(
    folder: Path, tmp_path: Path, key: str, change: Callable[[dict], object], message: str
) -> None:
    pack(folder, tmp_path / "bags.zarr")
    edit(tmp_path / "bags.zarr" / key / "zarr.json", change)
    with pytest.raises(BagError, match=message):
        BagStore(tmp_path / "bags.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["slide_id"].__setitem__(0, "../a"), "slide id '../a'"),
        (lambda c: c["slide_id"].__setitem__(0, "c"), "rows for 3 slide ids"),
        (lambda c: c["slide_id"].__setitem__(0, 5), "slide id 5"),
        (lambda c: c["n_tiles"].__setitem__(0, -1), "-1 tiles"),
        (lambda c: c["n_tiles"].__setitem__(0, 8), "49 tiles in its table"),
        (lambda c: c["mpp_x"].pop(), "columns of"),
        (lambda c: c.pop("n_tiles"), "table of bags is damaged"),
        (lambda c: c.update(mpp_x=3), "no columns"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    pack(folder, tmp_path / "bags.zarr")
    edit_table(tmp_path / "bags.zarr", change)
    with pytest.raises(BagError, match=message):
        BagStore(tmp_path / "bags.zarr")


@pytest.mark.parametrize("name", ["mpp_x", "dtype", "software"])
def test_a_damaged_row_costs_its_bag_only(folder: Path, tmp_path: Path, name: str) -> None:
    pack(folder, tmp_path / "bags.zarr")
    edit_table(tmp_path / "bags.zarr", lambda c: c[name].__setitem__(0, []))
    packed = BagStore(tmp_path / "bags.zarr")
    with pytest.raises(BagError, match="the row of bag 'a' is damaged"):
        packed["a"]
    assert_same(packed["c"], folder / "c.h5")


def shard(store: Path, number: int) -> Path:
    return store / "features" / "c" / str(number) / "0"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def shuffle(path: Path) -> None:
    """Swap two chunks, which is valid zarr."""
    content = bytearray(path.read_bytes())
    index = len(content) - 4 - 16 * 4
    content[index : index + 8], content[index + 16 : index + 24] = (
        content[index + 16 : index + 24], content[index : index + 8],
    )  # fmt: skip
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "features/c/1/0 is missing"),
        (cut, "features/c/1/0 has"),
        (shuffle, "in another order"),
    ],
)
def test_a_shard_that_is_missing_or_another_is_not_taken_for_zeros(
    folder: Path,
    tmp_path: Path,
    small_shards: None,
    damage: Callable[[Path], object],
    message: str,
) -> None:
    store = tmp_path / "bags.zarr"
    packed = pack(folder, store)
    damage(shard(store, 1))
    for read in (read_bag, read_features):
        with pytest.raises(BagError, match=message):
            read(packed["c"])
    with pytest.raises(BagError, match=message):
        read_bag(packed["c"])
    write_bag(tmp_path / "d.h5", read_bag(packed["d"]))


def test_embeddings_that_changed_after_packing_are_found(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "bags.zarr"
    packed = pack(folder, store)
    content = bytearray(shard(store, 0).read_bytes())
    content[3] ^= 1
    shard(store, 0).write_bytes(content)
    with pytest.raises(BagError, match="as when they were packed"):
        read_bag(packed["a"])
    with IsolatedReader() as reader:
        report = verify_bags(store, on_bag=lambda n_done, n_all: None, read=reader.read)
    assert {bag.slide_id: bool(bag.problems) for bag in report.bags} == {
        "a": True, "b": False, "c": False, "d": False,
    }  # fmt: skip
