from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import MilError
from mil.data.cohort import Cohort, Covariate, read_cohort
from mil.data.covariates import (
    check_covariates,
    missing_code_notes,
    parse_covariates,
    with_covariates,
)

N = 40


def table(folder: Path, cells: list[str], name: str = "age", *, n: int = N) -> Path:
    rows = [f"s{i},p{i},{'ab'[i % 2]},{cells[i % len(cells)]}" for i in range(n)]
    path = folder / "train.csv"
    path.write_text("\n".join([f"image_id,patient_id,label,{name}", *rows]) + "\n")
    return path


def read(path: Path, *names: str | Covariate) -> Cohort:
    return with_covariates(read_cohort(path, labelled=True), names or ("age",))


@pytest.mark.parametrize(
    ("cells", "is_number", "first"),
    [
        (["61", "72.5", "NA", "80", "61"], True, ("61", "72.5", "")),
        (["yes", "no", "n/a", "no", "no"], False, ("yes", "no", "")),
        (["1", "0", "0"], True, ("1", "0", "0")),
        ([" f ", "m", "m"], False, ("f", "m", "m")),
        (["IV", "II", "3", "II", "IV"], False, ("IV", "II", "3")),
        (["1e2", "-3", "0.5"], True, ("1e2", "-3", "0.5")),
    ],
)
def test_a_column_is_of_numbers_or_of_categories_and_words_for_missing_are_empty(
    tmp_path: Path, cells: list[str], is_number: bool, first: tuple[str, ...]
) -> None:
    cohort = read(table(tmp_path, cells))
    assert cohort.covariates == (Covariate(name="age", is_number=is_number),)
    by_id = {patient.patient_id: patient.covariates[0] for patient in cohort.patients}
    assert tuple(by_id[f"p{i}"] for i in range(3)) == first
    assert check_covariates(cohort) == ()


@pytest.mark.parametrize(
    "cells",
    [
        ["61,5", "72,0", "NA", "80,25", "61,5"],
        ["61,5", "72", "", "80,25", "61,5"],
        ["67 years", "71 years", "80 years", "", "67 years"],
        ["12%", "15%", "12%", "9%", "9%"],
        ["1.070,5 mg", "900,5 mg", "2 mg", "2 mg", "2 mg"],
    ],
)
def test_numbers_with_a_decimal_comma_or_a_unit_are_not_taken_for_categories(
    tmp_path: Path, cells: list[str]
) -> None:
    path = table(tmp_path, [f'"{cell}"' for cell in cells])
    with pytest.raises(MilError, match="Write numbers without unit, with a decimal point"):
        read(path)


@pytest.mark.parametrize(
    "cells",
    [
        ["1a", "1b", "2a", "2b", "1a"],
        ["<50", "50+", "<50", "50+", "<50"],
        ["50-60", "60-70", "50-60", "60-70", "60-70"],
        ["G1", "G2", "G3", "G1", "G1"],
        ["01.02.2020", "01.03.2020", "01.02.2020", "01.03.2020", "01.02.2020"],
    ],
)
def test_names_that_hold_digits_are_categories(tmp_path: Path, cells: list[str]) -> None:
    assert not read(table(tmp_path, cells)).covariates[0].is_number


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([""], "column 'age': missing for all 40 patients"),
        (["NA", "-"], "missing for all 40 patients"),
        (["67"], "'67' for all 40 patients; expected values that differ"),
        (["67", "67.0"], "for all 40 patients"),
        (["m"], "'m' for all 40 patients"),
        ([f"word {i}" for i in range(1000)], "40 categories among 40 patients"),
        (["no", "yes"], "tells all patients' classes apart without error"),
        (["1", "2", "0", "3", "0.5", "9"], "tells all patients' classes apart without error"),
        (["a", "b"], "It may be the label under another name"),
        (["67", "old", "70"], "row 3: age is 'old', where 27 of 40 rows hold numbers"),
        (["67", "67 years", "1", "2"], "Write numbers without unit"),
        (["67", "inf", "3"], "age is 'inf'"),
        (["67", "1e999", "3"], "age is '1e999'"),
    ],
)
def test_a_column_that_nothing_honest_can_be_learned_from_is_refused(
    tmp_path: Path, cells: list[str], message: str
) -> None:
    with pytest.raises(MilError) as error:
        check_covariates(read(table(tmp_path, cells)))
    assert message in str(error.value)


def test_a_thousand_categories_are_counted(tmp_path: Path) -> None:
    path = table(tmp_path, [f"town {i}" for i in range(1000)], n=1000)
    with pytest.raises(MilError, match="1,000 categories among 1,000 patients"):
        check_covariates(read(path))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["no", "yes"], "right for 59 of 60 patients: is it the label?"),
        (["1", "2"], "right for 59 of 60 patients: is it the label?"),
        (["9", "2"], "right for 59 of 60 patients: is it the label?"),
        (["no", "yes", "no", "no"], ""),
        (["5", "2", "1", "9"], ""),
    ],
)
def test_a_copy_of_the_label_with_a_correction_is_noted(
    tmp_path: Path, cells: list[str], said: str
) -> None:
    every = (cells * 60)[:60]
    every[0] = every[1]
    notes = check_covariates(read(table(tmp_path, every, n=60)))
    assert [said in note for note in notes] == [True] * bool(said)


@pytest.mark.parametrize(
    ("cells", "code"),
    [
        (["61", "54.5", "999", "70"], "999"), (["0", "1", "9", "0", "2"], "9"),
        (["0", "1", "-9", "0"], "-9"), (["61", "54", "-99.0"], "-99.0"),
        (["female", "male", "9"], "9"), (["no", "yes", "-1", "no"], "-1"),
        (["61", "54", "99", "70"], ""), (["-9", "-3", "2"], ""), (["1", "0", "-1"], ""),
        (["0", "999"], ""), (["T1", "T2", "3"], ""), (["450", "999", "700"], ""),
    ],
)  # fmt: skip
def test_a_code_for_missing_values_is_noted(tmp_path: Path, cells: list[str], code: str) -> None:
    notes = missing_code_notes(read(table(tmp_path, cells)))
    assert [f" is {code} for " in note for note in notes] == [True] * bool(code)


@pytest.mark.parametrize("cells", [["61", ""], ["", "yes"], ["", "1", "NA", "2"]])
def test_cells_that_are_missing_for_one_class_alone_are_refused(
    tmp_path: Path, cells: list[str]
) -> None:
    with pytest.raises(MilError, match=r"missing for all patients of [ab], and for no others"):
        check_covariates(read(table(tmp_path, cells)))


def test_few_patients_told_apart_are_noted_not_refused(tmp_path: Path) -> None:
    (note,) = check_covariates(read(table(tmp_path, ["1", "2", "0", "3"], n=8)))
    assert "is it the label?" in note


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("agee", "no column 'agee'"),
        ("label", "is the column of ids or labels"),
        ("patient_id", "is the column of ids or labels"),
    ],
)
def test_a_column_that_is_absent_or_no_covariate_is_named(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(MilError, match=message):
        read(table(tmp_path, ["1", "2", "4"]), name)


def test_two_values_of_a_patient_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("image_id,patient_id,label,age\n1,p,a,60\n2,p,a,61\n3,q,b,70\n")
    with pytest.raises(MilError, match="patient 'p' has ages 60, 61"):
        read(path)


def test_a_column_keeps_the_kind_of_the_trained_model(tmp_path: Path) -> None:
    path = table(tmp_path, ["x", "y", "x"])
    with pytest.raises(MilError, match="age is 'x', where 0 of 40 rows hold numbers"):
        read(path, Covariate(name="age", is_number=True))
    path = table(tmp_path, ["1", "2", "1"])
    assert not read(path, Covariate(name="age", is_number=False)).covariates[0].is_number


@pytest.mark.parametrize("text", ["age,", "age,age", ","])
def test_names_are_stated_once(text: str) -> None:
    with pytest.raises(MilError, match="names of columns, each once"):
        parse_covariates(text)


@pytest.mark.parametrize(
    "cells", [["f", "F", "m", "m", "m"], ["I", "II", "\u0399\u0399", "II", "I"]]
)
def test_categories_that_look_alike_are_refused(tmp_path: Path, cells: list[str]) -> None:
    with pytest.raises(MilError, match=r"'age': categories .* and .*, which look alike.*same way"):
        check_covariates(read(table(tmp_path, cells)))


def test_a_number_beyond_all_measures_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(MilError, match=r"row 3: age is '1e300', where .* rows hold numbers"):
        read(table(tmp_path, ["61", "1e300", "72", "80", "3"]))
