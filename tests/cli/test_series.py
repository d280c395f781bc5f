"""Series of images by the commands that a user types."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from cli.app import app
from features.bags import read_bag, write_bag
from mil.cohort import read_cohort
from mil.data import load_patient_bags
from mil.fitting import fit_run
from mil.training import TrainSettings
from tests.fakes import make_series
from tests.scans import BIRTH_DATE, PLANTED, write_scan

N_BAGS = 24


def mil(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags of image series, a table of patients, a run, and the images of two series."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "bags").mkdir()
    rows, images = ["slide_id,patient_id,label"], ["bag_id,path"]
    for number in range(N_BAGS):
        bag = make_series(f"s{number}", n_images=6, dim=16, shift=0.9 * (number % 2))
        write_bag(folder / "bags" / f"s{number}.h5", bag)
        rows.append(f"s{number},p{number},{'ill' if number % 2 else 'well'}")
        for source in bag.source if number < 2 else ():
            Image.new("L", (40, 40), 60).save(folder / source)
            images.append(f"s{number},{source}")
    (folder / "train.csv").write_text("\n".join(rows))
    (folder / "images.csv").write_text("\n".join(images))
    cohort = read_cohort(folder / "train.csv", labelled=True)
    paths = {f"s{n}": folder / "bags" / f"s{n}.h5" for n in range(N_BAGS)}
    fit_run(
        cohort, load_patient_bags(cohort, paths), folder / "run", n_folds=2, n_repeats=1, seed=0,
        on_head=lambda done, total: None,
        settings=TrainSettings(n_members=2, n_components=8, fixed_steps=15),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), path)
    return path


def test_scans_are_embedded_by_one_command(tmp_path: Path, weights: Path) -> None:
    for number in range(2):
        write_scan(tmp_path / "scans" / f"scan{number}", n_slices=3, seed=(number,))
    command = (
        "embed", "--series", tmp_path / "scans", "--bags", tmp_path / "bags", "--backbone",
        "test_vit", "--weights", weights, "--execution", "eager", "--device", "cpu",
        "--tile-px", 64, "--batch", 4,
    )  # fmt: skip
    found = mil(*command, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["n_tiles"] == 6
    assert read_bag(tmp_path / "bags" / "scan1.h5").order is not None
    again = mil(*command)
    assert again.exit_code == 0
    assert "skipped" in again.output
    for secret in (PLANTED, BIRTH_DATE):
        assert secret not in found.output + again.output


def test_slides_and_series_do_not_go_together(tmp_path: Path) -> None:
    for arguments in (("--series", tmp_path, tmp_path), (), ("--series", tmp_path, "--dry-run")):
        found = mil("embed", *arguments)
        assert found.exit_code == 2
    assert "not with --series" in found.output


def test_unknown_windows_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    found = mil("embed", "--series", tmp_path, "--windows", "liver")
    assert found.exit_code == 1
    assert "three of brain" in found.output


def test_verify_finds_nothing_wrong_with_bags_of_images(world: Path) -> None:
    found = mil("bags", "verify", world / "bags", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["n_bad"] == 0


def test_describe_and_audit_take_bags_of_images(world: Path, tmp_path: Path) -> None:
    described = mil(
        "describe", world / "train.csv", "--bags", world / "bags", "--out", tmp_path / "d.html"
    )
    assert described.exit_code == 0, described.output
    audited = mil("audit", world / "train.csv", "--bags", world / "bags")
    assert audited.exit_code in (0, 1, 3), audited.output
    assert "Traceback" not in audited.output


def test_no_other_layout_is_made_of_bags_of_images(world: Path, tmp_path: Path) -> None:
    found = mil("bags", "export", world / "bags", "--to", "stamp", "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "a bag of kind 'image'" in found.output


def test_a_run_on_series_infers_and_says_where_it_looked(world: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("slide_id,patient_id\ns0,p0\ns1,p1\n")
    where = ("--run", world / "run", "--bags", world / "bags", "--patients", tmp_path / "test.csv")
    assert mil("infer", *where, "--out", tmp_path / "out.csv").exit_code == 0
    found = mil("explain", *where, "--out", tmp_path / "e", "--series", world / "images.csv")
    assert found.exit_code == 0, found.output
    page = (tmp_path / "e" / "p1" / "index.html").read_text()
    assert "Attention by place in series" in page
    assert page.count("data:image/jpeg") == 6
    table = (tmp_path / "e" / "p1" / "s1.csv").read_text().splitlines()
    assert table[0].startswith("slide_id,order,source,attention,percentile")
    assert len(table) == 7
    shares = [float(row.split(",")[3]) for row in table[1:]]
    np.testing.assert_allclose(sum(shares), 1)


def test_without_the_images_the_places_are_still_shown(world: Path, tmp_path: Path) -> None:
    found = mil(
        "explain", "--run", world / "run", "--bags", world / "bags", "--slide", "s3", "--out",
        tmp_path / "e",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "Attention by place in series" in (tmp_path / "e" / "s3" / "index.html").read_text()


def test_slides_cannot_be_embedded_for_a_run_on_series(world: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("slide_id,patient_id\nnew,p0\n")
    Image.new("RGB", (300, 300)).save(tmp_path / "new.png")
    found = mil(
        "infer", "--run", world / "run", "--bags", tmp_path / "none", "--slides", tmp_path,
        "--patients", tmp_path / "test.csv",
    )  # fmt: skip
    assert found.exit_code == 1
    assert "series of images" in found.output
