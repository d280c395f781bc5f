from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.bags.h5 import find_bags, read_bag, write_bag
from mil.calibration import PlattScaling
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.covariates import with_covariates
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil, mil_ok
from tests.studies import train_on, write_encoded_cohort

pytestmark = pytest.mark.ci
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    table = write_encoded_cohort(folder, "train", n_patients=24, encoders={"a": 1.0})
    write_encoded_cohort(folder, "external", n_patients=20, encoders={"a": 1.0}, prefix="x")
    train_on(folder, table, "a", config=QUICK)
    return folder


def evaluate(world: Path, *more: object, cohort: str = "external.csv"):
    return mil(
        "evaluate", world / "runs" / "a", "--cohort", world / cohort, "--bags",
        world / "bags" / "a", "--out", world / "page.html", *more,
    )  # fmt: skip


def test_a_run_is_evaluated_on_a_new_cohort(world: Path) -> None:
    result = evaluate(world, "--by", "sex,scanner", "--prior", "CE=0.8,LAA=0.2", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["n_patients"] == 20
    assert {one["column"] for one in data["groups"]} == {"centre", "sex", "scanner"}
    assert list(data["priors"]) == ["CE=0.8,LAA=0.2"]
    assert len(pd.read_csv(world / "page.csv")) == 20
    assert "x000" in (world / "page.details.csv").read_text()


def test_the_calibration_error_has_no_interval(world: Path) -> None:
    result = evaluate(world)
    assert result.exit_code == 0, result.output
    errors = [line for line in result.stdout.splitlines() if "calibration error" in line]
    assert len(errors) == 2
    for line in errors:
        assert re.fullmatch(r"  calibration error, prior (balanced|cohort): 0\.\d{4}", line)
    page = (world / "page.html").read_text()
    assert re.search(r">calibration error<.*?>0\.\d{4}<", page, re.DOTALL)
    assert "the calibration error has none, as chance raises it" in page


def test_patients_of_the_training_are_never_scored(world: Path) -> None:
    both = pd.concat([pd.read_csv(world / f"{n}.csv", dtype=str) for n in ("train", "external")])
    both.to_csv(world / "both.csv", index=False)
    data = json.loads(evaluate(world, "--json", cohort="both.csv").stdout)
    assert (data["n_patients"], len(data["left_out"])) == (20, 24)
    refused = evaluate(world, cohort="train.csv")
    assert refused.exit_code == 1
    assert "trained on it" in refused.output


def test_a_missing_bag_is_said_and_ends_in_3(world: Path) -> None:
    table = pd.read_csv(world / "external.csv", dtype=str)
    table.loc[len(table)] = ["y_0", "y", "CE", "c0", "f", "s0"]
    table.to_csv(world / "more.csv", index=False)
    result = evaluate(world, cohort="more.csv")
    assert result.exit_code == 3
    assert "1 patient left out" in result.output


def test_a_run_is_recalibrated_on_local_patients_and_knows_them_again(world: Path) -> None:
    local = world / "runs" / "local"
    options = ["--cohort", world / "external.csv", "--bags", world / "bags" / "a", "--run", local]
    result = mil("recalibrate", world / "runs" / "a", *options, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["n_patients"] == 20
    assert data["gain"]["weighted_log_loss"]["value"] == pytest.approx(
        data["before"]["weighted_log_loss"]["value"] - data["after"]["weighted_log_loss"]["value"]
    )
    old, new = load_bundle(world / "runs" / "a"), load_bundle(local)
    assert new.settings["recalibration"]["run"] == "a"
    assert new.settings["recalibration"]["cohort"] == "external.csv"
    assert "The run `a` with its calibrator" in (local / "MODEL_CARD.md").read_text()
    assert len(new.training_slides) == len(old.training_slides) + 20
    # Split conformal sets: ten patients of a class, of whom one may be ruled out.
    assert new.guaranteed_coverage(0.9) == {"CE": pytest.approx(1 - 1 / 11),
                                            "LAA": pytest.approx(1 - 1 / 11)}  # fmt: skip
    cohort = read_cohort(world / "external.csv", labelled=True)
    bags = world / "bags" / "a"
    for one, other in zip(predict(old, cohort, bags), predict(new, cohort, bags), strict=True):
        assert other.matched_training_patient == one.patient_id
        expected = PlattScaling(slope=data["slope"], bias=data["bias"]).predict_proba(
            np.log(old.calibrator.predict_proba(one.logits[None]))
        )
        assert np.allclose(new.calibrator.predict_proba(other.logits[None]), expected)
    page = (local / "report.html").read_bytes()
    assert "before and after its recalibration" in page.decode()
    (local / "report.html").unlink()
    mil_ok("report", local)
    assert (local / "report.html").read_bytes() == page
    again = mil("recalibrate", local, *options)
    assert again.exit_code == 1
    assert "not empty" in again.output
    itself = mil("recalibrate", local, *options, "--overwrite")
    assert itself.exit_code == 1
    assert "a folder of its own" in itself.output
    refused = mil("recalibrate", local, *options[:-1], world / "runs" / "twice")
    assert refused.exit_code == 1
    assert "0 patients of class" in refused.output


@pytest.fixture(scope="module")
def clinical(world: Path) -> Path:
    """A run with a covariate, whose whitening was also fitted on the patient x003."""
    few = pd.read_csv(world / "external.csv", dtype=str).query("patient_id == 'x003'")
    few.to_csv(world / "few.csv", index=False)
    bags = find_bags(world / "bags" / "a")
    table = with_covariates(read_cohort(world / "train.csv", labelled=True), ["sex"])
    train_run(
        table, load_patient_bags(table, bags), world / "runs" / "sex", report=False, n_folds=3,
        unlabelled=load_patient_bags(read_cohort(world / "few.csv", labelled=False), bags),
        config=TrainConfig(n_members=1, n_components=4, fixed_steps=2),
    )  # fmt: skip
    return world / "runs" / "sex"


def test_a_run_with_covariates_is_recalibrated_without_patients_of_its_whitening(
    clinical: Path, tmp_path: Path
) -> None:
    # Beyond nine of each class: one local patient had a part in the whitening, two share a slide.
    table = write_encoded_cohort(tmp_path, "local", n_patients=26, encoders={"a": 1.0}, prefix="x")
    folder, local = tmp_path / "bags" / "a", tmp_path / "local"
    copied = read_bag(folder / "x000_0.h5")
    meta = replace(copied.meta, slide_id="x001_0")
    write_bag(folder / "x001_0.h5", replace(copied, meta=meta))
    data = json.loads(
        mil_ok(
            "recalibrate", clinical, "--cohort", table, "--bags", folder, "--run", local, "--json",
        ).stdout
    )  # fmt: skip
    assert "whitening" in data["left_out"].pop("x003")
    assert not data["left_out"]
    judged = pd.read_csv(local / "judged.csv", dtype=str)
    fold_of = {name: own["fold"].tolist() for name, own in judged.groupby("patient_id")}
    assert fold_of["x000"] == fold_of["x001"] != fold_of["x002"]
    made = load_bundle(local)
    assert len(made.sets.covariates) == 1
    assert "x000" in {slide.patient_id for slide in made.training_slides}
