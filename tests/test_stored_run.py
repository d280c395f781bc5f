"""A run, bags and predictions of an earlier version, which every later one must read alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from tests.cli.running import mil, mil_ok

STORED = Path(__file__).parent / "data" / "stored-run"


def test_a_stored_run_still_gives_the_stored_predictions(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "stored")
    out = tmp_path / "submission.csv"
    result = mil(
        "infer", "--patients", tmp_path / "stored" / "test.csv", "--bags", tmp_path / "stored/bags",
        "--run", tmp_path / "stored/run", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 3  # one of the patients has no bag
    for name in ("submission.csv", "submission.details.csv"):
        now, then = (
            pd.read_csv(folder / name, dtype={"patient_id": str, "seen_as": str})
            for folder in (tmp_path, STORED)
        )
        assert list(now) == list(then)
        for column in now:
            if now[column].dtype.kind == "f":  # another machine sums in another order
                np.testing.assert_allclose(now[column], then[column], rtol=0, atol=1e-5)
            else:
                assert now[column].equals(then[column]), column


def test_a_report_can_be_drawn_of_a_stored_run(tmp_path: Path) -> None:
    shutil.copytree(STORED / "run", tmp_path / "run")
    mil_ok("report", tmp_path / "run")
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
