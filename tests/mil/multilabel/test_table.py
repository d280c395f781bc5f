from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import TableError
from mil.errors import CohortError
from mil.multilabel.table import LabelTable, parse_labels, read_label_table


def read(folder: Path, text: str, names: tuple[str, ...] = ("any", "sub")) -> LabelTable:
    (folder / "labels.csv").write_text(text)
    return read_label_table(folder / "labels.csv", names)


def test_each_label_has_a_column_of_its_own(tmp_path: Path) -> None:
    table = read(
        tmp_path, "slide_id,patient_id,sub,any,other\ns1,007,0,1,x\ns2,1e3,1,1.0,y\ns3,c,0,0,z\n"
    )
    assert table.patients.patient_ids == ("1e3", "007", "c")
    assert table.truth.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_a_scan_has_a_label_if_any_of_its_slices_does(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "slide_id,patient_id,path,any,sub\ns1,a,1.dcm,0,0\ns1,a,2.dcm,1,0\ns1,a,3.dcm,1,1\n"
        "s2,b,1.dcm,0,0\ns3,b,1.dcm,0,0\n",
    )
    assert table.truth.tolist() == [[1, 1], [0, 0]]
    assert [p.slide_ids for p in table.patients.patients] == [("s1",), ("s2", "s3")]


def test_a_label_by_itself_is_a_cohort_of_two_classes(tmp_path: Path) -> None:
    table = read(tmp_path, "slide_id,patient_id,any,sub\ns1,a,1,0\ns2,b,0,1\ns3,c,0,0\n")
    cohort = table.cohort_of("sub")
    assert cohort.classes == ("no sub", "sub")
    assert cohort.labels.tolist() == [0, 1, 0]
    assert table.subset(["c", "a"]).truth.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("slide_id,patient_id,any\ns1,a,1\n", TableError, "no column 'sub'"),
        ("slide_id,patient_id,any,sub\ns1,a,1,2\n", CohortError, "row 2: sub is '2'"),
        ("slide_id,patient_id,any,sub\ns1,a,1,\n", CohortError, "sub is ''"),
        ("slide_id,patient_id,any,sub\ns1,a,1,0\ns1,b,0,1\n", CohortError, "slide 's1' has pat"),
        (
            "slide_id,patient_id,center_id,any,sub\ns1,a,x,1,0\ns2,a,y,0,1\n",
            CohortError, "patient 'a' has centres x, y",
        ),
        ("slide_id,patient_id,any,sub\ns1,a,1,0\ns2,b,0,0\n", CohortError, "'sub' of 0 of 2"),
        ("slide_id,patient_id,any,sub\ns1,a,1,0\ns2,b,1,1\n", CohortError, "'any' of 2 of 2"),
    ],
)  # fmt: skip
def test_faulty_labels_are_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(tmp_path, text)


def test_a_single_label_is_enough() -> None:
    assert parse_labels("any") == ("any",)


@pytest.mark.parametrize(
    "text", ["", "any,any", "a,,b", "a/b,c", ".a,b", "patient_id,any", "bag_id"]
)
def test_labels_that_cannot_be_columns_and_folders_are_refused(text: str) -> None:
    with pytest.raises(CohortError, match="names of columns, each once"):
        parse_labels(text)
