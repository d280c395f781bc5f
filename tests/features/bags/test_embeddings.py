"""Embeddings that no encoder makes, and names of bags, in files written elsewhere."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.bags.bag import Bag
from features.bags.embeddings import check_embeddings, largest_absolute
from features.bags.h5 import (
    find_bags,
    read_bag,
    read_bag_info,
    read_features,
    read_slide_bag,
    write_bag,
)
from features.bags.store import open_bags
from features.bags.store_writer import write_store
from features.errors import BagError
from tests.fakes import make_bag

RNG = np.random.default_rng(0)
TILES = RNG.normal(size=(6, 10)).astype(np.float16)


def change(path: Path, values: np.ndarray) -> None:
    """Replace the embeddings of a bag, as a script with h5py does."""
    with h5py.File(path, "r+") as file:
        del file["features"]
        file.create_dataset("features", data=values)


def spoil(value: float, dtype: str = "f2") -> np.ndarray:
    tiles = TILES.astype(dtype)
    tiles[3, 7] = value
    return tiles


FAULTS = {
    "nan": (spoil(np.nan), "1 embeddings hold NaN, 0 infinity"),
    "infinity": (spoil(np.inf), "0 embeddings hold NaN, 1 infinity"),
    "negative infinity": (spoil(-np.inf, "f4"), "0 embeddings hold NaN, 1 infinity"),
    "nan with a sign": (spoil(-np.nan, "f4"), "1 embeddings hold NaN"),
    "nan in double": (spoil(np.nan, "f8"), "1 embeddings hold NaN"),
    "all zeros": (np.zeros((6, 10), np.float16), "6 of 6 embeddings are all zeros"),
    "negative zeros": (np.full((6, 10), -0.0, np.float32), "6 of 6 embeddings are all zeros"),
    "one row never written": (TILES * (np.arange(6) != 4)[:, None], "1 of 6 embeddings are all"),
    "one row of one number": (
        np.where((np.arange(6) == 4)[:, None], np.float16(1.5), TILES),
        "1 of 6 embeddings with the same number throughout",
    ),
    "a constant": (np.full((6, 10), 2.5, np.float16), "all 6 embeddings are equal"),
    "one tile repeated": (np.repeat(TILES[:1], 6, axis=0), "all 6 embeddings are equal"),
    "one tile of one number": (np.full((1, 10), 3, np.float16), "the same number 3 throughout"),
    "integers": ((TILES * 10).astype(np.int8), "'features' holds int8"),
    "bits of bfloat16": (TILES.view(np.uint16), "'features' holds uint16"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("read", [read_bag, read_features])
def test_embeddings_of_no_encoder_are_refused_by_name_when_read(
    tmp_path: Path, fault: str, read: Callable[[Path], object]
) -> None:
    values, message = FAULTS[fault]
    path = tmp_path / "Präparat 7.h5"
    write_bag(path, make_bag("Präparat 7", n_tiles=len(values), dim=10))
    change(path, values)
    with pytest.raises(BagError, match=message) as caught:
        read(path)
    assert "Präparat 7" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [">f2", ">f4", "<f8", ">f8", "g"])
def test_other_floating_types_are_read_as_float32(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.h5"
    write_bag(path, make_bag("a", n_tiles=6, dim=10))
    change(path, TILES.astype(dtype))
    expected = np.dtype("f2" if dtype == ">f2" else "f4")
    for features in (read_bag(path).features, read_features(path)):
        assert features.dtype == expected
        assert features.dtype.isnative
        assert (features == TILES).all()
    assert read_bag_info(path).dtype == expected
    write_store(tmp_path, tmp_path / "a.zarr", overwrite=False, on_bag=lambda _d, _n: None)
    assert (read_bag(open_bags(tmp_path / "a.zarr")["a"]).features == TILES).all()


@pytest.mark.parametrize(
    ("factor", "message"), [(1e300, "hold NaN, 6 infinity"), (1e-300, "6 of 6 .* all zeros")]
)
def test_numbers_beyond_float32_are_refused(tmp_path: Path, factor: float, message: str) -> None:
    path = tmp_path / "a.h5"
    write_bag(path, make_bag("a", n_tiles=6, dim=10))
    change(path, TILES.astype("f8") * factor)
    with pytest.raises(BagError, match=message):
        read_bag(path)


@pytest.mark.parametrize("tiles", [TILES, TILES[:1], TILES[:0], TILES.astype("f4") * 1e9])
def test_embeddings_of_an_encoder_pass(tiles: np.ndarray) -> None:
    check_embeddings("s1", tiles)
    ones = np.array([[0.0], [1.0], [0.0]], np.float32)
    check_embeddings("s1", ones)  # in one dimension, zero is a number like any other


def test_faults_of_views_are_refused() -> None:
    views = RNG.normal(size=(4, 2, 8)).astype(np.float16)
    check_embeddings("s1", views, what="views")
    views[1:3, 0, 5] = np.nan
    with pytest.raises(BagError, match="views of 2 tiles hold NaN or infinity"):
        check_embeddings("s1", views, what="views")


def test_rows_of_a_store_are_checked_when_read(tmp_path: Path) -> None:
    (tmp_path / "bags").mkdir()
    for name in ("a", "b"):
        write_bag(tmp_path / "bags" / f"{name}.h5", make_bag(name))
    write_store(
        tmp_path / "bags", tmp_path / "bags.zarr", overwrite=False, on_bag=lambda _d, _n: None
    )
    shard = tmp_path / "bags.zarr" / "features" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[2:4] = np.float16(np.nan).tobytes()
    shard.write_bytes(content)
    stored = open_bags(tmp_path / "bags.zarr")["a"]
    with pytest.raises(BagError, match=r"bag 'a'.*(NaN|checksum|CRC|hash)"):
        read_features(stored)


@pytest.mark.parametrize("values", [[1.5, -3.0], [-np.inf, 2.0], [0.0, -0.0], []])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_the_largest_absolute_value_is_that_of_numpy(values: list[float], dtype: str) -> None:
    array = np.array(values, dtype).reshape(1, -1)
    assert largest_absolute(array) == np.abs(array.astype("f8")).max(initial=0)


@pytest.mark.parametrize("name", ["x.svs", "x.ome.tiff", "x.NDPI", "x"])
def test_bags_named_after_the_file_of_the_slide_are_found(tmp_path: Path, name: str) -> None:
    bag = make_bag("x")
    for stated in ("x", name):
        path = tmp_path / f"{name}.h5"
        write_bag(path, replace(bag, meta=replace(bag.meta, slide_id=stated)))
        assert find_bags(tmp_path) == {"x": path}
        assert read_slide_bag("x", path).meta.slide_id == stated


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_names_of_bags_are_composed(tmp_path: Path, form: str) -> None:
    name = unicodedata.normalize(form, "Größe é")
    bag: Bag = make_bag(name)
    write_bag(tmp_path / f"{name}.h5", bag)
    (slide_id,) = find_bags(tmp_path)
    assert slide_id == "Größe é"
    assert len(read_slide_bag(slide_id, tmp_path / f"{name}.h5").features) == 4


def test_bags_whose_suffix_is_in_capitals_are_found(tmp_path: Path) -> None:
    write_bag(tmp_path / "x.h5", make_bag("x"))
    (tmp_path / "x.h5").rename(tmp_path / "x.H5")
    assert find_bags(tmp_path) == {"x": tmp_path / "x.H5"}


def test_two_bags_of_one_slide_are_refused(tmp_path: Path) -> None:
    for name in ("x", "x.svs"):
        write_bag(tmp_path / f"{name}.h5", make_bag("x"))
    with pytest.raises(BagError, match=r"'x.h5' and 'x.svs.h5' are bags of one slide"):
        find_bags(tmp_path)
