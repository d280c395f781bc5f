"""CSV tables as programs of all kinds and countries write them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from features.errors import TableError
from features.slides.manifest import read_mpp_table
from features.utils.tables import find_column, read_table, write_records, write_table

ROWS = (("image_id", "patient_id"), ("049194_0", "Müller"), ("588e11_0", "切片"))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "line_end", ["\n", "\r\n", "\r", "\r\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x0c"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_spreadsheets_save_is_read_to_the_letter(
    tmp_path: Path, separator: str, line_end: str, encoding: str
) -> None:
    path = tmp_path / "t.csv"
    text = line_end.join(separator.join(row) for row in ROWS) + line_end
    path.write_bytes(text.encode(encoding))
    table = read_table(path)
    assert tuple(table.columns) == ROWS[0]
    assert [tuple(row) for row in table.to_numpy()] == list(ROWS[1:])


@pytest.mark.parametrize("end", ["\x1a", "\r\n\x1a", "\n\x1a\x1a\n", "\x0c\n", "\n\x0b"])
def test_what_marks_the_end_of_a_file_is_no_row(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"image_id,patient_id\r\na,x\r\nb,y{end}".encode())
    assert read_table(path).to_numpy().tolist() == [["a", "x"], ["b", "y"]]


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c"])
def test_rows_joined_by_another_line_end_are_told(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "t.csv"
    text = f"image_id,patient_id\na,x\nb,y{mark}c,z\n"
    path.write_text(text, encoding="utf-8")
    advice = f"Replace U\\+{ord(mark):04X}, which is in it, by the end of a line"
    with pytest.raises(TableError, match=f"row 3: 3 cells; expected 2.*{advice}"):
        read_table(path)
    path.write_text(text.replace(mark, "\n"), encoding="utf-8")
    assert len(read_table(path)) == 3
    path.write_text(f'image_id,note\n{mark}a ,"red{mark}pen"\n', encoding="utf-8")
    assert read_table(path).to_numpy().tolist() == [["a", f"red{mark}pen"]]


def test_a_cell_in_quotes_may_hold_separators_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'"image_id","note"\r\n"a","red, and\r\nwhite"\r\n')
    table = read_table(path)
    assert table["image_id"].tolist() == ["a"]
    assert table["note"].tolist() == ["red, and\nwhite"]


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('"red, pen","red, ink",n', ["red, pen", "red, ink", "n"]),
        ('id;"a,b,c,d";n', ["id", "a,b,c,d", "n"]),
        ('id;"5"" tile,\nof \t\t\tslide";n', ["id", '5" tile,\nof \t\t\tslide', "n"]),
        ('id,5" tile;2" tile,n', ["id", '5" tile;2" tile', "n"]),
        ("\n\nid\ta;b\tn", ["id", "a;b", "n"]),
    ],
    ids=["same beginning", "other separators", "over two lines", "inches", "behind empty lines"],
)
def test_a_name_in_quotes_may_hold_separators_and_line_ends(
    tmp_path: Path, header: str, names: list[str]
) -> None:
    path = tmp_path / "t.csv"
    separator = next(mark for mark in ",;\t" if f"{mark}n" in header)
    path.write_text(f"{header}\n{separator.join('xyz')}\n")
    table = read_table(path)
    assert table.columns.tolist() == names
    assert table.to_numpy().tolist() == [["x", "y", "z"]]


@pytest.mark.parametrize("header", ['"a","a"', '"a, b","a, b "', "a,b,a"])
def test_a_name_that_stands_twice_is_told_as_it_reads(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n1,2\n")
    with pytest.raises(TableError, match=r"column '(a|a, b)' occurs twice"):
        read_table(path)


@pytest.mark.parametrize(
    "rows", ["a,Doe, Jane\nb,x\n", "b,x\na,Doe, Jane\n", "a,Doe, Jane\nb,Doe, John\n"]
)
def test_a_row_with_more_cells_than_the_header_is_told_and_not_cut(
    tmp_path: Path, rows: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"image_id,patient_id\n{rows}")
    with pytest.raises(TableError, match=r"row [23]: 3 cells; expected 2.*quotation marks"):
        read_table(path)


def test_empty_cells_beyond_the_header_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image_id,patient_id\na,x,\nb,y,\n")
    assert read_table(path).to_numpy().tolist() == [["a", "x"], ["b", "y"]]


def test_an_encoding_that_does_not_tell_itself_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("image_id,patient_id\na,Müller\n".encode("cp1252"))
    with pytest.raises(
        TableError, match=r"line 2 is not UTF-8 text \(byte 23\).*Save it as CSV \(UTF-8\)"
    ):
        read_table(path)
    path.write_bytes("image_id,patient_id\n".encode("utf-16") + b"\x00")
    with pytest.raises(TableError, match="is not UTF-8 text"):
        read_table(path)


def test_text_that_is_kept_from_a_spreadsheet_by_a_formula_is_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image_id,patient_id\n="049194_0","=""049194"""\n')
    assert read_table(path).to_numpy().tolist() == [["049194_0", "049194"]]
    write_table(path, pd.DataFrame({"image_id": ['="a"']}))
    assert read_table(path).to_numpy().tolist() == [['="a"']]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("Cohort of 2024;;\n;;\nslide_id;n;m\na;1;2\n", "Row 3 looks like the header"),
        ("a,1\nb,2\nSlide ID,n\n", "Row 3 looks like the header"),
        ("# exported\nslide_id,n,m\na,1,2\n", "If row 2 is the header, delete what is above"),
        ("slideid2;n\na;1\n", "Did you mean 'slideid2'. Rename it in the table.$"),
    ],
)
def test_a_header_that_is_not_the_first_row_is_pointed_at(
    tmp_path: Path, text: str, advice: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=advice):
        find_column(read_table(path), ["slide_id"], where=path, what="slide ids")


def test_two_spellings_of_a_column_are_one_only_with_the_same_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label,Label,mpp,MPP\nA,A,1,2\n")
    table = read_table(path)
    assert find_column(table, ["label"], where=path, what="classes") == "label"
    with pytest.raises(TableError, match="columns 'mpp' and 'MPP'"):
        find_column(table, ["mpp"], where=path, what="µm")


def test_a_zero_byte_is_told_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"image_id,label\na,C\nb,\0\n")
    with pytest.raises(TableError, match="row 3: a zero byte"):
        read_table(path)


def test_a_decimal_comma_is_told_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "mpp.csv"
    path.write_text("slide_id;mpp\na;0.5\nb;0,25\n")
    with pytest.raises(TableError, match=r"row 3: mpp '0,25'.*decimal point, such as 0\.25"):
        read_mpp_table(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "a workbook of a spreadsheet.*Save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(40), "a workbook of a spreadsheet"),
        (b"PAR1\x15\x04", "a file of Parquet or Arrow, no table.*read_parquet"),
        (b'[{"image_id": "a"}]', "JSON, no table.*read_json"),
        (b"{\\rtf1\\ansi image_id}", "a text document, no table"),
        (b"\x1f\x8b\x08\x00", "an archive, no table.*Unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of Git LFS, no table",
        ),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page, as after a failed download"),
        (b"%PDF-1.4 \xff", "a PDF, no table"),
        (b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file, such as a bag of embeddings, no table"),
        (b"\x93NUMPY\x01\x00", "data of another program .NumPy"),
        (b"\x80\x04\x95\x00", "data of another program .*or a pickle"),
        (b'<?xml version="1.0"?><Workbook></Workbook>', "HTML or XML, no table"),
        (b"<table><tr><td>image_id</td></tr></table>", "HTML or XML, no table.*spreadsheet"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=f"t.csv: {message}"):
        read_table(path)


def test_a_header_that_comes_again_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table = "image_id,patient_id\na,p\nb,q\n"
    path.write_text(table + "\n" + table)
    with pytest.raises(TableError, match=r"t.csv, row 5: the header again.*delete the header"):
        read_table(path)
    for again in ("\ufeffimage_id,patient_id", "PATIENT_ID,IMAGE_ID"):
        path.write_text(f"{table}{again}\nc,r\n", encoding="utf-8")
        with pytest.raises(TableError, match="row 4: the header again"):
            read_table(path)
    path.write_text("image_id,patient_id\nimage_id,p\n")
    assert len(read_table(path)) == 1
    path.write_text(",image_id,patient_id\n0,a,p\n1,b,q\n,image_id,patient_id\n0,c,r\n")
    with pytest.raises(TableError, match="row 4: the header again"):  # pandas wrote its index
        read_table(path)
    path.write_text("a\nb\na\n")
    with pytest.raises(TableError, match="row 3: the header again"):
        read_table(path)


@pytest.mark.parametrize("table", ["label,CE,LAA\nCE,LAA,\n", "a,b\nb,a\n", "a\nA\n"])
def test_a_row_of_values_that_are_names_of_columns_is_no_header(tmp_path: Path, table: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(table)
    assert len(read_table(path)) == 1


@pytest.mark.parametrize(
    "table",
    [
        "stain\ntext\nHE\n",
        "patient_id,label\ndate,\nx,1\n",
        "id;name;note\n1;a;b\nSmith, John, Jr;;\n",
    ],
)
def test_a_row_that_may_be_meant_as_it_is_is_read(tmp_path: Path, table: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(table)
    assert len(read_table(path)) == 2


@pytest.mark.parametrize(
    ("text", "n_columns"),
    [('a, "b", "c"\n1, "2, 3", "4"\n', 3), ('a, "b, "c"\n1, "2, "3"\n', 2)],
)
def test_blanks_before_quotation_marks_part_header_and_rows_alike(
    tmp_path: Path, text: str, n_columns: int
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert read_table(path).shape == (1, n_columns)


@pytest.mark.parametrize("comment", ["# a,b", "#excluded", "  # later", "#9,p9"])
def test_a_comment_among_rows_is_refused_with_its_line(tmp_path: Path, comment: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"image_id,patient_id\n\na,b\n{comment}\nc,d\n")
    with pytest.raises(TableError, match=r"row 4: '#?.*begins with #") as caught:
        read_table(path)
    assert comment.strip() in str(caught.value)
    path.write_text(f"sep=,\nimage_id,patient_id\na,b\nc,d\n{comment}")
    with pytest.raises(TableError, match="row 5"):
        read_table(path)


def test_ids_that_begin_as_comments_do_are_read_where_all_do_or_in_quotes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("#image_id,patient_id\n#1,a\n#2,b\n")
    table = read_table(path)
    assert table[find_column(table, ["image_id"], where=path, what="ids")].tolist() == ["#1", "#2"]
    path.write_text('image_id,note\n"#1",a\n2,"b\n# c"\n#N/A,d\n')
    assert read_table(path)["image_id"].tolist() == ["#1", "2", "#N/A"]
    write_table(path, pd.DataFrame({"id": ["#1", "2"], "p": [0.25, 0.5]}), float_format="%.3g")
    assert read_table(path).to_numpy().tolist() == [["#1", "0.25"], ["2", "0.5"]]


def test_errors_name_the_line_in_the_file_behind_empty_ones(tmp_path: Path) -> None:
    path = tmp_path / "mpp.csv"
    for cell in ("0,25", "0", "-1", "nan", "inf", "x"):
        path.write_text(f"sep=;\nslide_id;mpp\n\na;0.5\nb;{cell}\n")
        with pytest.raises(TableError, match="row 5: mpp"):
            read_mpp_table(path)
    path.write_text("slide_id,mpp\na,0.5\na.svs,0.50\na,0.25\n")
    with pytest.raises(TableError, match=r"row 4: mpp '0\.25' of slide 'a', which has another"):
        read_mpp_table(path)


@pytest.mark.parametrize("first", ["a", "#1"])
def test_records_are_written_as_a_table_is(first: str, tmp_path: Path) -> None:
    records = [
        {"id": first, "n": 3, "mpp": 0.12345678, "text": '=1+1, "é"'},
        {"id": "b", "n": 0, "mpp": float("nan"), "text": "-0.5\nand more"},
        {"id": "+c", "mpp": 2.0, "text": None},
    ]
    columns = ["id", "n", "mpp", "text"]
    write_records(tmp_path / "records.csv", records, columns=columns, float_format="%.6g")
    table = pd.DataFrame(records, columns=columns)
    table["n"] = table["n"].astype("Int64")
    write_table(tmp_path / "table.csv", table, float_format="%.6g")
    written = read_table(tmp_path / "records.csv")
    pd.testing.assert_frame_equal(written, read_table(tmp_path / "table.csv"))
    assert written["id"].tolist() == [first, "b", "+c"]
    if first == "a":
        assert (tmp_path / "records.csv").read_bytes() == (tmp_path / "table.csv").read_bytes()


@pytest.mark.parametrize("cell", ['"{""x"":0.25,""y"":0.25}"', '"[0.25, 0.25]"', "0.25 µm", "40x"])
def test_a_resolution_that_is_not_one_number_gets_no_advice_on_commas(
    tmp_path: Path, cell: str
) -> None:
    path = tmp_path / "mpp.csv"
    path.write_text(f"slide_id,mpp\na,{cell}\n", encoding="utf-8")
    with pytest.raises(TableError, match=r"row 2: mpp .* Write one number without a unit"):
        read_mpp_table(path)
