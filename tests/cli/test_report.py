from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from features.bags.h5 import find_bags, read_meta
from features.slides.synthetic import write_slide
from tests.cli.running import expect_advice, mil, mil_ok
from tests.fakes import write_cohort


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    table = write_cohort(folder, n_patients=30, shift=0.8)
    mil_ok(
        "train", "--cohort", table, "--bags", folder / "bags", "--run", folder / "run",
        "--folds", 2,
    )  # fmt: skip
    return folder / "run"


def test_a_page_that_was_deleted_is_written_again_as_it_was(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    result = mil_ok("report", run)
    assert f"Report written to {run / 'report.html'}" in result.stdout
    assert (run / "report.html").read_bytes() == before
    assert json.loads(mil("report", run, "--json").stdout) == {"report": str(run / "report.html")}


@pytest.mark.parametrize("options", [(), ("--labels", "any,left")], ids=["classes", "labels"])
def test_a_training_killed_while_it_draws_the_report_goes_on_there(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_cohort(tmp_path, n_patients=20, shift=0.8)
    rows = pd.read_csv(table, dtype=str)
    number = rows["patient_id"].astype(int)
    rows.assign(any=number % 2, left=number // 2 % 2).to_csv(table, index=False)

    def train(folder: str) -> int:
        return mil(
            "train", "--cohort", table, "--bags", tmp_path / "bags", "--run",
            tmp_path / folder / "run", "--folds", 2, "--head", "mean", *options,
        ).exit_code  # fmt: skip

    def killed(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    assert train("whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr("cli.shared.report_tissue.write_report", killed)
        assert train("killed") != 0
    assert not (tmp_path / "killed" / "run").exists()
    assert train("killed") == 0
    for path in (tmp_path / "whole").rglob("*.*"):
        twin = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()


def test_a_folder_in_the_way_of_the_page_is_moved_away(run: Path, tmp_path: Path) -> None:
    page = run / "report.html"
    page.rename(tmp_path / "before.html")
    page.mkdir()
    expect_advice(["report", run], "Move the folder of that name elsewhere, or name another file.")
    page.rmdir()
    mil_ok("report", run)


def test_patients_that_were_explained_are_linked_to_their_pages(run: Path) -> None:
    folder = run.parent
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table.head(2).to_csv(folder / "two.csv", index=False)
    mil_ok(
        "explain", "--run", run, "--patients", folder / "two.csv", "--bags", folder / "bags",
        "--out", folder / "ex plained",
    )  # fmt: skip
    before = (run / "report.html").read_bytes()
    assert mil("report", run, "--explanations", folder / "ex plained").exit_code == 0
    links = re.findall(r'<a href="([^"#]+)">([^<]+)</a>', (run / "report.html").read_text())
    index = "Explanations, patient by patient"
    assert {name for _, name in links} == {index, *table["patient_id"].head(2)}
    assert all((run / unquote(link)).resolve().is_file() for link, _ in links)
    assert mil("report", run, "--explanations", folder / "nowhere").exit_code == 2
    shutil.copytree(folder / "ex plained", run / "explanations")
    mil_ok("report", run)  # which finds them in the run
    links = re.findall(r'<a href="([^"#]+)">', (run / "report.html").read_text())
    assert {"explanations/index.html", "explanations/000/index.html"} <= set(links)
    shutil.rmtree(run / "explanations")
    (run / "report.html").write_bytes(before)


@pytest.mark.ci
def test_the_tissue_is_shown_where_slides_can_be_reached(run: Path, tmp_path: Path) -> None:
    bags, before = run.parent / "bags", (run / "report.html").read_bytes()
    rows = ["slide_id,status,path"]
    for slide_id, ref in find_bags(bags).items():
        meta, path = read_meta(ref), tmp_path / f"{slide_id}.tif"
        write_slide(path, np.full((meta.height_px0, meta.width_px0, 3), 150, np.uint8))
        rows.append(f"{slide_id},done,{path}")
    mil_ok("report", run, "--bags", bags, "--slides", tmp_path)
    html = (run / "report.html").read_text()
    judged = pd.read_csv(run / "judged.csv", dtype={"patient_id": str})
    is_right = (judged["calibrated_LAA"] > 0.5) == (judged["label"] == "LAA")
    for name in ("CE", "LAA"):
        part = html[html.index(f"<h3>{name}, recognised best</h3>") :]
        of_class = judged[is_right & (judged["label"] == name)]
        best = of_class.sort_values(f"calibrated_{name}")["patient_id"].iloc[-1]
        assert re.search(r"<p><b>(\d+)</b>", part)[1] == best  # type: ignore[index]
    n_shown = html.count('class="slide"')
    assert ("<h3>Worst errors</h3>" in html) == (not is_right.all())
    assert n_shown == html.count('alt="Slide ') > 4
    assert html.count('alt="Tile at ') == 3 * n_shown
    (bags / "embed.csv").write_text("\n".join(rows))
    mil_ok("report", run, "--bags", bags)
    assert (run / "report.html").read_text() == html
    for path in tmp_path.iterdir():  # slides of another size, as after a mistaken rename
        write_slide(path, np.full((64, 64, 3), 150, np.uint8))
    mil_ok("report", run, "--bags", bags)
    assert (run / "report.html").read_bytes() == before
    (bags / "embed.csv").unlink()


def test_bags_that_are_named_must_be_there(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    result = mil("report", run, "--bags", run.parent / "nothere")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {run.parent / 'nothere'}: there is no such folder")
    assert (run / "report.html").read_bytes() == before


def test_a_folder_that_is_no_run_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = mil("report", tmp_path)
    assert result.exit_code == 1
    assert "no model.json in it" in result.output
    assert "Traceback" not in result.output
