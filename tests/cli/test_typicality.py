"""Patients unlike the training patients: marks, levels, odd bags, and runs that cannot mark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cli.viewer.server import ViewServer
from features.bags.h5 import write_bag
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle, save_bundle
from mil.inference.predict import PatientPrediction, predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag, make_series, real_data

QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=4)


def train(folder: Path, *, n_patients: int, n_folds: int = 2, is_series: bool = False) -> Path:
    """Train on bags around one mean, so that most others are unlike them; return the run."""
    (folder / "bags").mkdir(parents=True)
    rows = ["image_id,patient_id,label"]
    for number in range(n_patients):
        name = f"s{number}"
        make = (lambda n, **k: make_series(n, n_images=k.pop("n_tiles"), **k)) if is_series \
            else make_bag  # fmt: skip
        write_bag(folder / "bags" / f"{name}.h5", make(name, n_tiles=12, dim=16, shift=2.0))
        rows.append(f"{name},p{number},{'ab'[number % 2]}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    train_run(
        folder / "train.csv", folder / "bags", folder / "run", n_folds=n_folds, report=False,
        config=QUICK,
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    train(folder, n_patients=24)
    return folder


def write_new(folder: Path, tiles: dict[str, np.ndarray]) -> Path:
    """Write bags of new patients, tiles of shape (tiles, 16) each, and their table."""
    (folder / "new").mkdir()
    for name, own in tiles.items():
        bag = make_bag(name, n_tiles=len(own), dim=16)
        write_bag(folder / "new" / f"{name}.h5", replace(bag, features=own))
    rows = ["image_id,patient_id", *(f"{name},{name}" for name in tiles)]
    table = folder / "new.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def usual(seed: int, *, n_tiles: int = 12) -> np.ndarray:
    return make_bag("usual", n_tiles=n_tiles, dim=16, seed=seed, shift=2.0).features


def predict_new(world: Path, folder: Path, tiles: np.ndarray) -> PatientPrediction:
    table = read_cohort(write_new(folder, {"new": tiles}), labelled=False)
    return predict(load_bundle(world / "run"), table, folder / "new")[0]


def test_a_patient_unlike_the_training_patients_is_marked_and_the_exit_code_stays(
    world: Path, tmp_path: Path
) -> None:
    table = write_new(tmp_path, {"usual": usual(1), "other": -usual(2), "mixed": np.concatenate(
        [usual(3), -usual(4, n_tiles=4)])})  # fmt: skip
    ask = ["infer", "--patients", table, "--run", world / "run", "--bags", tmp_path / "new",
           "--out", tmp_path / "out.csv"]  # fmt: skip
    told = " ".join(mil_ok(*ask, "--abstain").output.split())
    assert "2 of 3 patients unlike the training patients (typicality at most 0.05" in told
    assert "marked by chance): other, mixed. Their prediction sets hold all classes" in told
    rows = pd.read_csv(tmp_path / "out.details.csv", index_col="patient_id")
    assert rows["unlike_training"].to_dict() == {"usual": False, "other": True, "mixed": True}
    assert rows.loc["other", ["typicality", "unlike_tiles", "set"]].tolist() == [1 / 25, 1, "a|b"]
    assert rows.loc["other", "look_at"]
    assert len(rows.loc["other", "unlike_places"].split()) == 5
    assert rows.loc["mixed", "unlike_tiles"] == 0.25
    assert pd.read_csv(tmp_path / "out.csv").set_index("patient_id").loc["other"].min() >= 1 / 26
    described = json.loads(mil_ok(*ask, "--json").stdout)["typicality"]
    assert (described["level"], described["n_unlike"]) == (0.05, 2)


def test_every_page_and_summary_says_who_is_unlike_the_training_patients(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{kind}{number}" for number in range(5) for kind in ("usual", "other")]
    new = {n: (1 if n[0] == "u" else -1) * usual(int(n[-1])) for n in names}
    table, run = write_new(tmp_path, new), world / "run"
    labelled = tmp_path / "labelled.csv"
    pd.read_csv(table).assign(label=list("aabbaabbab")).to_csv(labelled, index=False)
    of_bags = ["--bags", tmp_path / "new"]
    views: list[ViewServer] = []
    monkeypatch.setattr(ViewServer, "serve_forever", lambda own: [views.append(own)])
    told = mil("view", run, "--patients", table, *of_bags, "--no-browser").stderr
    assert "5 of 10 patients unlike the training patients" in told
    listed = json.loads(views[0].respond("patients.json")[1])["patients"]
    assert all(row["unlike"] == row["patient_id"].startswith("other") for row in listed)
    assert all(row["set"] == ["a", "b"] for row in listed if row["unlike"])
    pages = tmp_path / "pages"
    told = mil_ok("explain", "--run", run, "--patients", table, *of_bags, "--out", pages).stderr
    assert "5 patients unlike the training patients" in told
    for name in names:
        page = (pages / name / "index.html").read_text()
        assert ("<small>unlike the training patients" in page) == (name[0] == "o")
    page = tmp_path / "page.html"
    told = mil_ok("evaluate", run, "--cohort", labelled, *of_bags, "--out", page).stderr
    assert "5 of 10 patients unlike the training patients" in told
    assert told.count("prediction sets hold all classes") == 1
    assert "5 of 10 patients unlike the training patients" in page.read_text()
    assert "Patients least like the training patients" in page.read_text()


@real_data
@pytest.mark.ci
def test_tissue_of_another_organ_is_unlike_the_training_patients(
    tmp_path: Path, mil_data: Path
) -> None:
    """Regions of ovary, embedded by the default encoder, and slides of skin and kidney."""
    slides, rows = tmp_path / "slides", []
    slides.mkdir()
    for label in ("nest", "stromal_he"):
        with Image.open(mil_data / "images" / "histolytics" / f"hgsc_{label}.jpg") as image:
            for block in range(9):
                left, top = 500 * (block % 3), 500 * (block // 3)
                region = image.crop((left, top, left + 448, top + 448))
                region.save(slides / f"{label}{block}.png")
                rows.append(f"{label}{block},{label}{block},{label}")
    for name in ("cmu-1-small-region.svs", "kidney-48-5.tif"):
        shutil.copy(mil_data / "slides" / name, slides)
    of_bags = ["--bags", tmp_path / "bags"]
    mil_ok("embed", slides, *of_bags, "--tissue", "all", "--mpp", 0.25, "--max-tiles", 8)
    train, run = tmp_path / "train.csv", tmp_path / "run"
    train.write_text("\n".join(["image_id,patient_id,label", *rows]) + "\n")
    mil_ok("train", "--cohort", train, *of_bags, "--run", run, "--head", "mean", "--folds", 3)
    new, out = tmp_path / "new.csv", tmp_path / "out.csv"
    new.write_text("image_id,patient_id\ncmu-1-small-region,skin\nkidney-48-5,kidney\n")
    mil_ok("infer", "--run", run, *of_bags, "--patients", new, "--out", out)
    details = pd.read_csv(tmp_path / "out.details.csv", index_col="patient_id")
    assert details["unlike_training"].all()
    assert set(details["set"]) == {"nest|stromal_he"}
    assert pd.read_csv(out)[["nest", "stromal_he"]].min(axis=None) >= 1 / 20


@pytest.mark.parametrize(("level", "n_needed"), [(0.0399, 25), (0.01, 99), (0.001, 999)])
def test_a_level_that_the_run_cannot_reach_writes_nothing(
    world: Path, tmp_path: Path, level: float, n_needed: int
) -> None:
    table = write_new(tmp_path, {"usual": usual(1)})
    result = mil("infer", "--patients", table, "--run", world / "run", "--bags", tmp_path / "new",
                 "--out", tmp_path / "out.csv", "--typicality", level)  # fmt: skip
    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert f"typicality {level:g}: 24 training patients, which allow" in told
    assert f"a run of {n_needed} patients" in told
    assert not (tmp_path / "out.csv").exists()


def same_but_one(tiles: np.ndarray) -> np.ndarray:
    tiles[:-1] = tiles[0]
    return tiles


ODD: dict[str, tuple[Callable[[], np.ndarray], bool | None]] = {
    "one tile": (lambda: usual(5, n_tiles=1), None),
    "one foreign tile": (lambda: -usual(5, n_tiles=1), True),
    "equal but for one": (lambda: same_but_one(-usual(5)), True),
    "two halves": (lambda: np.concatenate([usual(5), -usual(6, n_tiles=5)]), None),
    "float32": (lambda: usual(7).astype(np.float32), False),
    "largest float16": (lambda: np.where(usual(8) > 2, 65504, -65504).astype(np.float16), None),
    "100,000 tiles": (lambda: np.tile(-usual(9, n_tiles=100), (1000, 1)), True),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_bags_are_compared_and_get_finite_probabilities(
    world: Path, tmp_path: Path, kind: str
) -> None:
    make, is_unlike = ODD[kind]
    predicted = predict_new(world, tmp_path, make())
    assert np.isfinite(predicted.probabilities).all()
    assert predicted.probabilities.sum() == pytest.approx(1)
    if predicted.status == "out_of_range":  # then the status says so, and the prior is given
        assert predicted.probabilities.tolist() == [0.5, 0.5]
        return
    assert predicted.typicality is not None
    assert 1 / 25 <= predicted.typicality.p_value <= 1
    if is_unlike is not None:
        assert predicted.unlike_training == is_unlike
    if predicted.unlike_training:
        assert predicted.prediction_set == ("a", "b")


def test_a_run_without_training_tiles_infers_and_says_that_nobody_is_marked(
    world: Path, tmp_path: Path
) -> None:
    whole = load_bundle(world / "run")
    (tmp_path / "older").mkdir()
    save_bundle(replace(whole, typicality=None, provenance=None, path=tmp_path / "older"))
    table = write_new(tmp_path, {"usual": usual(1), "other": -usual(2)})
    for run in (world / "run", tmp_path / "older"):
        told = mil_ok("infer", "--patients", table, "--run", run, "--bags", tmp_path / "new",
                      "--typicality", 0.04, "--out", tmp_path / f"{run.name}.csv")  # fmt: skip
        says = "patients unlike them are not marked" in " ".join(told.output.split())
        assert says == (run.name == "older")
    rows = pd.read_csv(tmp_path / "older.details.csv")
    assert "typicality" not in rows
    new, old = (
        pd.read_csv(tmp_path / f"{n}.csv").set_index("patient_id") for n in ("run", "older")
    )
    assert new.loc["usual"].tolist() == old.loc["usual"].tolist()


@pytest.mark.parametrize("is_series", [False, True])
def test_the_smallest_cohort_marks_at_one_in_nine(tmp_path: Path, is_series: bool) -> None:
    run = load_bundle(train(tmp_path, n_patients=8, n_folds=4, is_series=is_series))
    assert run.typicality is not None
    assert run.typicality.default_level == pytest.approx(1 / 9)
    make = make_series("new", n_images=7, dim=16, shift=-2.0) if is_series \
        else make_bag("new", n_tiles=7, dim=16, shift=-2.0)  # fmt: skip
    write_bag(tmp_path / "bags" / "new.h5", make)
    table = tmp_path / "new.csv"
    table.write_text("image_id,patient_id\nnew,new\n")
    (predicted,) = predict(run, read_cohort(table, labelled=False), tmp_path / "bags")
    assert predicted.unlike_training
    assert predicted.typicality is not None
    assert all("new@" in place for place in predicted.typicality.places)


@pytest.mark.parametrize("n_patients", [5, 12])
def test_a_class_with_few_patients_or_none_is_refused_before_training(
    world: Path, tmp_path: Path, n_patients: int
) -> None:
    table = tmp_path / "few.csv"
    rows = [f"s{i},p{i},{'ab'[i % 2 and n_patients == 5]}" for i in range(n_patients)]
    table.write_text("\n".join(["image_id,patient_id,label", *rows]) + "\n")
    result = mil("train", "--cohort", table, "--bags", world / "bags", "--run", tmp_path / "run")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()
