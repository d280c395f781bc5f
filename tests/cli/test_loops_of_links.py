"""Loops of links where a command expects a run, a folder or a slide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import mil
from tests.test_stored_run import STORED


@pytest.fixture(autouse=True)
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to itself, a slide and a labelled table, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    Path("slides").mkdir()
    Image.new("RGB", (160, 160), "purple").save("slides/s.png")
    Path("train.csv").write_text("image_id,patient_id,label\n003_0,003,CE\n920_0,920,LAA\n")


@pytest.mark.parametrize(
    "command",
    [
        ["preview", "slides", "--out", "loop", "--slide-mpp", 0.5],
        ["combine", STORED / "run", "loop", "--run", "new"],
        ["compare", STORED / "run", "loop", "--out", "page.html"],
        ["recalibrate", STORED / "run", "--cohort", "train.csv", "--bags", STORED / "bags",
         "--run", "loop"],
        ["explain", "--run", STORED / "run", "--bags", STORED / "bags", "--out", "loop"],
    ],
)  # fmt: skip
def test_a_loop_of_links_is_one_line(command: list[object]) -> None:
    failed = mil(*command)
    assert failed.exit_code == 1, failed.exception
    lines = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, failed.stderr


def test_a_loop_of_links_among_slides_costs_no_other() -> None:
    Path("other").mkdir()
    Path("other/s.png").symlink_to("s.png")
    done = mil("inspect", "slides", "other", "--json")
    assert done.exit_code == 3, done.exception
    assert [Path(slide["path"]) for slide in json.loads(done.stdout)["slides"]] == [
        Path("slides/s.png")
    ]
