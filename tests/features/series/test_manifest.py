from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from features.errors import BagError, TableError
from features.series.manifest import read_series
from features.utils.text import natural_key


def write(folder: Path, text: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "series.csv").write_text(text)
    return folder / "series.csv"


def test_rows_of_a_bag_become_one_series_in_the_order_of_the_table(tmp_path: Path) -> None:
    table = write(
        tmp_path, "bag_id,path,order,patient_id\n007,b.png,2,p\n1e3,c.png,1,q\n007,a.png,1,p\n",
        "a.png", "b.png", "c.png",
    )  # fmt: skip
    first, second = read_series(table)
    assert (first.bag_id, second.bag_id) == ("007", "1e3")
    assert [(entry.source, entry.order) for entry in first.entries] == [("b.png", 2), ("a.png", 1)]
    assert second.entries[0].path == tmp_path / "c.png"


def test_a_folder_of_folders_is_one_bag_per_folder(tmp_path: Path) -> None:
    for name in ("scan10", "scan9", ".hidden"):
        (tmp_path / name).mkdir()
    assert [spec.bag_id for spec in read_series(tmp_path)] == ["scan9", "scan10"]


def test_a_folder_of_images_is_one_bag(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.png").touch()
    assert [spec.bag_id for spec in read_series(tmp_path / "scan")] == ["scan"]


def test_no_path_of_the_machine_is_taken_for_the_name_of_an_image(tmp_path: Path) -> None:
    table = write(tmp_path, f"scan_id,file\na,{tmp_path}/deep/1.png\n", "deep/1.png")
    assert read_series(table)[0].entries[0].source == "1.png"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,path\na,1.png\n", "no column 'bag_id'"),
        ("bag_id,image\na,1.png\n", "no column 'path'"),
        ("bag_id,path\na,gone.png\n", "no file"),
        ("bag_id,path\n,1.png\n", "row 2: no bag_id"),
        ("bag_id,path\na,\n", "row 2: no path"),
        ("bag_id,path,order\na,1.png,first\n", "order 'first'"),
        ("bag_id,path,order\na,1.png,nan\n", "order 'nan'"),
        ("bag_id,path,order\na,1.png,1\na,2.png,1\n", r"has order 1\.0 more than once"),
        ("bag_id,path,order\na,1.png,1\na,2.png,\n", "an order for 1 of 2 images"),
        ("bag_id,path\na,1.png\na,1.png\n", "more than once"),
        ("bag_id,path,patient_id\na,1.png,p\na,2.png,q\n", "has 2 patients"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_series(write(tmp_path, text, "1.png", "2.png"))


def test_no_column_of_another_meaning_is_proposed(tmp_path: Path) -> None:
    with pytest.raises(TableError) as raised:
        read_series(write(tmp_path, "image_id,path\na,1.png\n", "1.png"))
    assert "Did you mean" not in str(raised.value)
    with pytest.raises(TableError, match="Did you mean 'bagid'"):
        read_series(write(tmp_path, "bagid,path\na,1.png\n", "1.png"))


def test_an_id_that_leads_elsewhere_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="not usable as a file name"):
        read_series(write(tmp_path, "bag_id,path\n../a,1.png\n", "1.png"))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="an empty folder"):
        read_series(tmp_path)


def test_numbers_in_names_sort_by_value() -> None:
    assert sorted(["b", "a10", "a9", "a"], key=natural_key) == ["a", "a9", "a10", "b"]


def test_spellings_of_columns_bags_and_patients_are_one(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "é")
    table = write(
        tmp_path, f"Bag ID,Path,Order,PatientId\né,a.png,2,{apart}\n{apart},b.png,1,é\n",
        "a.png", "b.png",
    )  # fmt: skip
    (spec,) = read_series(table)
    assert spec.bag_id == "é"
    assert [entry.order for entry in spec.entries] == [2, 1]
    write(tmp_path, "Bag ID,Path,PatientId\na,a.png,p\na,b.png,q\n")
    with pytest.raises(TableError, match="bag 'a' has 2 patients"):
        read_series(table)
