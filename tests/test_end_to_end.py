"""The demo as a user runs it, at full strength and with the class taken out of the tissue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def demo(folder: Path, *options: str) -> tuple[str, dict[str, float]]:
    """Run ``mil demo`` in a process of its own; what it prints, and the held-out scores."""
    mil = [sys.executable, "-m", "cli"]
    done = subprocess.run(
        [*mil, "demo", "--out", str(folder), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    scored = subprocess.run(
        [*mil, "score", str(folder / "submission.csv"), "--cohort",
         str(folder / "test_labels.csv"), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    raw = json.loads(scored.stdout)["files"][0]["raw"]
    return done.stdout, {name: one["value"] for name, one in raw.items() if "value" in one}


@pytest.mark.slow
def test_the_demo_shows_the_whole_road_and_says_it_is_synthetic(tmp_path: Path) -> None:
    text, scores = demo(tmp_path / "demo")
    assert "SYNTHETIC" in text
    for command in ("mil embed", "mil train", "mil infer", "mil score"):
        assert f"$ {command}" in text
    assert "0.6931" in text
    assert scores["auroc"] > 0.6
    trained = json.loads((tmp_path / "demo" / "runs" / "demo" / "scores.json").read_text())
    low, high = trained["calibrated"]["weighted_log_loss"]["interval"]
    assert low < high < 0.6931
    run = tmp_path / "demo" / "runs" / "demo"
    assert 'href="explanations/index.html"' in (run / "report.html").read_text()
    assert 'href="../report.html"' in (run / "explanations" / "index.html").read_text()


@pytest.mark.slow
def test_without_signal_the_same_road_scores_at_chance(tmp_path: Path) -> None:
    _, scores = demo(
        tmp_path / "demo", "--train-patients", "40", "--test-patients", "40", "--signal", "0"
    )
    # 15 against 25 patients: the standard error of a chance AUROC is 0.095.
    assert abs(scores["auroc"] - 0.5) < 3 * 0.095
    assert abs(scores["weighted_log_loss"] - 0.6931) < 0.1
