from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import mil, mil_ok
from tests.fakes import write_cohort


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_cohort(tmp_path, n_patients=45, shift=0.0, n_tiles=20)


def test_a_clean_cohort_is_exit_code_0(table: Path) -> None:
    result = mil_ok("audit", table, "--bags", table.parent / "bags")
    assert "No leak found" in result.stdout
    assert "Shortcuts" in result.stdout
    assert "54 bags" in result.stdout


def test_a_leak_is_exit_code_1_and_said_in_plain_words(table: Path) -> None:
    test = table.with_name("test.csv")
    test.write_text("image_id,patient_id\nx_0,003\n")
    result = mil("audit", table, test)
    assert result.exit_code == 1
    assert "error: 1 patient both in" in result.stdout
    assert "Leaks: 1." in result.stdout
    assert "tables only" in result.stdout
    assert "Traceback" not in result.output


def test_programs_get_one_json_object(table: Path) -> None:
    test = table.with_name("test.csv")
    test.write_text("image_id,patient_id\nx_0,003\n")
    result = mil("audit", table, test, "--folds", 3, "--seed", 1, "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    assert data["leaks"] is True
    assert data["n_patients"] == {"train": 45, "test": 1}
    assert data["findings"][0]["kind"] == "patient_on_two_sides"
    assert data["findings"][0]["subjects"] == ["003"]
    slides = next(m for m in data["predictability"] if m["source"] == "slides")
    low, high = slides["score"]["interval"]
    assert low <= slides["score"]["value"] <= high


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.csv"], 1, "gone.csv: there is no such file"),
        (["{table}", "gone.csv"], 1, "gone.csv: there is no such file"),
        (["{table}", "--bags", "gone"], 1, "gone: there is no such folder"),
        (["{table}", "--folds", "1"], 2, "--folds"),
        ([], 2, "Usage"),
    ],
)
def test_bad_input_is_one_line(table: Path, arguments: list[str], code: int, message: str) -> None:
    result = mil("audit", *[part.format(table=table) for part in arguments])
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
