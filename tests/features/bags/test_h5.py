from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.bags.bag import IMAGE, Bag
from features.bags.h5 import bag_path, find_bags, read_bag, read_meta, read_views, write_bag
from features.errors import BagError, OutputError
from tests.fakes import make_bag, make_series


def test_a_bag_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bag = make_bag("s1", n_tiles=5)
    write_bag(tmp_path / "s1.h5", bag)
    back = read_bag(tmp_path / "s1.h5")
    np.testing.assert_array_equal(back.features, bag.features)
    np.testing.assert_array_equal(back.coords_px0, bag.coords_px0)
    np.testing.assert_array_equal(back.tissue_fraction, bag.tissue_fraction)
    assert back.meta == bag.meta == read_meta(tmp_path / "s1.h5")
    assert back.features_sha256 == bag.features_sha256


def test_equal_bags_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bag(tmp_path / f"{name}.h5", make_bag("s1"))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_bag_without_tiles_is_a_valid_bag_that_says_why(tmp_path: Path) -> None:
    write_bag(tmp_path / "s1.h5", make_bag("s1", n_tiles=0, empty_reason="no tissue"))
    back = read_bag(tmp_path / "s1.h5")
    assert back.features.shape == (0, 8)
    assert back.meta.empty_reason == "no tissue"


@pytest.mark.parametrize(
    ("factor", "offset"), [(1, 1e6), (1e6, 0), (1e-8, 0), (1e-30, 0), (1, 1e4)]
)
def test_values_that_float16_cannot_hold_are_kept_in_float32(
    tmp_path: Path, factor: float, offset: float
) -> None:
    bag = make_bag("s1", n_tiles=2)
    big = Bag(
        features=offset + factor * np.arange(16, dtype=np.float32).reshape(2, 8),
        coords_px0=bag.coords_px0,
        tissue_fraction=bag.tissue_fraction,
        meta=bag.meta,
    )
    write_bag(tmp_path / "s1.h5", big)
    np.testing.assert_array_equal(read_bag(tmp_path / "s1.h5").features, big.features)
    write_bag(tmp_path / "s1.h5", replace(bag, features=bag.features.astype(np.float32)))
    assert read_bag(tmp_path / "s1.h5").features.dtype == np.float16


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bag = make_bag("s1", n_tiles=3)
    bag.features[1, 2] = np.nan
    with pytest.raises(BagError, match="1 of 3 embeddings"):
        write_bag(tmp_path / "s1.h5", bag)
    assert list(tmp_path.iterdir()) == []


def test_peers_find_their_attributes_on_coords(tmp_path: Path) -> None:
    write_bag(tmp_path / "s1.h5", make_bag("s1", n_tiles=2))
    with h5py.File(tmp_path / "s1.h5") as file:
        attributes = dict(file["coords"].attrs)
        assert file["features"].maxshape == (None, 8)
        assert "tile_size_um" not in file.attrs
    assert attributes["patch_size"] == 224
    assert attributes["patch_size_level0"] == 448
    assert attributes["level0_magnification"] == pytest.approx(40.0)
    assert attributes["savetodir"] == "bags"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.attrs.__setitem__("format", "other"), "format 'other'"),
        (lambda f: f.attrs.__setitem__("format_version", 99), "format version 99"),
        (lambda f: f.attrs.__setitem__("complete", False), "not complete"),
        (lambda f: f.__delitem__("coords"), "no 2-dimensional dataset 'coords'"),
        (lambda f: f.attrs.__delitem__("encoder"), "damaged"),
    ],
)
def test_a_bag_of_another_make_is_refused(tmp_path: Path, damage, message: str) -> None:
    path = tmp_path / "s1.h5"
    write_bag(path, make_bag("s1"))
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(BagError, match=message):
        read_bag(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format_version", 0, "format version 0; expected 1 to 2"),
        ("format_version", -3, "format version -3"),
        ("kind", "frog", "bag of kind 'frog'"),
        ("mpp_x", 0.0, "a resolution of 0 × 0.25 µm/px"),
        ("mpp_y", np.nan, "a resolution of 0.25 × nan µm/px"),
        ("span_x_px0", np.inf, "span_x_px0 is inf"),
        ("width_px0", -1, "width_px0 is -1"),
        ("n_failed", -2, "n_failed is -2"),
    ],
)
def test_metadata_of_no_slide_are_refused_when_read(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    path = tmp_path / "s1.h5"
    write_bag(path, make_bag("s1"))
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    for read in (read_bag, read_meta):
        with pytest.raises(BagError, match=message) as caught:
            read(path)
        assert "s1.h5" in str(caught.value)


@pytest.mark.parametrize("corner", [np.uint64(2**64 - 1), np.int64(-(2**62)), np.int64(2**53)])
def test_coordinates_of_no_slide_are_refused_when_read(tmp_path: Path, corner: np.integer) -> None:
    path = tmp_path / "s1.h5"
    write_bag(path, make_bag("s1"))
    with h5py.File(path, "r+") as file:
        del file["coords"]
        file["coords"] = np.full((4, 2), corner)
    with pytest.raises(BagError, match=r"s1\.h5: a tile at [\d,]+ px"):
        read_bag(path)


def test_a_truncated_bag_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    write_bag(path, make_bag("s1", n_tiles=500))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BagError, match="not readable as HDF5"):
        read_bag(path)


def test_a_missing_bag_is_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match=r"s1\.h5: there is no such bag"):
        read_bag(tmp_path / "s1.h5")


def test_a_folder_without_bags_is_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="no bag"):
        find_bags(tmp_path)
    with pytest.raises(BagError, match="no such folder"):
        find_bags(tmp_path / "nowhere")
    (tmp_path / "lite0").mkdir()
    write_bag(tmp_path / "lite0" / "s1.h5", make_bag("s1"))
    with pytest.raises(BagError, match=r"but in .*lite0; .* Name one folder of bags"):
        find_bags(tmp_path)


def test_bags_are_found_by_slide_id_and_half_written_ones_are_not(tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5", ".c.77.part.h5"):
        (tmp_path / name).touch()
    assert list(find_bags(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("slide_id", ["", "../x", "a/b", ".hidden", "a\\b", "a\0b"])
def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path, slide_id: str) -> None:
    with pytest.raises(BagError, match="not usable as a file name"):
        bag_path(tmp_path, slide_id)


def test_an_unwritable_folder_leaves_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_bag(tmp_path / "gone" / "s1.h5", make_bag("s1"))


def make_scan(*, n_images: int = 3) -> Bag:
    """A bag of images with gaps in its order and sources of any length."""
    return replace(
        make_series("scan", n_images=n_images),
        order=np.arange(n_images) * 2,
        source=tuple(f"µ{'x' * index}.dcm" for index in range(n_images)),
    )


@pytest.mark.parametrize("n_images", [0, 1, 5])
def test_a_bag_of_images_comes_back_with_order_and_source(tmp_path: Path, n_images: int) -> None:
    bag = make_scan(n_images=n_images)
    write_bag(tmp_path / "scan.h5", bag)
    back = read_bag(tmp_path / "scan.h5")
    assert back.order is not None
    assert back.order.tolist() == list(range(0, 2 * n_images, 2))
    assert back.source == bag.source
    assert back.meta == bag.meta
    assert (back.coords_px0 == -1).all()
    with h5py.File(tmp_path / "scan.h5") as file:
        assert "coords" not in file
        assert file.attrs["format_version"] == 2


def test_a_bag_of_tiles_is_still_written_as_version_1(tmp_path: Path) -> None:
    write_bag(tmp_path / "s1.h5", make_bag("s1"))
    with h5py.File(tmp_path / "s1.h5") as file:
        assert file.attrs["format_version"] == 1
        assert "order" not in file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.__delitem__("order"), "no 1-dimensional dataset 'order'"),
        (lambda f: f.__delitem__("source"), "no 1-dimensional dataset 'source'"),
        (lambda f: f["order"].resize((2,)), "order and source"),
        (lambda f: f["order"].__setitem__(slice(None), [2, 1, 0]), "out of order"),
        (lambda f: f["order"].__setitem__(slice(None), [0, 0, 1]), "out of order"),
    ],
)
def test_a_bag_of_images_that_contradicts_itself_is_refused(
    tmp_path: Path, damage, message: str
) -> None:
    write_bag(tmp_path / "scan.h5", make_scan())
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        damage(file)
    with pytest.raises(BagError, match=message):
        read_bag(tmp_path / "scan.h5")


def test_the_stored_bag_of_images_stays_readable() -> None:
    """Written once by ``write_bag(path, make_series("sample", n_images=5, seed=1))`` of fakes."""
    bag = read_bag(Path(__file__).parents[2] / "data" / "bag-v2.h5")
    assert bag.meta.slide_id == "sample"
    assert bag.meta.kind == IMAGE
    assert bag.order is not None
    assert bag.order.tolist() == [0, 1, 2, 3, 4]
    assert bag.source == tuple(f"sample_{index}.png" for index in range(5))
    assert bag.features_sha256.startswith("7eba7eb6d05553cf")


def test_views_of_tiles_come_back_beside_the_plain_ones(tmp_path: Path) -> None:
    bag = make_bag("s1", n_tiles=5, n_views=3)
    write_bag(tmp_path / "s1.h5", bag)
    back = read_bag(tmp_path / "s1.h5")
    assert back.views is not None
    assert back.views.shape == (5, 3, 8)
    assert back.views.dtype == np.float16
    np.testing.assert_array_equal(back.views, bag.views)
    np.testing.assert_array_equal(read_views(tmp_path / "s1.h5"), bag.views)
    assert back.meta == bag.meta
    assert back.features_sha256 == make_bag("s1", n_tiles=5).features_sha256


def test_a_bag_without_views_has_not_changed_since_version_1(tmp_path: Path) -> None:
    for n_views, version in ((0, 1), (2, 2)):
        write_bag(tmp_path / "s1.h5", make_bag("s1", n_views=n_views))
        with h5py.File(tmp_path / "s1.h5") as file:
            assert file.attrs["format_version"] == version
            assert ("views" in file) == ("views" in file.attrs) == bool(n_views)


def test_a_stored_sample_of_version_1_is_written_again_as_it_was(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "data" / "bag-v1.h5"
    write_bag(tmp_path / "again.h5", read_bag(sample))
    with h5py.File(tmp_path / "again.h5") as again, h5py.File(sample) as first:
        assert set(again) == set(first)
        assert set(again.attrs) == set(first.attrs)
        assert again.attrs["format_version"] == first.attrs["format_version"] == 1


@pytest.mark.parametrize("n_tiles", [0, 1, 2000])
def test_bags_of_any_length_hold_views(tmp_path: Path, n_tiles: int) -> None:
    bag = make_bag("s1", n_tiles=n_tiles, n_views=2, empty_reason="" if n_tiles else "none")
    write_bag(tmp_path / "s1.h5", bag)
    np.testing.assert_array_equal(read_bag(tmp_path / "s1.h5").views, bag.views)


def test_views_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bag = make_bag("s1", n_views=2)
    assert bag.views is not None
    bag.views[1, 0, 2] = np.inf
    with pytest.raises(BagError, match="1 of 4 embeddings"):
        write_bag(tmp_path / "s1.h5", bag)
