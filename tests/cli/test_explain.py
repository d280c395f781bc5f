from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import Result

from features.bags.h5 import bag_path, find_bags, read_bag, write_bag
from features.slides.synthetic import write_slide
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.browser import needs_browser, open_tab
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag, write_cohort


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags, a run of additive heads, a table, and slides that two of its bags could be from."""
    folder = tmp_path_factory.mktemp("world")
    cohort = read_cohort(write_cohort(folder, n_patients=24, shift=0.7), labelled=True)
    train_run(
        cohort, load_patient_bags(cohort, find_bags(folder / "bags")), folder / "run", n_folds=2,
        n_repeats=1, seed=0, on_head=lambda done, total: None,
        config=TrainConfig(head="additive", n_members=2, n_components=8, fixed_steps=15),
    )  # fmt: skip
    (folder / "slides").mkdir()
    for name, n_tiles in (("new_0", 9), ("new_1", 4), ("alone_0", 4)):
        bag = make_bag(name, n_tiles=n_tiles, dim=16, seed=3)
        write_bag(bag_path(folder / "bags", name), bag)
        if name != "alone_0":
            pixels = np.zeros((bag.meta.height_px0, bag.meta.width_px0, 3), np.uint8)
            pixels[:] = 250
            for number, (x, y) in enumerate(bag.coords_px0.tolist()):
                pixels[y : y + 448, x : x + 448] = (255 - 20 * number, 90, 20 * number)
            write_slide(folder / "slides" / f"{name}.tif", pixels)
    (folder / "test.csv").write_text(
        "image_id,patient_id\nnew_0,new\nnew_1,new\nalone_0,alone\n000_0,000\n000_1,000\n"
    )
    return folder


def explain(world: Path, *arguments: object) -> Result:
    return mil("explain", "--run", world / "run", "--bags", world / "bags", *arguments)


@pytest.mark.ci
def test_the_probability_shown_is_the_one_that_infer_gives(world: Path, tmp_path: Path) -> None:
    for prior in ("balanced", "cohort"):
        out = tmp_path / "submission.csv"
        mil_ok(
            "infer", "--run", world / "run", "--bags", world / "bags", "--patients",
            world / "test.csv", "--out", out, "--prior", prior,
        )  # fmt: skip
        result = explain(
            world, "--patients", world / "test.csv", "--out", tmp_path / prior, "--prior", prior,
            "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        data = {p["patient_id"]: p for p in json.loads(result.stdout)["patients"]}
        with out.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["patient_id"] for row in rows] == list(data)
        for row in rows:
            page = Path(data[row["patient_id"]]["page"]).read_text()
            shown = re.findall(r'<data value="([^"]+)"', page)
            assert shown == [row["CE"], row["LAA"]]
            assert data[row["patient_id"]]["probabilities"] == {
                name: float(row[name]) for name in ("CE", "LAA")
            }


def test_tiles_are_cut_from_the_slide_and_exports_lie_beside_the_page(
    world: Path, tmp_path: Path
) -> None:
    result = explain(
        world, "--patients", world / "test.csv", "--patient", "new", "--slides", world / "slides",
        "--out", tmp_path / "ex", "--top", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1 patient explained" in result.output
    assert {path.name for path in (tmp_path / "ex").iterdir()} == {"index.html", "new"}
    assert {path.name for path in (tmp_path / "ex" / "new").iterdir()} == {
        "index.html",
        "explanation.json",
        *(f"new_{i}{suffix}" for i in range(2) for suffix in (".csv", ".geojson", ".overlay.tif")),
    }
    page = (tmp_path / "ex" / "new" / "index.html").read_text()
    assert page.count('alt="Tile at') == 3 + 3 + 3 + 1  # new_1 has only four tiles
    for key in ("top", "share", "percentile", "contribution"):
        assert page.count(f'class="layer map-{key}') == 2
    assert page.count('class="base"') == 2
    table = (tmp_path / "ex" / "new" / "new_0.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    overlay = tifffile.imread(tmp_path / "ex" / "new" / "new_0.overlay.tif", key=0)
    lightness = [
        overlay[int(r["y_px0"]) // 16 + 5, int(r["x_px0"]) // 16 + 5, :3] @ (0.3, 0.59, 0.11)
        for r in rows
    ]
    by_percentile = np.argsort([float(r["percentile"]) for r in rows])
    assert (np.diff(np.array(lightness)[by_percentile]) > 0).all()


def test_without_slides_there_are_maps_and_the_page_says_so(world: Path, tmp_path: Path) -> None:
    result = explain(world, "--slide", "alone_0.tif", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "alone_0" / "index.html").read_text()
    assert "without the tissue" in page
    assert 'alt="Grid of the tiles of slide alone_0"' in page
    assert 'alt="Tile at' not in page


def test_patients_seen_in_training_are_marked(world: Path, tmp_path: Path) -> None:
    result = explain(
        world, "--patients", world / "test.csv", "--patient", "000", "--patient", "new", "--out",
        tmp_path,
    )  # fmt: skip
    assert "trained on 1 of these patients" in result.output
    assert "Seen in training" in (tmp_path / "000" / "index.html").read_text()
    assert "Seen in training." not in (tmp_path / "new" / "index.html").read_text()


def test_a_slide_that_cannot_be_shown_stops_no_other(world: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(world / "slides" / "new_1.tif", slides / "new_0.tif")  # of another size
    shutil.copy(world / "slides" / "new_1.tif", slides)
    (slides / "alone_0.tif").write_bytes(b"bad")
    result = explain(
        world, "--patients", world / "test.csv", "--slides", slides, "--out", tmp_path / "ex",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 3, result.output
    data = json.loads(result.stdout)["without_picture"]
    assert set(data) == {"new_0", "alone_0", "000_0", "000_1"}
    assert "896 × 896 px; expected 1,344 × 1,344 px" in data["new_0"]
    assert "no reader can open it" in data["alone_0"]
    assert "no file of that name" in data["000_0"]
    page = (tmp_path / "ex" / "new" / "index.html").read_text()
    assert page.count("No picture of the tissue") == 1
    assert page.count('alt="Tile at') == 4


def test_a_bag_without_places_is_explained_by_numbers_alone(world: Path, tmp_path: Path) -> None:
    bag = read_bag(bag_path(world / "bags", "alone_0"))
    bag.coords_px0[:] = -1
    write_bag(bag_path(tmp_path, "alone_0"), bag)
    mil_ok(
        "explain", "--run", world / "run", "--bags", tmp_path, "--slide", "alone_0", "--out",
        tmp_path / "ex",
    )  # fmt: skip
    page = (tmp_path / "ex" / "alone_0" / "index.html").read_text()
    assert "has no tile coordinates" in page
    assert {path.name for path in (tmp_path / "ex" / "alone_0").iterdir()} == {
        "alone_0.csv", "explanation.json", "index.html",
    }  # fmt: skip


def test_without_a_table_the_patients_of_the_report_are_explained(
    world: Path, tmp_path: Path
) -> None:
    result = explain(world, "--out", tmp_path / "ex", "--json")
    assert result.exit_code == 0, result.output
    names = {each["patient_id"] for each in json.loads(result.stdout)["patients"]}
    assert len(names) >= 6  # three of each class that are recognised best
    page = mil_ok("report", world / "run", "--explanations", tmp_path / "ex", "--json").stdout
    report = Path(json.loads(page)["report"]).read_text()
    assert report.count("ex/index.html") == 1
    for name in names:
        assert f"ex/{name}/index.html" in report
        assert "report.html" in (tmp_path / "ex" / name / "index.html").read_text()


def test_wrong_use_and_bad_input_are_told_in_one_line(world: Path, tmp_path: Path) -> None:
    table, out = world / "test.csv", tmp_path / "ex"
    assert explain(world, "--patient", "new").exit_code == 2
    assert explain(world, "--patients", table, "--slide", "new_0").exit_code == 2
    assert explain(world, "--slide", "new_0", "--patient", "new").exit_code == 2
    write_bag(bag_path(tmp_path, "odd_0"), make_bag("odd_0", dim=8))
    cases = {
        ("--patients", table, "--patient", "nobody"): "no patient 'nobody' among 3",
        ("--slide", "gone_0"): "slide 'gone_0' has no bag",
        ("--slide", "../gone"): "slide '../gone' has no bag",
        (
            "--slide",
            "odd_0",
            "--bags",
            tmp_path,
        ): "made with embeddings of 8 numbers; expected embeddings of 16 numbers",
        ("--slide", "alone_0", "--slides", world / "slides"): "none of the 1 slides",
        ("--slide", "alone_0", "--slides", tmp_path / "no"): "no such file or folder",
        ("--slide", "alone_0", "--run", tmp_path): "no model.json",
        ("--slide", "alone_0", "--prior", "nonsense"): "nonsense",
    }
    for arguments, message in cases.items():
        result = explain(world, *arguments, "--out", out)
        assert result.exit_code == 1, result.output
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()


@needs_browser
def test_in_a_browser_the_switch_shows_one_map_a_slide_and_fits_a_phone(
    world: Path, tmp_path: Path
) -> None:
    explain(
        world, "--patients", world / "test.csv", "--patient", "new", "--slides", world / "slides",
        "--out", tmp_path,
    )  # fmt: skip
    html = (tmp_path / "new" / "index.html").read_text()
    assert not re.search(r"https?://", html)
    assert "<script" not in html
    with open_tab(tmp_path / "profile") as tab:
        tab.resize(480, 900)
        tab.open((tmp_path / "new" / "index.html").as_uri())
        maps = tab.evaluate(
            """[...document.querySelectorAll("input[name=show]")].map((input) => {
              input.click();
              return [...document.querySelectorAll(".layer, .legend")]
                .filter((f) => getComputedStyle(f).display !== "none")
                .map((f) => f.className.replace(" colours", "")).join(" ");
            })"""
        )
        assert tab.evaluate("[...document.images].every((i) => i.naturalWidth > 0 && i.alt)")
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert tab.errors == []
    keys = ("top", "share", "percentile", "contribution")
    assert maps == [*(" ".join([f"layer map-{k} legend map-{k}"] * 2) for k in keys), ""]


@needs_browser
def test_in_a_browser_the_index_is_searched_filtered_and_sorted(
    world: Path, tmp_path: Path
) -> None:
    explain(
        world, "--patients", world / "test.csv", "--slides", world / "slides", "--out", tmp_path
    )
    names = """[...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden)
        .map((row) => row.querySelector("th").innerText)"""
    with open_tab(tmp_path / "profile") as tab:
        tab.open((tmp_path / "index.html").as_uri())
        assert tab.evaluate(names) == ["new", "alone", "000"]
        assert tab.evaluate("document.images.length") == 1  # of the one patient with slides
        tab.evaluate("[...document.querySelectorAll('thead button')][0].click()")
        assert tab.evaluate(names) == ["000", "alone", "new"]
        typed = "find.value = 'NEW_1'; find.dispatchEvent(new Event('input')); count.textContent"
        assert tab.evaluate(typed) == "1 of 3 patients"
        assert tab.evaluate(names) == ["new"]
        tab.evaluate("find.value = ''; unlike.click()")
        assert len(tab.evaluate(names)) == sum(
            prediction["unlike_training"]
            for prediction in json.loads(
                explain(world, "--patients", world / "test.csv", "--out", tmp_path, "--json").stdout
            )["patients"]
        )
        assert tab.errors == []
