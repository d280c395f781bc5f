"""Two spellings of one thing in cohort tables: named, or made one form, never two in silence."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from features.errors import MilError, TableError
from features.utils.tables import read_table
from features.utils.text import lookalikes
from mil.audit.tables import audit_unclear_labels, read_split
from mil.data.cohort import Cohort, cohort_notes, read_cohort
from mil.errors import CohortError
from mil.evaluation.cohort_part import read_part
from mil.evaluation.predictions import predicted_patients, read_predictions

ROWS = [("a", "p1", "A", "Bern"), ("b", "p2", "B", "Bern"), ("c", "p3", "A", "Ulm")]


def write(
    folder: Path,
    rows: list[tuple[str, ...]],
    header: str = "image_id,patient_id,label,center_id",
    *,
    encoding: str = "utf-8",
) -> Path:
    path = folder / "train.csv"
    path.write_bytes("\n".join([header, *map(",".join, rows), ""]).encode(encoding))
    return path


def read(folder: Path, rows: list[tuple[str, ...]], **options: str) -> Cohort:
    return read_cohort(write(folder, rows, **options), labelled=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [("A", "a"), ("class A", "class  A"), ("class A", "class\u00a0A"), ("class-A", "class_A"),
     ("class A", "class\u200bA"[:5] + "\u200b A"), ("1", "01"), ("1", "1.0"), ("é", "É"),
     ("Ａ", "A"), ("ß", "SS"), ("CE", "Ce"), ("CE", "\u0421\u0415"), ("Alpha", "\u0391lph\u0430"),
     ("CE", "C.E."), ("CE", "c.e"), ("A", "A\ufe0f"), ("AB", "A\u034fB"),
     ("A", "A\u3164"), ("A", "A\uffa0"), ("A", "\u2800A"), ("G1", "G-1"), ("T 01", "t1"),
     ("'A'", "A"), ("A;", "A"), ("A / B", "A/B"), ("A&amp;B", "A&B"), ("\u22655", ">=5"),
     ("Grade II", "grade 2"), ("Gef\u00e4\u00df", "Gefaess"), ("1", "\u0661"), ("Y", "yes"),
     ("tumor", "Tumour"), ("WAHR", "true"), ("Ja", "yes"), ("s\u00ed", "oui"),
     ("\u043d\u0435\u0442", "No"), ("b\u00f6sartig", "Malignant"), ("positiv", "pos"),
     ("LAA?", "LAA"), ("CE*", "ce"), ("-1", "\u22121"), ("-1", "-1.0"), ("-1", "-01"),
     ("-1", "- 1"), ("-1", "\u20131"), ("5''", '5\u2033'), ("\u201cA\u201d", "A")],
)  # fmt: skip
def test_classes_that_look_alike_are_refused(tmp_path: Path, one: str, other: str) -> None:
    rows = [("a", "p1", one, ""), ("b", "p2", other, ""), ("c", "p3", "third", "")]
    with pytest.raises(CohortError, match="look alike"):
        read(tmp_path, rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [("-1", "1"), ("+1", "-1"), ("A'", "A"), ("ER+", "ER-"), (">5", "<5"), ("1.05", "1.5"),
     ("1-11", "11-1"), ("P1", "P10"), ("I", "1"), ("blue", "blu"), ("5'", '5"'),
     ("5\u2032", "5\u2033"), ("5\u2019", "5\u201d")],
)  # fmt: skip
def test_classes_that_differ_are_two(tmp_path: Path, one: str, other: str) -> None:
    cohort = read(tmp_path, [("a", "p1", one, ""), ("b", "p2", other, "")])
    assert cohort.classes == tuple(sorted((one, other)))
    assert not cohort_notes(cohort)


@pytest.mark.parametrize(
    "word",
    [
        "#VALUE",
        "#N/A N/A",
        "Err:502",
        "1.#QNAN",
        "н/д",
        "NA",
        "nan",
        "NULL",
        "None",
        "n/a",
        "<NA>",
        "-",
        "#N/A",
        "?",
        "NaT",
        "#REF!",
        "(null)",
        "missing",
        "####",
        "n. a.",
        "\u2013",
        "\u2014",
        "\u2212",
        "...",
        "\u2026",
        "\uff1f",
        "/",
        "\\N",
        "''",
        "undefined",
        "(blank)",
        "[null]",
        "Not  applicable",
        "#NV",
        "#N/D",
        "#¡DIV/0!",
        "#DIV/0!",
        "#WERT!",
        "#¿NOMBRE?",
        "#Н/Д",
        "#N/D!",
        "#I/T",
        "#YOK",
        "#HIÁNYZIK",
        "#NENÍ_K_DISPOZICI",
        "#Δ/Υ",
    ],
)
@pytest.mark.parametrize("column", [0, 1, 2])
def test_words_for_missing_values_are_no_values(tmp_path: Path, word: str, column: int) -> None:
    rows = [
        tuple(word if index == column else cell for index, cell in enumerate(row))
        for row in ROWS[:2]
    ]
    with pytest.raises(CohortError, match=r"row 3.*missing value|row 3.*turned into a number"):
        read(tmp_path, [ROWS[2], *rows])


@pytest.mark.parametrize(
    "word",
    ["unknown", "UNKNOWN", "not_known", "Not  reported", "unk", "keine Angabe", "Desconocido",
     "não informado", "Inconnu", "НЕИЗВЕСТНО", "不明", "未知", "brak danych", "n.d.", "999",
     "-9", "9", "no data", "N/K", "TBC", "excluded", "indéterminé", "unlabelled"],
)  # fmt: skip
def test_a_class_that_may_mean_no_label_is_named(tmp_path: Path, word: str) -> None:
    cohort = read(tmp_path, [*ROWS, ("d", "p4", word, "Bern")])
    (note,) = cohort_notes(cohort)
    assert note.startswith(f"class {word!r} with 1 patient counts as a class like any other")
    split = read_split(tmp_path / "train.csv", name="train")
    (finding,) = audit_unclear_labels([split])
    assert word in finding.message
    assert not cohort_notes(read(tmp_path, ROWS))
    assert not [*audit_unclear_labels([read_split(tmp_path / "train.csv", name="train")])]


@pytest.mark.parametrize(
    "column", ["\uff4c\uff41\uff42\uff45\uff4c", "la\u200bbel", "label\ufe0f", "\u00a0Label"]
)
def test_columns_named_with_other_forms_of_letters_are_recognised(
    tmp_path: Path, column: str
) -> None:
    header = f"image_id,patient_id,{column},center_id"
    assert read(tmp_path, ROWS, header=header).classes == ("A", "B")


@pytest.mark.parametrize(("role", "other"), [("label", "patient"), ("center", "label")])
def test_one_column_in_two_roles_is_refused(tmp_path: Path, role: str, other: str) -> None:
    column = {"patient": "patient_id"}.get(other, other)
    with pytest.raises(TableError, match=f"column '{column}' both as .* expected a column for ea"):
        read_cohort(write(tmp_path, ROWS), labelled=True, columns={role: column})


def test_patients_named_as_their_only_slide_need_no_second_column(tmp_path: Path) -> None:
    columns = {"slide": "patient_id"}
    cohort = read_cohort(write(tmp_path, ROWS), labelled=True, columns=columns)
    assert cohort.patients[0].slide_ids == ("p1",)


@pytest.mark.parametrize("word", ["NA", "nan", "", "None"])
def test_a_centre_that_is_missing_is_none(tmp_path: Path, word: str) -> None:
    cohort = read(tmp_path, [(*ROWS[0][:3], word), *ROWS[1:]])
    assert not cohort.patients[0].center_id


@pytest.mark.parametrize("name", ["patient_id", "image_id", "Slide_ID"])
def test_a_class_named_like_a_column_of_ids_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CohortError, match=f"class named '{name}'"):
        read(tmp_path, [ROWS[0], ("b", "p2", name, "")])


def test_unicode_is_made_one_form_wherever_ids_meet(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Müller")
    rows = [("é1", apart, "A", ""), ("é2", "Müller", "A", ""), ("x", "p2", "B", "")]
    cohort = read(tmp_path, rows)
    assert cohort.patient_ids == ("Müller", "p2")
    assert cohort.patients[0].slide_ids == ("é1", "é2")
    path = tmp_path / "predictions.csv"
    path.write_text(f"patient_id,A,B\n{apart},0.7,0.3\np2,0.2,0.8\n")
    assert read_predictions(path, cohort, class_name=None).proba[0].tolist() == [0.7, 0.3]


@pytest.mark.parametrize(
    ("column", "one", "other", "what"),
    [(1, "P1", "p1", "patients"), (1, "007", "7", "patients"), (0, "a_1", "A_1", "slides"),
     (3, "Mayo", "mayo", "centres"), (3, "St. Anna", "St.  Anna", "centres"),
     (3, "1", "01", "centres"), (1, "Müller", "Muller", "patients"), (3, "José", "Jose", "centres"),
     (0, "Łódź", "Lodz", "slides"), (3, "Orsolya Ø", "orsolya o", "centres"),
     (1, "Дёмин", "Демин", "patients"), (1, "Mueller", "Müller", "patients"),
     (1, "O\u2019Neil", "O\u2032Neil", "patients"), (0, "P-01_2", "p1_2", "slides")],
)  # fmt: skip
def test_ids_that_look_alike_are_named(
    tmp_path: Path, column: int, one: str, other: str, what: str
) -> None:
    rows = [list(row) for row in ROWS]
    rows[0][column], rows[1][column] = one, other
    (note,) = cohort_notes(read(tmp_path, [tuple(row) for row in rows]))
    assert note.startswith(f"{what} whose ids look alike")
    assert f"'{one}'" in note
    assert f"'{other}'" in note


@pytest.mark.parametrize(
    "name",
    [
        "3-Jan",
        "03-Mar",
        "Jan-03",
        "3. Mrz",
        "5,88E+13",
        "049194,0",
        "2024-01-03 00:00:00",
        "3-ene",
        "1-mag",
        "janv.-24",
        "3. août",
        "01.Feb.24",
        "1\u67082\u65e5",
        "2024-01-03T10:15:00Z",
        "1/3/2024 12:00:00 AM",
        "1,234,567",
        "1\u2019234",
        "1\u202f234",
    ],
)
@pytest.mark.parametrize("column", [0, 1])
def test_ids_that_became_dates_or_numbers_are_refused(
    tmp_path: Path, name: str, column: int
) -> None:
    rows = [list(row) for row in ROWS]
    rows[1][column] = f'"{name}"'
    with pytest.raises(
        CohortError, match=r"row 3: (slide|patient) '.*turned into a number or date"
    ):
        read(tmp_path, [tuple(row) for row in rows])


@pytest.mark.parametrize(
    "name",
    [
        "2024-01-03",
        "jan-0003",
        "03-JANE",
        "1-2",
        "mary-01",
        "12-3",
        "LUG-01",
        "mag-10",
        "1-major",
        "1-LIS",
        "1-MAG",
        "1-OTT",
        "1-MAI",
        "MAR-12",
        "1:30",
        "12.345.678",
        "1 000",
    ],
)
def test_ids_with_hyphens_are_ids(tmp_path: Path, name: str) -> None:
    assert name in read(tmp_path, [ROWS[0], ("b", name, "B", "")]).patient_ids


@pytest.mark.parametrize("rows", ["p2,B,\nc,p3", "p2;B\nc;p3", "p2\nc,p3"])
def test_a_quotation_mark_left_open_joins_no_rows(tmp_path: Path, rows: str) -> None:
    with pytest.raises(CohortError, match=r"row 3: patient 'p2.*holds several rows.*Close"):
        read(tmp_path, [ROWS[0], ("b", f'"{rows}"', "B", "")])


@pytest.mark.parametrize("header", ["Patient_ID", "patient id", "patientId"])
def test_predictions_and_parts_know_spellings_of_headers(tmp_path: Path, header: str) -> None:
    cohort = read(tmp_path, ROWS)
    apart = tmp_path / "p.csv"
    apart.write_text(f"{header},A,B\np1,0.7,0.3\np2,0.2,0.8\np3,0.6,0.4\n")
    assert read_predictions(apart, cohort, class_name=None).proba[1].tolist() == [0.2, 0.8]
    assert read_part(apart, cohort) == ("p1", "p2", "p3")


def test_other_spellings_in_predictions_and_parts_are_pointed_at(tmp_path: Path) -> None:
    cohort = read(tmp_path, ROWS)
    table = tmp_path / "p.csv"
    table.write_text("patient_id,A,B\nP1,0.7,0.3\nP2,0.2,0.8\nP3,0.6,0.4\n")
    advice = "'P1' looks like 'p1': write it the same way in both"
    for refuse in (
        lambda: read_predictions(table, cohort, class_name=None),
        lambda: predicted_patients(table, cohort),
        lambda: read_part(table, cohort),
    ):
        with pytest.raises(MilError, match=advice):
            refuse()
    table.write_text("patient_id,a,b\np1,0.7,0.3\np2,0.2,0.8\np3,0.6,0.4\n")
    with pytest.raises(MilError, match="'a' looks like 'A'"):
        read_predictions(table, cohort, class_name=None)


def test_all_spellings_of_one_name_are_one_group() -> None:
    names = ("Angstroem", "Angstr\u00f6m", "\u00c5ngstr\u00f6m")
    assert lookalikes(names) == (names,)
    names = ("Baecker", "B\u00e4cker", "back\u00e9r")
    assert lookalikes(names) == (names,)


def test_a_patient_that_is_not_named_beside_a_slide_contradicts_nothing(tmp_path: Path) -> None:
    cohort = read(tmp_path, ROWS)
    table = tmp_path / "p.csv"
    for word in ("NA", "nan", "", "-"):
        table.write_text(f"slide_id,patient_id,A,B\na,{word},0.7,0.3\nb,p2,0.2,0.8\nc,p3,0.5,0.5\n")
        assert predicted_patients(table, cohort) == ("p1", "p2", "p3")
    table.write_text("slide_id,patient_id,A,B\na,p2,0.7,0.3\nb,p2,0.2,0.8\nc,p3,0.5,0.5\n")
    with pytest.raises(MilError, match="slide 'a' of patient 'p2'; expected of 'p1'"):
        predicted_patients(table, cohort)


def test_an_ordinary_table_has_no_note(tmp_path: Path) -> None:
    assert cohort_notes(read(tmp_path, ROWS)) == ()


@pytest.mark.parametrize(
    "header",
    ["Image_ID,PATIENT_ID,Label,Center_ID", "image id,Patient Id,LABEL,centre_id",
     "image_id,patient_id,label,Center", "image_id,patient_id,label,centre",
     "imageId,patientId,label,centerId", "image-id,patient.id,Label,Centre ID",
     "\ufeffimage_id,\u200bpatient_id\u00a0,label,center_id"],
)  # fmt: skip
def test_spellings_of_headers_are_recognised(tmp_path: Path, header: str) -> None:
    cohort = read(tmp_path, ROWS, header=header)
    assert cohort.patient_ids == ("p1", "p2", "p3")
    assert cohort.patients[2].center_id == "Ulm"


@pytest.mark.parametrize(
    ("header", "near", "role"),
    [("FILENAME,patient_id,label", "FILENAME", "slide"), ("image_id,PATIENT,label", "PATIENT",
     "patient"), ("slide_id,case_id,label", "case_id", "patient"), ("slide_id,patient_id,diagnosis",
     "diagnosis", "label"), ("wsi,patient_id,label", "wsi", "slide"),
     ("slide_id,Subject ID,label", "Subject ID", "patient")],
)  # fmt: skip
def test_other_headers_are_suggested_and_the_advice_works(
    tmp_path: Path, header: str, near: str, role: str
) -> None:
    path = write(tmp_path, [row[:3] for row in ROWS], header)
    with pytest.raises(TableError, match=f"Did you mean '{near}'") as caught:
        read_cohort(path, labelled=True)
    assert "--column" in str(caught.value)
    assert read_cohort(path, labelled=True, columns={role: near}).patient_ids == ("p1", "p2", "p3")
    with pytest.raises(TableError, match="as --column states"):
        read_cohort(path, labelled=True, columns={role: f"{near}x"})


def test_two_spellings_of_one_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS, "image_id,Patient_ID,PATIENT_ID,label")
    with pytest.raises(TableError, match="'Patient_ID' and 'PATIENT_ID'"):
        read_cohort(path, labelled=True)


TABLE = "image_id,patient_id,label\na,p1,A\nb,p2,B\nc,p3,A\n"


@pytest.mark.parametrize(
    "content",
    [
        "sep=;\n" + TABLE.replace(",", ";"),
        '"sep=,"\r\n' + TABLE.replace("\n", "\r\n"),
        "sep=\t\n" + TABLE.replace(",", "\t"),
        TABLE + ",,\n,,\n",
        TABLE + "\n\n , ,\u200b\n",
        TABLE.replace("\n", ",,\n"),
        TABLE.replace("b,p2", "\nb,p2"),
        TABLE.replace("b,p2", ",,\nb,p2"),
        TABLE.replace("p1,", '"p1", "A"#').replace("#A", ""),
        "\ufeff\ufeff" + TABLE,
    ],
)
def test_what_spreadsheets_add_is_no_content(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(content)
    cohort = read_cohort(path, labelled=True)
    assert [p.label for p in cohort.patients] == ["A", "B", "A"]
    assert cohort.patient_ids == ("p1", "p2", "p3")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_that_show_themselves_are_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "train.csv").write_bytes(TABLE.replace("p2", "é").encode(encoding))
    assert read_cohort(tmp_path / "train.csv", labelled=True).patient_ids == ("p1", "p3", "é")


@pytest.mark.parametrize("before", ["", "sep=,\n", "\n\n"])
@pytest.mark.parametrize("between", ["", ",,\n", "\n"])
def test_messages_name_the_line_of_the_file(tmp_path: Path, before: str, between: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(before + TABLE.replace("c,p3", f"{between}c,"))
    line = 4 + before.count("\n") + between.count("\n")
    with pytest.raises(MilError, match=f"row {line}: no patient"):
        read_cohort(path, labelled=True)


def test_a_table_of_empty_rows_has_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n,\n,\n")
    with pytest.raises(TableError, match="no rows under the header"):
        read_table(tmp_path / "t.csv")
