from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from features.bags.h5 import find_bags
from mil.calibration import clipped_log
from mil.combination.bundle import load_combination
from mil.combination.predict import combination_caveats, predict_combination
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.covariates import with_covariates
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.part_digests import hash_description, hash_file
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil, mil_ok
from tests.studies import train_on, write_encoded_cohort

pytestmark = pytest.mark.ci
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=20)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two encoders on the same patients, combined, and a new cohort."""
    folder = tmp_path_factory.mktemp("world")
    encoders = {"a": 1.2, "b": 0.6}
    table = write_encoded_cohort(folder, "train", n_patients=40, encoders=encoders)
    write_encoded_cohort(folder, "new", n_patients=20, encoders=encoders, prefix="x")
    runs = [train_on(folder, table, encoder, config=QUICK) for encoder in encoders]
    mil_ok("combine", *runs, "--run", folder / "runs" / "all")
    return folder


def infer(world: Path, *more: object, table: str = "new.csv"):
    return mil(
        "infer", "--run", world / "runs" / "all", "--patients", world / table, "--out",
        world / "out.csv", *more,
    )  # fmt: skip


def test_the_combination_predicts_with_the_bags_of_each_encoder(world: Path) -> None:
    result = infer(world, "--bags", world / "bags", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["bags"] == {name: str(world / "bags" / name) for name in "ab"}
    assert sum(data["weights"].values()) == pytest.approx(1)
    both = pd.read_csv(world / "out.csv").set_index("patient_id")
    alone = []
    for name in "ab":
        mil_ok(
            "infer", "--run", world / "runs" / name, "--patients", world / "new.csv", "--bags",
            world / "bags" / name, "--out", world / "one.csv",
        )  # fmt: skip
        alone.append(pd.read_csv(world / "one.csv").set_index("patient_id"))
    model = load_combination(world / "runs" / "all")
    details = pd.read_csv(world / "out.details.csv").set_index("patient_id")
    typical = details.index[~details["unlike_training"]]
    logits = clipped_log(np.stack([own.loc[typical].to_numpy() for own in alone], axis=1))
    assert np.allclose(model.calibrator.predict_proba(logits), both.loc[typical], atol=2e-3)


def test_folders_are_told_apart_by_their_bags_and_a_missing_one_is_asked_for(world: Path) -> None:
    given = ["--bags", world / "bags" / "b", "--bags", world / "bags" / "a"]
    assert json.loads(infer(world, *given, "--json").stdout)["bags"]["a"].endswith("bags/a")
    refused = infer(world, *given[:2])
    assert refused.exit_code == 1
    assert "no bags for the run 'a'" in refused.output
    assert "--slides" in refused.output


def test_patients_of_the_training_are_known_and_get_their_cross_fitted_probability(
    world: Path,
) -> None:
    result = infer(world, "--bags", world / "bags", table="train.csv")
    assert "trained on 40 of these patients" in result.output
    details = pd.read_csv(world / "out.details.csv")
    judged = pd.read_csv(world / "runs" / "all" / "judged.csv")
    assert np.allclose(details["out_of_fold_CE"], judged["calibrated_CE"])
    assert (details["set"] == "CE|LAA").all()


def test_it_is_evaluated_and_compared_like_a_run(world: Path) -> None:
    data = json.loads(
        mil_ok(
            "evaluate", world / "runs" / "all", "--cohort", world / "new.csv", "--bags",
            world / "bags", "--out", world / "page.html", "--json",
        ).stdout
    )  # fmt: skip
    assert data["n_patients"] == 20
    assert data["priors"]["balanced"]["auroc"]["value"] > 0.7
    compared = mil_ok(
        "compare", world / "runs" / "all", world / "runs" / "a", "--out", world / "c.html"
    )
    assert "all against a" in compared.output


def test_a_patient_that_one_run_cannot_predict_gets_the_prior(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "bags", tmp_path / "bags")
    (tmp_path / "bags" / "b" / "x003_0.h5").unlink()
    result = infer(world, "--bags", tmp_path / "bags")
    assert result.exit_code == 3
    row = pd.read_csv(world / "out.csv").set_index("patient_id").loc["x003"]
    assert row.tolist() == [0.5, 0.5]
    assert "no_bag" in (world / "out.details.csv").read_text()


@pytest.mark.parametrize("folder", ["a", "b"])
def test_one_run_without_a_bag_that_can_be_used_ends_the_command(
    world: Path, tmp_path: Path, folder: str
) -> None:
    shutil.copytree(world / "bags", tmp_path / "bags")
    for path in (tmp_path / "bags" / folder).glob("x*.h5"):
        path.write_bytes(b"x")
    result = infer(world, "--bags", tmp_path / "bags")
    assert result.exit_code == 1
    assert "not readable as HDF5" in result.output


def _change_weights(folder: Path) -> None:
    described = json.loads((folder / "combination.json").read_text())
    described["calibrator"]["slopes"][0] += 1
    (folder / "combination.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "damage",
    [
        _change_weights,
        lambda folder: shutil.rmtree(folder / "members" / "a"),
        lambda folder: (folder / "out_of_fold.csv").write_text("patient_id,CE,LAA\n"),
        lambda folder: (folder / "combination.json").write_text("[]"),
        lambda folder: (folder / "members" / "b" / "heads.safetensors").write_bytes(b""),
        lambda folder: (folder / "judged.csv").write_bytes(
            (folder / "members" / "a" / "judged.csv").read_bytes()
        ),
        lambda folder: (folder / "slides.csv").unlink(),
        lambda folder: (folder / "scores.json").write_text("{}"),
    ],
)
def test_a_changed_combination_is_refused_in_one_line(
    world: Path, tmp_path: Path, damage: Any
) -> None:
    shutil.copytree(world / "runs" / "all", tmp_path / "all")
    damage(tmp_path / "all")
    result = mil(
        "infer", "--run", tmp_path / "all", "--patients", world / "new.csv", "--bags",
        world / "bags", "--out", tmp_path / "out.csv",
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.output.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out.csv").exists()


def test_commands_for_one_run_name_its_members(world: Path) -> None:
    with pytest.raises(Exception, match="members"):
        load_bundle(world / "runs" / "all")


def test_files_are_combined_for_a_report_only(world: Path, tmp_path: Path) -> None:
    judged: Mapping[str, pd.DataFrame] = {
        name: pd.read_csv(world / "runs" / name / "judged.csv", dtype=str) for name in "ab"
    }
    for name, table in judged.items():
        table[["patient_id", "calibrated_LAA"]].set_axis(["patient_id", "LAA"], axis=1).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    options = ["--class", "LAA", "--cohort", world / "train.csv", "--out", tmp_path / "page.html"]
    data = json.loads(mil_ok("combine", *files, *options, "--json").stdout)
    assert data["run"] is None
    assert set(data["weights"]) == {"a", "b"}
    assert "A combination and its parts" in (tmp_path / "page.html").read_text()
    assert mil("combine", *files, *options, "--run", tmp_path / "run").exit_code == 2


def test_a_run_with_covariates_reads_them_in_a_combination_too(world: Path, tmp_path: Path) -> None:
    stack = TrainConfig(n_members=1, n_components=4, fixed_steps=2)
    table = read_cohort(world / "train.csv", labelled=True)
    with_sex = with_covariates(table, ["sex"])
    bags = load_patient_bags(table, find_bags(world / "bags" / "a"))
    train_run(with_sex, bags, tmp_path / "sex", config=stack, n_folds=3, report=False)
    mil_ok("combine", tmp_path / "sex", world / "runs" / "b", "--run", tmp_path / "all")
    options = ["--run", tmp_path / "all", "--bags", world / "bags", "--out", tmp_path / "out.csv"]
    assert mil("infer", *options, "--patients", world / "new.csv").exit_code == 0
    pd.read_csv(world / "new.csv").drop(columns="sex").to_csv(tmp_path / "no.csv", index=False)
    refused = mil("infer", *options, "--patients", tmp_path / "no.csv")
    assert refused.exit_code == 1
    assert "sex" in refused.output


def test_sets_are_those_of_the_folds_and_keep_the_guarantee_of_the_runs(world: Path) -> None:
    model = load_combination(world / "runs" / "all")
    members = list(model.members.values())
    assert model.guaranteed_coverage(0.8) == members[0].guaranteed_coverage(0.8)
    assert model.coverage_of_most_cohorts(0.8) == members[0].coverage_of_most_cohorts(0.8)
    # By hand: the mean log probability of the learners of each fold, against held-out patients.
    cohort = read_cohort(world / "new.csv", labelled=True)
    by_run = [predict(m, cohort, world / "bags" / name) for name, m in model.members.items()]
    held_out = [member.sets.held_out for member in members]
    labels = dict(zip(*(pd.read_csv(world / "train.csv", dtype=str)[c]
                        for c in ("patient_id", "label")), strict=True))  # fmt: skip
    refs = {name: find_bags(world / "bags" / name) for name in "ab"}
    for row, one in enumerate(predict_combination(model, cohort, refs, coverage=0.8)):
        if one.unlike_training:
            continue
        new = log_softmax([of[row].set_logits for of in by_run], axis=-1).mean(axis=0)
        for index, name in enumerate(model.classes):
            higher, n_patients = 1, 1
            for patient, (fold, _) in held_out[0].items():
                if labels[patient] == name:
                    own = log_softmax([of[patient].logits for of in held_out], axis=-1).mean(axis=0)
                    higher += own[index] <= new[fold, index]
                    n_patients += 1
            assert (name in one.prediction_set) == (higher / n_patients > 0.2)


def test_runs_of_earlier_versions_are_combined_without_a_guarantee(
    world: Path, tmp_path: Path
) -> None:
    for name in "ab":
        shutil.copytree(world / "runs" / name, tmp_path / name)
        sets = tmp_path / name / "sets.json"
        described = json.loads(sets.read_text())
        del described["held_out"]
        sets.write_text(json.dumps(described))
        model = json.loads((tmp_path / name / "model.json").read_text())
        model["parts_sha256"]["sets.json"] = hash_file(sets)
        model["sha256"] = hash_description(model)
        (tmp_path / name / "model.json").write_text(json.dumps(model))
    mil_ok("combine", tmp_path / "a", tmp_path / "b", "--run", tmp_path / "all")
    result = mil("infer", "--run", tmp_path / "all", "--patients", world / "new.csv", "--bags",
                 world / "bags", "--out", tmp_path / "out.csv")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "no coverage of prediction sets is guaranteed" in result.output
    assert "guaranteed on average" not in result.output
    assert load_combination(tmp_path / "all").guaranteed_coverage(0.9) is None


def test_the_page_of_a_combination_is_drawn_again(world: Path) -> None:
    page = world / "runs" / "all" / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert "Report written" in mil_ok("report", world / "runs" / "all").output
    assert page.read_bytes() == before
    assert "they are guaranteed to hold the class" in before.decode()


def test_a_run_that_guarantees_nothing_is_named(world: Path) -> None:
    model = load_combination(world / "runs" / "all")
    assert combination_caveats(model, 0.9) == ()
    by_centre = replace(
        model.members["b"], settings={**model.members["b"].settings, "by": "centre"}
    )
    model = replace(model, members={**model.members, "b": by_centre})
    assert model.guaranteed_coverage(0.9) is None
    (note,) = combination_caveats(model, 0.9)
    assert "folds were made by centre" in note
    assert "(run b)" in note
    assert "needs 99 training patients" in combination_caveats(model, 0.99)[0]
