"""Commands say what of a folder they did not take, and their exit codes tell it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.series.manifest import read_series
from features.series.series import files_passed_over
from tests.cli.running import mil, mil_ok


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One blank slide."""
    slides = tmp_path / "slides"
    slides.mkdir()
    Image.fromarray(np.full((300, 300, 3), 240, np.uint8)).save(slides / "a.png")
    return slides


COMMANDS = {
    "inspect": ("inspect",),
    "preview": ("preview", "--rules", "none", "--out"),
}


def run(command: str, folder: Path, *more: object) -> object:
    name, *options = COMMANDS[command]
    out = [folder.parent / "out"] if options else []
    return mil(name, folder, *options, *out, *more)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_slide_without_a_reader_is_named_and_the_exit_code_is_3(
    folder: Path, command: str
) -> None:
    for number in range(7):
        (folder / f"{number}.vsi").touch()
    result = run(command, folder)
    assert result.exit_code == 3
    assert "passed over: 7 files, no reader for .vsi, convert to OME-TIFF" in result.output
    assert "0.vsi, 1.vsi, 2.vsi, 3.vsi, 4.vsi and 2 more" in result.output
    listed = json.loads(run(command, folder, "--json").stdout)["passed_over"]
    assert [Path(path).name for path in listed] == [f"{number}.vsi" for number in range(7)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_note_beside_the_slides_is_said_and_costs_nothing(folder: Path, command: str) -> None:
    (folder / "notes.txt").touch()
    result = run(command, folder)
    assert result.exit_code == 0
    assert "passed over: 1 file, no slide by its name (.txt)" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_many_unreadable_files_take_a_few_lines(folder: Path, command: str) -> None:
    for number in range(40):
        (folder / f"{number:02}.svs").write_bytes(b"II*\x00 no more")
    result = run(command, folder)
    assert result.exit_code == 3
    assert result.output.count("no reader can open it") == 5
    assert "40 of 41 slides failed" in result.output


def test_a_folder_of_nothing_readable_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.vsi").touch()
    (tmp_path / "slides.zip").touch()
    for command in ("inspect", "embed", "preview"):
        result = mil(command, tmp_path)
        assert result.exit_code == 1
        for words in ("no slide in it", "1 file, no reader for .vsi", "unpack it first"):
            assert words in result.output


def test_what_a_folder_of_series_leaves_out_is_listed(tmp_path: Path) -> None:
    for name in ("s1/1.png", "s1/notes.txt", "s1/.hidden.txt", "s1/DICOMDIR", "s2/Thumbs.db",
                 "s2/1.jpg", "s2/scan", "s3/.hidden.png", "beside.png", "table.xlsx"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    passed = files_passed_over(tmp_path, read_series(tmp_path))
    listed = {path.relative_to(tmp_path).as_posix(): why for path, why in passed.items()}
    assert sorted(listed) == ["beside.png", "s1/notes.txt", "s2/scan", "s3", "table.xlsx"]
    assert [name for name, why in listed.items() if why.is_slide] == ["beside.png", "s3"]
    assert listed["s1/notes.txt"].reason == "no image by its name (.txt)"


@pytest.mark.ci
def test_embedding_names_what_it_passed_over(folder: Path, tmp_path: Path) -> None:
    (folder / "b.lif").touch()
    command = ("embed", folder, "--bags", tmp_path / "bags", "--execution", "eager")
    result = mil(*command)
    assert result.exit_code == 3
    assert "passed over: 1 file, no reader for .lif" in result.output
    (folder / "b.lif").unlink()
    assert "passed over" not in mil_ok(*command).output
