"""Folders that commands write to, where something else is in the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from features.slides.synthetic import write_slide
from tests.cli.running import mil
from tests.fakes import write_cohort

COMMANDS = (
    "train --cohort train.csv --bags bags --head mean --run",
    "combine bags bags --run",
    "recalibrate bags --cohort train.csv --bags bags --run",
    "bags pack bags --out",
    "bags export bags --to torch --out",
    "bags import exported --from torch --bags",
    "preview slide.tif --mpp 2 --out",
)
WHY = {
    "file": "file: ",
    "file/run": "Not a directory",
    "pipe": "pipe: ",
    "nowhere": "nowhere: ",
    "loop": "loop: ",
    "loop/run": "Too many levels of symbolic links",
    "o" * 300: "File name too long",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_cohort(folder, n_patients=12, shift=0.8)
    write_slide(folder / "slide.tif", np.full((64, 64, 3), 150, np.uint8))
    mil("bags", "export", folder / "bags", "--to", "torch", "--out", folder / "exported")
    (folder / "file").touch()
    os.mkfifo(folder / "pipe")
    (folder / "nowhere").symlink_to("gone")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.mark.parametrize("name", WHY, ids=lambda name: name[:8])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_can_be_no_folder_is_refused_before_the_work(
    world: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(world)
    before = set(Path().iterdir())
    failed = mil(*command.split(), name)
    assert failed.exit_code == 1, failed.output
    assert WHY[name] in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert set(Path().iterdir()) == before


@pytest.mark.parametrize(
    "command", ["bags verify", "report", "describe train.csv --bags", "audit train.csv --bags"]
)
def test_a_name_that_is_too_long_is_one_line(
    world: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(world)
    failed = mil(*command.split(), "o" * 300)
    assert (failed.exit_code, len(failed.stderr.splitlines())) == (1, 1)
    assert "File name too long" in failed.stderr
