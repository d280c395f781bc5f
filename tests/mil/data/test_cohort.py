from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import TableError
from mil.data.cohort import read_cohort
from mil.errors import CohortError
from tests.fakes import real_data


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_ids_stay_what_they_are(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv",
        "image_id,patient_id,label,center_id",
        "049194_0,049194,CE,7",
        "588e11_0,588e11,LAA,11",
        "NA_0,NA,CE,7",
        "049194_1.tif,049194,CE,7",
    )
    cohort = read_cohort(table, labelled=True)
    assert cohort.patient_ids == ("588e11", "049194", "NA")  # in the order of their numbers
    assert cohort.patients[1].slide_ids == ("049194_0", "049194_1")
    assert cohort.classes == ("CE", "LAA")
    assert cohort.labels.tolist() == [1, 0, 0]
    assert cohort.patients[0].center_id == "11"
    assert cohort.class_counts() == {"CE": 2, "LAA": 1}


def test_a_table_for_inference_needs_no_label(tmp_path: Path) -> None:
    cohort = read_cohort(write(tmp_path / "t.csv", "slide_id,patient_id", "a,p"), labelled=False)
    assert cohort.classes == ()
    assert cohort.patients[0].label is None


def test_a_table_with_one_row_an_image_names_each_bag_once(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "bag_id,patient_id,image_id,path,label\ns1,p,i1,1.png,a\ns1,p,i2,2.png,a\ns2,q,i3,3.png,b\n"
    )
    cohort = read_cohort(tmp_path / "t.csv", labelled=True)
    assert [p.slide_ids for p in cohort.patients] == [("s1",), ("s2",)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_spreadsheets_of_all_kinds_are_read(tmp_path: Path, separator: str) -> None:
    text = "\ufeff" + "\r\n".join(
        separator.join(row) for row in (["image_id", "patient_id"], ["a", "p1"], ["b", "p2"])
    )
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    assert read_cohort(tmp_path / "t.csv", labelled=False).patient_ids == ("p1", "p2")


HEAD = "image_id,patient_id,label"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["image_id,patient_id", "a,p"], r"no column 'label' among image_id, patient_id"),
        (["image,patient_id,label", "a,p,x"], r"no column 'image_id' or 'slide_id'.*'image'"),
        ([HEAD, "a,p,x", "b,p,y"], r"rows 2, 3: patient 'p' has labels x, y; expected one label"),
        ([HEAD, "a,p,x", "a,q,y"], r"slide 'a' has patients p, q"),
        ([HEAD, "a,p,x", "a,p,x"], r"slide 'a' 2 times"),
        ([HEAD, "a,p,x", "b,,y"], r"row 3: no patient"),
        ([HEAD, "a,p,x", "b,q,x"], r"one class only, 'x', for all 2 patients"),
        ([HEAD, "a,5.88e+13,x", "b,q,y"], r"row 2: (slide|patient) '5.88e\+13', which looks like"),
        ([HEAD, "a,p,x", "b,49194.0,y"], r"row 3: (slide|patient) '49194.0'"),
        ([HEAD, "a,inf,x", "b,q,y"], r"row 2: (slide|patient) 'inf'"),
    ],
)
def test_each_contradiction_has_its_own_line(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises((CohortError, TableError), match=message) as caught:
        read_cohort(write(tmp_path / "t.csv", *rows), labelled=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\xef\xbb\xbf\n\n", "an empty file"),
        (b"image_id,patient_id,label\n", "no rows under the header"),
        (b"image_id,image_id\na,b\n", "column 'image_id' occurs twice"),
        (b"\xfd\x00bad", "not UTF-8"),
        (b'a,b\n"never closed', "row 2: a quotation mark that is not closed"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_cohort(tmp_path / "t.csv", labelled=True)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="there is no such file"):
        read_cohort(tmp_path / "t.csv", labelled=True)


@real_data
def test_the_strip_table_has_its_known_counts(mil_data: Path) -> None:
    cohort = read_cohort(mil_data / "strip" / "train.csv", labelled=True)
    assert cohort.n_slides == 754
    assert cohort.class_counts() == {"CE": 457, "LAA": 175}
    labels = [p.label for p in cohort.patients for _ in p.slide_ids]
    assert (labels.count("CE"), labels.count("LAA")) == (547, 207)
    assert "049194" in cohort.patient_ids
