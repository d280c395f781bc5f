from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import Result

from features.utils.tables import read_table
from tests.cli.running import mil
from tests.fakes import write_cohort


def train(table: Path, *arguments: object) -> Result:
    options = ["--bags", table.parent / "bags", "--run", table.parent / "run", *arguments]
    return mil("train", "--cohort", table, *options)


@pytest.mark.ci
def test_leaving_one_centre_out_judges_every_patient_and_is_written_down(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=36, shift=0.8)
    head, *rows = table.read_text().splitlines()
    centres = {row.split(",")[1]: str(1 + int(row.split(",")[1]) // 12) for row in rows}
    rows = [f"{row},{centres[row.split(',')[1]]}" for row in rows]
    table.write_text("\n".join([f"{head},center_id", *rows]) + "\n")
    result = train(table, "--by", "centre", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert "each of 3 centres was predicted by heads trained on the others" in str(data["notes"])
    folds = read_table(tmp_path / "run" / "folds.csv")
    assert sorted(folds["patient_id"]) == sorted(centres)
    for _, judged in folds.groupby("fold"):
        assert judged["patient_id"].map(centres).nunique() == 1
    settings = json.loads((tmp_path / "run" / "model.json").read_text())["settings"]
    assert (settings["by"], settings["n_folds"]) == ("centre", 3)


def test_a_table_without_centres_or_a_number_of_folds_is_refused(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, n_patients=9, shift=0.8)
    result = train(table, "--by", "centre")
    assert result.exit_code == 1
    assert "9 of 9 patients without a centre" in result.output
    assert "center_id" in result.output
    asked = train(table, "--by", "centre", "--folds", 3)
    assert asked.exit_code == 2
    assert "one fold per centre" in asked.output
    assert not (tmp_path / "run").exists()
