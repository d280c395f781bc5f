"""Patients unlike the training patients: marks, levels, odd bags, and runs that cannot mark."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.bags.h5 import write_bag
from mil.data.cohort import read_cohort
from mil.inference.bundle import load_bundle, save_bundle
from mil.inference.predict import PatientPrediction, predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag, make_series

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
