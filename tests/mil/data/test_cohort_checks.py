"""Cells and rows of cohort tables that are no slides, and tables that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import TableError
from features.utils.tables import read_table
from mil.audit.tables import audit_similar_ids, audit_unclear_labels, read_split
from mil.data.cohort import cohort_notes, read_cohort
from mil.errors import CohortError
from mil.reporting.cohort_report.table import read_cohort_table

HEADER = "image_id,patient_id,label,center_id"
ROWS = ("a,p1,A,Bern", "b,p2,B,Bern", "c,p3,A,Ulm", "d,p4,B,Ulm")


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "train.csv"
    path.write_bytes("\n".join([header, *rows, ""]).encode())
    return path


@pytest.mark.parametrize(
    "row",
    [
        "Total,4,,",
        "Total,Total,4,",
        ",TOTAL,4,",
        "Summe:,,2,",
        "Mean,,,",
        "Gesamt,–,12 / 12,",
        "Median,,,",
        "Total (4),,,",
        "Gesamtsumme,4,,",
        "合計,4,,",
        "4,4,Total,",
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_a_row_of_totals_is_no_slide(tmp_path: Path, row: str, labelled: bool) -> None:
    if labelled or "Total," not in row[1:]:
        with pytest.raises(CohortError, match=r"row 6: '.*' in the last row.*Delete the row"):
            read_cohort(write(tmp_path, *ROWS, row), labelled=labelled)
    assert read_cohort(write(tmp_path, "total,p9,A,Ulm", *ROWS), labelled=labelled).n_slides == 5


@pytest.mark.parametrize("name", ["total", "max", "min", "Median"])
@pytest.mark.parametrize("slide", ["12", "STD"])
def test_a_class_may_be_named_as_totals_are(tmp_path: Path, name: str, slide: str) -> None:
    rows = [f"{n},{n},{name if n % 2 else 'partial'}," for n in range(12)]
    assert read_cohort(write(tmp_path, *rows, f"{slide},12,{name},"), labelled=True).n_slides == 13


@pytest.mark.parametrize("last", ["N,14,A,", "SD,14,A,", "sum3,8,A,", "8,8,N,"])
def test_a_last_slide_with_a_short_name_is_one(tmp_path: Path, last: str) -> None:
    path = write(tmp_path, *ROWS, last)
    assert read_cohort(path, labelled=True).n_slides == 5
    assert read_cohort(path, labelled=False).n_slides == 5


@pytest.mark.parametrize(
    "classes", [("2024-01-02", "2024-01-03"), ("1/2/2024", "3/2/2024"), ("02-Jan", "03-Feb"),
                ("2024-01-02 10:15", "2024-01-03 11:30"), ("mar-24", "aug-24")],
)  # fmt: skip
def test_classes_that_are_dates_are_named(tmp_path: Path, classes: tuple[str, str]) -> None:
    path = write(tmp_path, *(f"s{n},p{n},{classes[n % 2]},Ulm" for n in range(4)))
    (note,) = cohort_notes(read_cohort(path, labelled=True))
    assert note.startswith("the classes are dates, such as ")
    assert "--column label=NAME" in note
    (finding,) = audit_unclear_labels([read_split(path, name="train")])
    assert finding.kind == "date_labels"
    path.write_text(path.read_text() + "e,p8,A,Ulm\n")
    assert "the classes are dates" not in " ".join(cohort_notes(read_cohort(path, labelled=True)))
    assert not list(audit_unclear_labels([read_split(path, name="train")]))


def test_ids_of_which_a_spreadsheet_kept_15_digits_are_named(tmp_path: Path) -> None:
    ids = [f"12345678901234{n}00" for n in range(4)]
    rows = [f"s{n},{name},{'AB'[n % 2]},Ulm" for n, name in enumerate(ids)]
    (note,) = cohort_notes(read_cohort(write(tmp_path, *rows), labelled=True))
    assert note.startswith("ids of patients: all 4 of more than 15 digits end in zeros")
    rows[0] = rows[0].replace("00,", "07,")
    assert not cohort_notes(read_cohort(write(tmp_path, *rows), labelled=True))
    rows = [f"s{n},12345678901234{n}0,{'AB'[n]},Ulm" for n in range(2)]
    assert not cohort_notes(read_cohort(write(tmp_path, *rows), labelled=True))


@pytest.mark.parametrize("slide", ["STD", "Suma", "Mean"])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_last_slide_with_values_as_others_is_one(
    tmp_path: Path, slide: str, labelled: bool
) -> None:
    cohort = read_cohort(write(tmp_path, *ROWS, f"{slide},p9,A,Ulm"), labelled=labelled)
    assert cohort.patients[-1].slide_ids == (slide,)
    assert read_cohort(write(tmp_path, f"{slide},9,A,"), labelled=False).n_slides == 1
    with pytest.raises(CohortError, match=r"row 6: .* If it is a slide or patient, move it up"):
        read_cohort(write(tmp_path, *ROWS, f"{slide},p9,C,Ulm"), labelled=True)


@pytest.mark.parametrize("character", ["\x80", "\x85", "\x9f", "\ufffd", "\x1a"])
@pytest.mark.parametrize("column", range(4))
def test_a_character_that_is_no_letter_is_told_with_its_row(
    tmp_path: Path, character: str, column: int
) -> None:
    cells = ["d", "p4", "B", "Ulm"]
    cells[column] = f'"x{character}y"'
    with pytest.raises(CohortError, match=r"row 5: (slide|patient|label|centre) 'x.*y', with a ch"):
        read_cohort(write(tmp_path, *ROWS[:3], ",".join(cells)), labelled=True)


@pytest.mark.parametrize(
    ("formula", "is_one"),
    [("=LEFT(A5;2)", True), ("=$B$5", True), ("=Sheet2!A1", True), ("=A5&B5", True),
     ("=A", False), ("=1", False), ("A(1)=B2", False)],
)  # fmt: skip
@pytest.mark.parametrize("column", range(4))
def test_a_formula_in_place_of_its_value_is_told_with_its_row(
    tmp_path: Path, formula: str, is_one: bool, column: int
) -> None:
    cells = ["d", "p4", "B", "Ulm"]
    cells[column] = formula
    path = write(tmp_path, *ROWS[:3], ",".join(cells))
    if is_one:
        with pytest.raises(CohortError, match=r"row 5: (slide|patient|label|centre) .*formula"):
            read_cohort(path, labelled=True)
    else:
        read_cohort(path, labelled=True)


@pytest.mark.parametrize("mark", ["\u2028", "\x0b", "\x0c", "\r"])
def test_rows_in_one_cell_are_told_whatever_ends_the_lines(tmp_path: Path, mark: str) -> None:
    with pytest.raises(CohortError, match=r"row 3: patient 'p2.*, which holds several rows"):
        read_cohort(write(tmp_path, ROWS[0], f'b,"p2,B,Ulm{mark}c,p3",A,Ulm'), labelled=True)


def test_names_read_in_another_encoding_are_named(tmp_path: Path) -> None:
    wrong = "M\u00fcller".encode().decode("cp1252")
    path = write(tmp_path, *ROWS, f"e,{wrong},A,Ulm", "f,M\u00fcller,A,Ulm")
    assert [note.partition(";")[0] for note in cohort_notes(read_cohort(path, labelled=True))] == [
        f"patients such as '{wrong}' look like 'M\u00fcller' read in another encoding",
        f"patients whose ids look alike count as different ones: '{wrong}' = 'M\u00fcller'",
    ]
    findings = audit_similar_ids([read_split(path, name="train")])
    assert {finding.kind for finding in findings} == {"misread_patients", "lookalike_patients"}


def test_an_empty_cell_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"row 6: no label.*row. Fill it in or delete the row"):
        read_cohort(write(tmp_path, *ROWS, "e,p5,,Ulm"), labelled=True)


@pytest.mark.parametrize("role", ["label", "patient", "slide"])
def test_a_column_that_is_given_to_another_role_is_no_centre(tmp_path: Path, role: str) -> None:
    path = write(tmp_path, "a,p1,A,Bern", "b,p2,B,Ulm")
    columns = {role: "center_id"}
    assert {p.center_id for p in read_cohort(path, labelled=True, columns=columns).patients} == {
        None
    }
    assert not read_cohort_table(path, columns=columns).has_centres
    columns["center"] = "center_id"
    for read in (lambda: read_cohort(path, labelled=True, columns=columns),
                 lambda: read_cohort_table(path, columns=columns)):  # fmt: skip
        with pytest.raises(TableError, match=r"'center_id' both as .* expected a column for each"):
            read()


def test_two_columns_of_centres_are_not_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, "a,p1,A,Bern,Ulm", "b,p2,B,Ulm,Ulm", header=f"{HEADER},centre_id")
    with pytest.raises(
        TableError, match=r"columns 'center_id' and 'centre_id'.*--column center=center_id"
    ):
        read_cohort(path, labelled=True)
    assert read_cohort(path, labelled=True, columns={"center": "centre_id"}).patients[0].center_id


@pytest.mark.parametrize(
    ("header", "rows", "advice"),
    [
        ("a,p1,A", ["b,p2,B", "c,p3,A"], "The first row looks like values: write the names"),
        ("image_id patient_id", ["a p1", "b p2"], "Put commas, semicolons or tabs"),
        ("image_id~patient_id", ["a~p1", "b~p2"], "Put commas, semicolons or tabs"),
        ("image_id\u060cpatient_id", ["a\u060cp1"], "Put commas, semicolons or tabs"),
        ("001", ["002", "003"], "The first row looks like values"),
        ("image_id,patient_id,2019", ["a,p1,A"], "Name it with --column label=NAME"),
        ("patient#", ["p1"], "patient#; expected slide ids. (?!Put commas)"),
        (HEADER, ["a;p1;A;Bern", "b;p2;B;Ulm"], "row 2: one cell, 'a;p1;A;Bern'; expected 4"),
        (HEADER, ["a;p1;A;Bern"], "row 2: one cell, 'a;p1;A;Bern'; expected 4"),
        (
            HEADER,
            [*ROWS, "a\tp1\tA\tBern", "b\tp2\tB\tUlm"],
            r"row 6: one cell.* or '.t' into the header",
        ),
        (
            "patient_id;label",
            ["p1,A", "p2,B"],
            "one cell, 'p1,A'; expected 2.* or ',' into the header",
        ),
        ("patient_id,label", ["p1\tA", "p2\tB"], "one cell, .*; expected 2, as in the header"),
        ("patient_id,slide_1,slide_2,label", ["p1,a,b,A"], "Did you mean 'slide_1'"),
        (HEADER, ['"a,p1,A,Bern"', '"b,p2,B,Ulm"'], "Delete the quotation marks around the row"),
        (HEADER, ["string,string,string,string", *ROWS], "row 2: types of the columns"),
        (HEADER, ["1,a,p1,A,Bern", "2,b,p2,B,Ulm"], "put a name for these before the header"),
        ("patient_id,label", ["p1,A", "p2,B"], "--column slide=patient_id"),
        ("image_id,bag_id,label", ["a,b,A", "c,d,B"], "--column patient=bag_id"),
        (",".join(f"n{i}" for i in range(40)), [",".join("x" * 40)], "n11 and 28 more; expected"),
    ],
)
def test_what_is_amiss_with_the_header_is_said(
    tmp_path: Path, header: str, rows: list[str], advice: str
) -> None:
    path = write(tmp_path, *rows, header=header)
    with pytest.raises(TableError, match=advice):
        read_cohort(path, labelled=True)


def test_labels_of_patients_without_slides_are_read_as_advised(tmp_path: Path) -> None:
    path = write(tmp_path, "p1,A", "p2,B", header="patient_id,label")
    cohort = read_cohort(path, labelled=True, columns={"slide": "patient_id"})
    assert cohort.class_counts() == {"A": 1, "B": 1}


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="a folder; expected a CSV table"):
        read_cohort(tmp_path, labelled=True)


def test_a_hundred_thousand_rows_are_read_and_a_fault_in_the_last_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    plain = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or plain(path))
    rows = [f"s{n},p{n // 2},{'AB'[n // 2 % 2]},c{n % 40 // 2}" for n in range(100_000)]
    cohort = read_cohort(write(tmp_path, *rows), labelled=True)
    assert (len(cohort.patients), cohort.n_slides) == (50_000, 100_000)
    assert cohort.class_counts() == {"A": 25_000, "B": 25_000}
    assert len(opened) == 1
    for last, message in (("s1,p9,A,c1", "rows 3, 100001: slide 's1' has patients"),
                          ("s100000,p1,A,c", "rows 4, 5, 100001: patient 'p1' has labels A, B"),
                          ("s100000,,A,c", "row 100001: no patient")):  # fmt: skip
        with pytest.raises(CohortError, match=message):
            read_cohort(write(tmp_path, *rows[:-1], last), labelled=True)


@pytest.mark.parametrize(
    ("column", "values"), [("center_id", ("Zürich", "Zurich")), ("label", ("A", "a"))]
)
def test_two_spellings_at_one_patient_are_called_alike(
    tmp_path: Path, column: str, values: tuple[str, str]
) -> None:
    rows = [f"{slide},p{n // 2},{value if column == 'label' else 'AB'[n // 2]},"
            f"{value if column == 'center_id' else 'Bern'}"
            for n, (slide, value) in enumerate(zip("abcd", 2 * values, strict=True))]  # fmt: skip
    with pytest.raises(
        CohortError, match=r"patient 'p0' has .* They look alike: write it the same"
    ):
        read_cohort(write(tmp_path, *rows), labelled=True)


def test_some_cells_with_commas_in_a_table_of_two_columns_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path, '"p1,2",', '"p3,4",', "p5,x", header="patient_id,note")
    assert list(read_table(path)["patient_id"]) == ["p1,2", "p3,4", "p5"]


def test_a_centre_stated_in_one_row_of_a_patient_holds_for_all(tmp_path: Path) -> None:
    rows = ["a,p1,A,NA", "b,p1,A,Bern", "c,p1,A,", "d,p2,B,", "e,p3,B,Ulm"]
    patients = read_cohort(write(tmp_path, *rows), labelled=True).patients
    assert [patient.center_id for patient in patients] == ["Bern", "", "Ulm"]


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (["A", "B", "A|B"], "class 'A|B' joins 'A' and 'B'"),
        (["A", "B", "B; A"], "class 'B; A' joins 'B' and 'A'"),
        (["3+4", "4+3", "3+3"], ""),
        (["A", "B", "A/B"], "class 'A/B' joins 'A' and 'B'"),
        (["A", "B", "A,B,A"], "class 'A,B,A' joins 'A' and 'B'"),
        (["T1", "T2", "T1/T3"], ""),
        (["A", "B", "A/A"], ""),
        (["wt", "mut", "wt/wt"], ""),
        (["0", "1", "0/1"], ""),
        (["0", "5", "0,5"], ""),
    ],
)
def test_classes_that_join_others_are_named(tmp_path: Path, classes: list[str], named: str) -> None:
    rows = [f's{number},p{number},"{name}",Bern' for number, name in enumerate(classes)]
    notes = " ".join(cohort_notes(read_cohort(write(tmp_path, *rows), labelled=True)))
    assert named in notes
    assert ("joins" in notes) == bool(named)
    findings = audit_unclear_labels([read_split(tmp_path / "train.csv", name="train")])
    assert [finding.kind for finding in findings] == ["joined_labels"] * bool(named)
