from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.bags.bag import Fingerprint
from features.bags.convert import export_bags
from features.bags.h5 import find_bags, read_bag, read_meta, write_bag
from features.bags.isolated_reader import IsolatedReader
from features.bags.verify import FolderReport, verify_bags
from features.errors import BagError
from tests.fakes import make_bag


def check(folder: Path) -> FolderReport:
    return verify_bags(folder, on_bag=lambda n_done, n_all: None)


def problem(folder: Path) -> str:
    """Return the problem of the only bag."""
    (bag,) = check(folder).bags
    return "; ".join(bag.problems)


def write(folder: Path, **changes: object) -> Path:
    """Write a good bag, except for these fields of its metadata."""
    bag = make_bag("s1")
    path = folder / "s1.h5"
    write_bag(path, replace(bag, meta=replace(bag.meta, **changes)))
    return path


def test_good_bags_have_no_problem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bag(tmp_path / f"{name}.h5", make_bag(name))
    write_bag(tmp_path / "c.h5", make_bag("c", n_tiles=0, empty_reason="no tissue"))
    report = check(tmp_path)
    assert [bag.problems for bag in report.bags] == [(), (), ()]
    assert [bag.n_tiles for bag in report.bags] == [4, 4, 0]
    assert report.n_bad == 0
    assert report.n_fingerprints == 1
    assert report.constant_features == ()


def test_progress_counts_every_file(tmp_path: Path) -> None:
    write_bag(tmp_path / "a.h5", make_bag("a"))
    (tmp_path / "b.h5").write_bytes(b"no bag")
    counts: list[tuple[int, int]] = []
    verify_bags(tmp_path, on_bag=lambda *done: counts.append(done))
    assert counts == [(1, 2), (2, 2)]


def test_a_folder_without_bags_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="no bag"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "1 embeddings hold NaN, 0 infinity"), (np.inf, "0 embeddings hold NaN, 1 infinity")],
)
def test_numbers_that_are_not_finite_are_found(tmp_path: Path, value: float, message: str) -> None:
    with h5py.File(write(tmp_path), "r+") as file:
        file["features"][2, 3] = value
    assert problem(tmp_path) == message


def test_embeddings_that_are_all_equal_are_found(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path), "r+") as file:
        file["features"][:] = 0.5
    assert problem(tmp_path) == "all 4 embeddings are equal"


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "views of 2 tiles hold NaN or inf"), ("equal", "all views of 4 tiles equal")],
)
def test_faults_of_views_are_found(tmp_path: Path, fault: str, message: str) -> None:
    bag = make_bag("s1", n_views=2)
    write_bag(tmp_path / "s1.h5", bag)
    assert problem(tmp_path) == ""
    with h5py.File(tmp_path / "s1.h5", "r+") as file:
        if fault == "nan":
            file["views"][1:3, 0, 5] = np.nan
        else:
            file["views"][:] = bag.features[:, None]
    assert problem(tmp_path).startswith(message)


def test_views_that_are_gone_are_found(tmp_path: Path) -> None:
    write_bag(tmp_path / "s1.h5", make_bag("s1", n_views=2))
    with h5py.File(tmp_path / "s1.h5", "r+") as file:
        del file["views"]
    assert problem(tmp_path) == "no 3-dimensional dataset 'views'"


def test_features_constant_over_the_folder_are_counted_but_no_fault(tmp_path: Path) -> None:
    for name in ("a", "b"):
        bag = make_bag(name)
        bag.features[:, [2, 5]] = 0
        bag.features[:, 6] = {"a": 1, "b": 2}[name]
        write_bag(tmp_path / f"{name}.h5", bag)
    report = check(tmp_path)
    assert report.constant_features == (2, 5)
    assert report.n_bad == 0


def test_tiles_at_the_same_place_are_found(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path), "r+") as file:
        file["coords"][3] = file["coords"][0]
    assert problem(tmp_path) == "1 tiles have the coordinates of another"


@pytest.mark.parametrize("corner", [(-1, 0), (0, -448), (896, 0), (0, 10**12)])
def test_tiles_outside_the_slide_are_found(tmp_path: Path, corner: tuple[int, int]) -> None:
    with h5py.File(write(tmp_path), "r+") as file:
        file["coords"][3] = corner
    x, y = corner
    found = f"1 of 4 tiles outside the slide of 896 × 896 px, the first at x {x:,}, y {y:,}"
    assert problem(tmp_path) == found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_tried": 7}, "4 embeddings, but 7 tiles tried and 0 failed"),
        ({"left_out": '{"ink":1}'}, "4 embeddings, but 4 tiles tried, 1 left out and 0 failed"),
        ({"left_out": "[]"}, "4 embeddings, but 4 tiles tried, -1 left out and 0 failed"),
        ({"n_tried": 3}, "4 embeddings, but 3 tiles tried and 0 failed"),
        ({"empty_reason": "no tissue"}, "4 embeddings, but the reason for being empty is 'no"),
        ({"slide_id": "s2"}, "it is the bag of slide 's2'"),
        ({"mpp_x": float("inf")}, "a resolution of inf × 0.25 µm/px"),
    ],
)
def test_attributes_that_contradict_the_arrays_are_found(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write(tmp_path, **changes)
    assert message in problem(tmp_path)


def test_a_count_that_contradicts_the_rows_is_found_by_every_reader(tmp_path: Path) -> None:
    path = write(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["n_embedded"] = 5
    assert problem(tmp_path) == "4 embeddings"
    with pytest.raises(BagError, match="4 embeddings; expected 5, as its attribute n_embedded"):
        read_bag(path)


def test_tissue_that_is_no_share_is_found(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path), "r+") as file:
        file["tissue_fraction"][:2] = (1.5, np.nan)
    assert problem(tmp_path) == "2 tissue fractions are not between 0 and 1"


def test_bags_made_otherwise_than_most_are_found(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        bag = make_bag(name)
        fingerprint = bag.meta.fingerprint
        if name == "b":
            fingerprint = replace(fingerprint, encoder="another")
        write_bag(
            tmp_path / f"{name}.h5", replace(bag, meta=replace(bag.meta, fingerprint=fingerprint))
        )
    report = check(tmp_path)
    assert report.n_fingerprints == 2
    assert {bag.slide_id: bag.problems for bag in report.bags if bag.problems} == {
        "b": ("made with --backbone another, but 2 of 3 bags with --backbone fake",)
    }
    (tmp_path / "c.h5").unlink()  # and now one is as usual as the other
    assert {bag.slide_id: bag.problems for bag in check(tmp_path).bags} == {
        "a": ("made with --backbone fake, but 1 of 2 bags with --backbone another",),
        "b": ("made with --backbone another, but 1 of 2 bags with --backbone fake",),
    }


@pytest.fixture
def n_hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list of the number of times that a fingerprint was hashed."""
    counter, original = [0], Fingerprint.__hash__

    def count(fingerprint: Fingerprint) -> int:
        counter[0] += 1
        return original(fingerprint)

    monkeypatch.setattr(Fingerprint, "__hash__", count)
    return counter


def test_bags_of_many_kinds_are_not_compared_each_with_each(
    tmp_path: Path, n_hashed: list[int]
) -> None:
    for number in range(30):
        bag = make_bag(f"s{number}")
        fingerprint = replace(bag.meta.fingerprint, encoder=f"encoder {number}")
        write_bag(
            tmp_path / f"s{number}.h5",
            replace(bag, meta=replace(bag.meta, fingerprint=fingerprint)),
        )
    assert check(tmp_path).n_bad == 30
    assert n_hashed[0] <= 10 * 30


def test_the_usual_kind_of_bags_is_found_once_for_an_export(
    tmp_path: Path, n_hashed: list[int]
) -> None:
    (tmp_path / "bags").mkdir()
    for number in range(30):
        write_bag(tmp_path / "bags" / f"s{number}.h5", make_bag(f"s{number}"))
    results = export_bags(
        tmp_path / "bags", tmp_path / "out", layout="torch", on_slide=lambda n_done, n_all: None
    )
    assert not any(result.problem for result in results)
    assert n_hashed[0] <= 10 * 30


def test_of_many_settings_those_that_differ_are_said(tmp_path: Path) -> None:
    for name, least in (("a", 0.3), ("b", 0.3), ("c", 0.5)):
        settings = {f"setting_{n}": n for n in range(20)} | {"min_tissue": least}
        bag = make_bag(name)
        fingerprint = replace(bag.meta.fingerprint, tissue=json.dumps(settings))
        write_bag(
            tmp_path / f"{name}.h5", replace(bag, meta=replace(bag.meta, fingerprint=fingerprint))
        )
    assert {bag.slide_id: bag.problems for bag in check(tmp_path).bags if bag.problems} == {
        "c": ("made with --min-tissue 0.5, but 2 of 3 bags with --min-tissue 0.3",)
    }


# Files that mean harm. Each of these must be refused by reading a bag at all, not by the check
# alone, and without opening or allocating what they name.


def test_an_array_shorter_than_another_is_found(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path), "r+") as file:
        file["coords"].resize((3, 2))
    assert "coords (3, 2)" in problem(tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 7, 512, 3000, -1])
def test_truncated_and_foreign_files_are_found(tmp_path: Path, n_bytes: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert problem(tmp_path) == "not readable as HDF5"


def swap(path: Path, name: str, put: Callable[[h5py.File], object]) -> None:
    """Replace a dataset."""
    with h5py.File(path, "r+") as file:
        del file[name]
        put(file)


@pytest.mark.parametrize("name", ["features", "coords", "tissue_fraction"])
def test_a_link_to_another_file_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "bags"
    folder.mkdir()
    secret = write(tmp_path).rename(tmp_path / "secret.h5")
    path = write(folder)
    swap(path, name, lambda f: f.__setitem__(name, h5py.ExternalLink(str(secret), name)))
    assert problem(folder) == f"{name!r} is a link to somewhere else, which is not followed"
    swap(path, name, lambda f: f.__setitem__(name, h5py.SoftLink("/elsewhere")))
    assert problem(folder) == f"{name!r} is a link to somewhere else, which is not followed"


def test_a_virtual_dataset_is_not_assembled_from_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "bags"
    folder.mkdir()
    secret = write(tmp_path).rename(tmp_path / "secret.h5")
    layout = h5py.VirtualLayout(shape=(4, 8), dtype=np.float16)
    layout[:] = h5py.VirtualSource(str(secret), "features", shape=(4, 8))
    swap(write(folder), "features", lambda f: f.create_virtual_dataset("features", layout))
    assert problem(folder) == "the values of 'features' are in other files, which are not opened"


def test_external_storage_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_bytes(b"s" * 64)
    swap(
        write(tmp_path), "features",
        lambda f: f.create_dataset(
            "features", (4, 8), np.float16, external=[(str(tmp_path / "secret.txt"), 0, 64)]
        ),
    )  # fmt: skip
    assert problem(tmp_path) == "the values of 'features' are in other files, which are not opened"


@pytest.mark.parametrize("filtered", [False, True])
def test_a_huge_claim_is_refused_without_reading(tmp_path: Path, filtered: bool) -> None:
    shape = (10**12, 8)
    options = {"compression": "gzip"} if filtered else {}
    swap(
        write(tmp_path), "features",
        lambda f: f.create_dataset("features", shape, np.float16, chunks=(1024, 8), **options),
    )  # fmt: skip
    assert problem(tmp_path) == f"'features' states {shape} values, 16,000,000,000,000 bytes"


def test_a_claim_beyond_64_bits_is_refused(tmp_path: Path) -> None:
    shape = (2**62, 2**40)
    path = write(tmp_path)
    swap(path, "features", lambda f: f.create_dataset("features", shape, "f2", chunks=(1, 1024)))
    assert "'features' states" in problem(tmp_path)


def test_a_compressed_array_of_honest_size_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    values = read_bag(path).features
    swap(path, "features", lambda f: f.create_dataset("features", data=values, compression=9))
    assert problem(tmp_path) == ""


@pytest.mark.parametrize(
    ("dtype", "message"),
    [(h5py.string_dtype(), "'features' holds object"), ("i4", "'features' holds int32"),
     ([("a", "f4")], "'features' holds [('a'"), ("c8", "'features' holds complex64")],
)  # fmt: skip
def test_arrays_of_anything_but_numbers_are_refused(
    tmp_path: Path, dtype: object, message: str
) -> None:
    swap(write(tmp_path), "features", lambda f: f.create_dataset("features", (4, 8), dtype))
    assert message in problem(tmp_path)


def test_a_group_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    swap(write(tmp_path), "coords", lambda f: f.create_group("coords"))
    assert problem(tmp_path) == "no 2-dimensional dataset 'coords'"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", np.arange(3), "format (0, 1, 2)"),
        ("format_version", "new", "format version 'new'"),
        ("encoder", 3, "damaged (attribute 'encoder' is 3"),
        ("mpp_x", "fine", "damaged (attribute 'mpp_x' is 'fine'"),
        ("n_tried", 4.5, "damaged (attribute 'n_tried' is 4.5"),
        ("slide_id", h5py.Empty("f"), "damaged (attribute 'slide_id' is None"),
        ("transform", "x" * 60_000, "preprocessing xxx"),
        ("encoder", np.bytes_(b"\xff\xfe"), ""),
    ],
)
def test_attributes_of_another_kind_are_refused(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    path = write(tmp_path)
    write_bag(tmp_path / "s0.h5", make_bag("s0"))
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    problems = "; ".join(check(tmp_path).bags[1].problems)
    assert message in problems
    assert len(problems) < 300
    problems.encode()


def test_a_huge_attribute_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s1.h5"
    write(tmp_path).rename(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5") as old, h5py.File(path, "w", libver="latest") as file:
        file.attrs.update(dict(old.attrs))
        file.attrs["note"] = np.zeros(300_000)
        for name in old:
            old.copy(name, file)
    (tmp_path / "old.h5").unlink()
    assert problem(tmp_path) == "attribute 'note' of 2,400,000 bytes"


@pytest.mark.ci
def test_no_damage_of_a_few_bytes_gives_a_traceback(tmp_path: Path) -> None:
    whole = np.frombuffer(write(tmp_path).read_bytes(), np.uint8)
    chance = np.random.default_rng(0)
    with IsolatedReader(timeout_s=5) as reader:
        for _ in range(150):
            broken = whole.copy()
            n_bytes = chance.integers(1, 9)
            broken[chance.integers(len(broken), size=n_bytes)] = chance.integers(256, size=n_bytes)
            (tmp_path / "s1.h5").write_bytes(broken.tobytes())
            report = verify_bags(tmp_path, on_bag=lambda n_done, n_all: None, read=reader.read)
            assert len(report.bags) == 1


def test_a_reader_apart_reads_the_same_and_raises_the_same(tmp_path: Path) -> None:
    path = write(tmp_path)
    with IsolatedReader() as reader:
        bag = reader.read(path)
        np.testing.assert_array_equal(bag.features, read_bag(path).features)
        assert bag.meta == read_bag(path).meta
        with h5py.File(path, "r+") as file:
            file.attrs["complete"] = False
        with pytest.raises(BagError, match="not complete"):
            reader.read(path)
        path.unlink()
        with pytest.raises(BagError, match="there is no such bag"):
            reader.read(path)


def test_a_bag_that_hangs_or_ends_its_reader_costs_only_that_bag(tmp_path: Path) -> None:
    path = write(tmp_path)
    with (
        IsolatedReader(timeout_s=0) as reader,
        pytest.raises(BagError, match="not read within 0 s"),
    ):
        reader.read(path)
    with IsolatedReader() as reader:
        reader.read(path)
        reader._process.kill()
        with pytest.raises(BagError, match="crashes the reading process"):
            reader.read(path)
        assert len(reader.read(path).features) == 4


def test_an_attribute_that_an_older_bag_lacks_keeps_its_default(tmp_path: Path) -> None:
    path = write(tmp_path, n_failed=0, software="{}")
    with h5py.File(path, "r+") as file:
        for name in ("software", "background_rgb", "kind"):
            del file.attrs[name]
    assert read_meta(path) == replace(make_bag("s1").meta, software="")
    assert list(find_bags(tmp_path)) == ["s1"]
