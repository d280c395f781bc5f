from __future__ import annotations

import pytest

from features.bags.bag import bag_id
from features.slides.reader import slide_id_of
from features.utils.paths import has_slide_suffix, strip_slide_suffix
from mil.data.cohort import without_suffix

SUFFIXES = (
    ".tif", ".TIFF", ".ome.tif", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".dcm",
    ".png", ".jpeg", ".zarr", ".ome.zarr", ".zarr.zip", ".ome.zarr.zip", ".ozx",
)  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_and_a_folder_name_a_slide_alike(suffix: str) -> None:
    for slide_id in ("006388_0", "12.5", "a.b"):
        name = slide_id + suffix
        assert has_slide_suffix(name)
        assert slide_id_of(f"slides/{name}") == strip_slide_suffix(name) == slide_id
        assert without_suffix(name) == without_suffix(f"{slide_id}.h5") == slide_id


@pytest.mark.parametrize("name", ["a .svs", " a.tif", "\u00a0a\u200b.png", "\ta\n.ndpi"])
def test_blanks_around_the_name_of_a_file_are_not_of_its_id(name: str) -> None:
    assert slide_id_of(name) == without_suffix(name.strip()) == bag_id(name) == "a"


@pytest.mark.parametrize("name", ["a.svs.tif", "a.ndpi.ome.tiff", "a.tif.tif", "a.mrxs.zarr.zip"])
def test_a_converted_slide_has_one_id_in_folders_tables_and_bags(name: str) -> None:
    scanned = name[: name.index(".", 2)]  # a.svs
    for one in (name, scanned):
        assert slide_id_of(one) == without_suffix(one) == bag_id(one) == "a"


@pytest.mark.parametrize("name", ["006388_0", "12.5", "588e11", "notes.txt", "tif", "a.zip"])
def test_what_is_no_suffix_of_a_slide_stays(name: str) -> None:
    assert not has_slide_suffix(name)
    assert strip_slide_suffix(name) == without_suffix(name) == name
