from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.slides.file_info import compression_of, file_size
from features.slides.synthetic import write_slide
from tests.cli.running import mil, mil_ok
from tests.fakes import real_data, write_cohort


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with bags for all slides, and files for three of them, of which one is damaged."""
    path = write_cohort(tmp_path, n_patients=12, shift=0.0, n_tiles=5)
    slides = tmp_path / "slides"
    slides.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (500, 700, 3), dtype=np.uint8)
    write_slide(slides / "001_0.tif", noise)
    write_slide(slides / "002_0.tif", noise)
    (slides / "003_0.tif").write_bytes(b"bad")
    return path


def test_a_page_of_all_that_is_known(table: Path) -> None:
    page = table.with_name("pages") / "cohort.html"
    result = mil("describe", table, "--slides", table.parent / "slides", "--bags",
                table.parent / "bags", "--out", page, "--json")  # fmt: skip
    assert result.exit_code == 3, result.output  # 003_0 cannot be opened
    data = json.loads(result.stdout)
    assert data["page"] == str(page)
    assert (data["n_patients"], data["n_slides"], data["n_files"], data["n_bags"]) == (
        12,
        15,
        2,
        15,
    )
    findings = {finding["kind"]: finding for finding in data["findings"]}
    assert findings["file_copied"]["subjects"] == ["001_0", "002_0"]
    assert findings["file_unreadable"]["subjects"] == ["003_0"]
    assert findings["resolution_unknown"]["subjects"] == ["001_0", "002_0"]  # 10 px per cm
    assert data["largest_slide"]["compression"] == "LZW"
    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/jpeg") == 2
    assert "700 × 500 px" in html


def test_the_summary_is_for_people(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(table.parent)
    result = mil_ok("describe", table)
    assert "15 slides of 12 patients (8 CE, 4 LAA)." in result.stdout
    assert "note: LAA is the rarer class" in result.stdout
    assert "Page: describe.html" in result.stdout
    assert Path("describe.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.csv"], 1, "there is no such file"),
        (["{table}", "--slides", "gone"], 1, "there is no such file or folder"),
        (["{table}", "--bags", "gone"], 1, "there is no such folder"),
        (["{table}", "--gallery", "-1"], 2, "--gallery"),
        (["{table}", "--out", "{folder}"], 2, "is a folder; name a file in"),
        ([], 2, "Usage"),
    ],
)
def test_bad_input_is_one_line(table: Path, arguments: list[str], code: int, message: str) -> None:
    result = mil("describe", *[p.format(table=table, folder=table.parent) for p in arguments])
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_of_two_files_with_the_same_slide_id_the_first_is_read(table: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    (slides / "003_0.tif").unlink()
    Image.new("RGB", (50, 40)).save(slides / "001_0.png")
    result = mil_ok(
        "describe", table, "--slides", slides, "--gallery", 0, "--out", tmp_path / "p.html"
    )
    assert "has the same slide id as" in result.output
    assert "001_0.png" in result.output
    assert "data:image/jpeg" not in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_compression_and_size_of_files_folders_and_urls(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", np.zeros((40, 40, 3), np.uint8))
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    (tmp_path / "c.txt").write_text("no picture")
    assert compression_of(tmp_path / "a.tif") == "LZW"
    assert compression_of(tmp_path / "b.png") == "PNG"
    assert compression_of(tmp_path / "c.txt") == ""
    assert compression_of(tmp_path) == ""
    assert file_size(tmp_path / "c.txt") == 10
    assert file_size(Path("s3://bucket/a.zarr")) is None
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "data").write_bytes(b"123")
    (tmp_path / "d.mrxs").write_bytes(b"12")
    assert (file_size(tmp_path / "d"), file_size(tmp_path / "d.mrxs")) == (3, 5)


@pytest.mark.ci
def test_a_table_is_described_without_torch(table: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cli.app import app\n"
        "result = CliRunner().invoke(app, ['describe', *sys.argv[1:]])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'timm', 'openslide'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(table), "--out", str(tmp_path / "p.html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@real_data
def test_real_slides_of_four_kinds_are_described(mil_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(
        "image_id,patient_id,label\ncmu-1-small-region,a,x\nkidney-48-5,b,y\n"
        "cmu-1-small-region.pyramid,c,y\n"
    )
    page = tmp_path / "p.html"
    result = mil("describe", path, "--slides", mil_data / "slides", "--out", page, "--json")
    assert result.exit_code == 3, result.output  # some under edge/ are broken on purpose
    data = json.loads(result.stdout)
    kinds = {finding["kind"]: finding["subjects"] for finding in data["findings"]}
    assert kinds["resolution_unknown"] == ["kidney-48-5"]
    assert set(kinds["file_not_in_table"]) >= {"boxes", "unopenable"}
    assert data["largest_slide"]["width_px0"] == 2220
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 3


def test_a_refused_description_makes_no_folder(tmp_path: Path) -> None:
    table = tmp_path / "train.csv"
    table.write_text("image_id,patient_id,label\ns0,p0,a\ns1,p1,b\n")
    refused = mil("describe", table, "--out", tmp_path / "new" / "p.json")
    assert refused.exit_code == 2
    assert not (tmp_path / "new").exists()
    assert mil("describe", table, "--out", tmp_path / "new" / "p.html").exit_code == 0
    assert (tmp_path / "new" / "p.html").is_file()


@pytest.mark.parametrize("kind", ["pipe", "loop", "long", "-", ""])
def test_an_output_that_is_no_file_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "train.csv").write_text("slide_id,patient_id,label\na,p1,A\nb,p2,B\n")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    out = "o" * 300 + ".html" if kind == "long" else kind
    failed = mil("describe", "train.csv", "--out", out)
    assert failed.exit_code == 2, failed.output
    assert " name " in failed.output
    assert {path.name for path in tmp_path.iterdir()} == {"train.csv", "pipe", "loop"}


def test_a_table_that_is_a_loop_of_links_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    failed = mil("describe", "loop")
    assert failed.exit_code == 1
    assert failed.stderr.startswith(
        "error: loop: cannot be read (Too many levels of symbolic links)"
    )
    assert len(failed.stderr.splitlines()) == 1
