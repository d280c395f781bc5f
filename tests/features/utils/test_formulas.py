"""Tables: what is typed stays what it is, whatever it is, and no spreadsheet runs it."""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.bags.h5 import bag_path
from features.errors import BagError, TableError
from features.utils.tables import read_table, write_table

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=20)
HOSTILE = ["=cmd|' /C calc'!A0", "+1+2", "-2+3", "@SUM(A1)", "=HYPERLINK(1)", "'=x", "''@y"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "t.csv"


@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
@example(rows=[("", "\t"), ("", "\t=x"), ("", " =x"), ("", "'\t"), ("", "'\t=x")])
@example(rows=[("", "\x1a")])
@example(rows=[("\t0", ""), (";0", "")])
@example(rows=[("\t0", ""), ("\t0", "")])
def test_whatever_is_typed_comes_back_to_the_letter(
    path: Path, rows: list[tuple[str, str]]
) -> None:
    table = pd.DataFrame([(f"x{first}", second) for first, second in rows], columns=["id", "other"])
    write_table(path, table)
    expected = table.map(lambda text: text.replace("\r", "\n").strip())
    pd.testing.assert_frame_equal(read_table(path), expected, check_dtype=False)


@given(ids=st.lists(TEXT.map(str.strip).filter(bool), min_size=1, max_size=5))
def test_no_cell_that_is_written_is_a_formula(path: Path, ids: list[str]) -> None:
    write_table(path, pd.DataFrame({"patient_id": ids, "p": -0.5}))
    with path.open(newline="", encoding="utf-8") as file:
        for row in list(csv.reader(file))[1:]:
            assert row[1] == "-0.5"
            assert row[0][:1] not in {"=", "@", "+", "-"} or re.fullmatch(r"[+-][\w.+-]+", row[0])
    assert read_table(path)["patient_id"].tolist() == ids


@pytest.mark.parametrize("text", HOSTILE)
def test_a_formula_is_guarded_in_names_and_cells_and_read_as_what_it_was(
    tmp_path: Path, text: str
) -> None:
    write_table(tmp_path / "t.csv", pd.DataFrame({"patient_id": [text], text: ["1"]}))
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["patient_id", f"'{text}"], [f"'{text}", "1"]]
    result = read_table(tmp_path / "t.csv")
    assert result.to_dict("records") == [{"patient_id": text, text: "1"}]


@pytest.mark.parametrize("text", ["049194", "588e11", "-1", "+3.5", "-inf", "O'Neil", "'x", "a=b"])
def test_ids_that_are_no_formula_are_written_to_the_letter(tmp_path: Path, text: str) -> None:
    write_table(tmp_path / "t.csv", pd.DataFrame({"patient_id": [text]}))
    assert (tmp_path / "t.csv").read_text() == f"patient_id\n{text}\n"


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_one_clear_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with suppress(TableError):
        assert len(read_table(path)) > 0


@given(slide_id=st.text(max_size=30))
def test_no_id_leads_out_of_a_folder(slide_id: str) -> None:
    try:
        path = bag_path(Path("/bags"), slide_id)
    except BagError:
        return
    assert path.parent == Path("/bags")
    assert path.name == f"{slide_id}.h5"
