"""Advice on runs, and on the tables and bags they need: each message is followed, and arrives."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cli.viewer.server import ViewServer
from features.bags.h5 import read_bag, write_bag
from mil.comparison.differences import compare_models
from mil.evaluation import subgroups
from mil.training.config import TrainConfig
from mil.validation.external import validate
from mil.validation.recalibration import recalibrate
from tests.cli.running import follow_advice, mil, mil_ok
from tests.fakes import make_bag
from tests.studies import train_on, write_encoded_cohort, write_judged_run

pytestmark = pytest.mark.ci
QUICK = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)
TRAIN = "train --bags bags/a --set n_members=1 --set fixed_steps=2 --run {out}/run --device cpu"
MEAN = f"{TRAIN} --head mean --folds 2"
LABELS = "train --cohort labels.csv --bags bags/a --head mean --set n_members=1 --set fixed_steps=2"
NEW = "--patients new.csv --bags bags/a"
INFER = f"infer {NEW} --run runs/a --out {{out}}/p.csv"
EXPLAIN = "explain --run runs/a --bags bags/a --out {out}/pages"
NO_RUN = "Make one with 'mil train', or name the folder of another run."


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, quick_runs: pytest.MonkeyPatch) -> Path:
    """Runs a and b on the same folds, both combined, and tables of their and of new patients."""
    folder = tmp_path_factory.mktemp("study")
    encoders = {"a": 1.2, "b": 0.8}
    table = write_encoded_cohort(folder, "train", n_patients=24, encoders=encoders)
    write_encoded_cohort(folder, "new", n_patients=20, encoders=encoders, prefix="x")
    for run in encoders:
        train_on(folder, table, run, config=QUICK)
    mil_ok("combine", folder / "runs" / "a", folder / "runs" / "b", "--run", folder / "both")
    rows = pd.read_csv(table, dtype=str)
    rows["age"] = [f"{50 + 7 * n % 31}" for n in range(len(rows))]
    rows.to_csv(folder / "ages.csv", index=False)
    rows.assign(center_id="c0").to_csv(folder / "centre.csv", index=False)
    rows.assign(center_id="c" + rows["label"]).to_csv(folder / "confounded.csv", index=False)
    rows.drop(columns="center_id").to_csv(folder / "none.csv", index=False)
    number = rows.index
    rows.assign(
        any=(number % 3 > 0) * 1, CE=number % 2, some=(number < 4) * 1, rare=(number < 2) * 1, all=1
    ).to_csv(folder / "labels.csv", index=False)
    rows[(rows["label"] == "CE") | (number < 6)].to_csv(folder / "few.csv", index=False)
    rows[number < 20].to_csv(folder / "fewer.csv", index=False)
    new = pd.read_csv(folder / "new.csv", dtype=str)
    new[new["label"] == "CE"].to_csv(folder / "one_class.csv", index=False)
    empty = make_bag("x", n_tiles=0, dim=8)
    shutil.copytree(folder / "bags" / "a", folder / "bags" / "empty")
    for slide, label in zip(rows["image_id"], rows["label"], strict=True):
        if label == "LAA":
            made = read_bag(folder / "bags" / "a" / f"{slide}.h5").meta.fingerprint
            meta = replace(empty.meta, slide_id=slide, fingerprint=made)
            write_bag(folder / "bags" / "empty" / f"{slide}.h5", replace(empty, meta=meta))
    stated = read_bag(folder / "bags" / "a" / "000_0.h5")
    meta = replace(stated.meta, settings="[embed]\nmpp = 0.5\n")
    (folder / "bags" / "stated").mkdir()
    write_bag(folder / "bags" / "stated" / "000_0.h5", replace(stated, meta=meta))
    train_on(folder, folder / "fewer.csv", "b", run="fewer", config=QUICK)
    (folder / "bags" / "other").mkdir()
    for path in (folder / "bags" / "b").iterdir():
        shutil.copy(path, folder / "bags" / "other")
    twice = pd.concat([rows, rows[:1].assign(image_id="more_0")])
    twice.to_csv(folder / "twice.csv", index=False)
    for name in ("b", "other"):
        bag = read_bag(folder / "bags" / name / "001_0.h5")
        meta = replace(bag.meta, slide_id="more_0")
        bag = replace(bag, meta=meta, features=bag.features[::-1] + np.float16(0.5))
        if name == "other":
            write_bag(folder / "bags" / name / "more_0.h5", bag)
    with chdir(folder):
        mil_ok(*shlex.split("train --folds-of runs/a --cohort twice.csv --bags bags/other --head "
                            "mean --set n_members=1 --run runs/twice"))  # fmt: skip
    logits = np.linspace(-2, 2, 24)[None]
    labels = [("CE", "LAA")[n % 2] for n in range(24)]
    for name, options in {
        "one": {}, "same": {}, "flipped": {"labels": labels[::-1]},
        "others": {"patient_ids": [f"q{n}" for n in range(24)]},
        "few": {"patient_ids": [f"{'p' if n < 5 else 'q'}{n}" for n in range(24)]},
        "classes": {"labels": ["XY"[n % 2] for n in range(24)], "classes": "XY"},
    }.items():  # fmt: skip
        write_judged_run(folder / "judged" / name, logits, options.pop("labels", labels), **options)
    with chdir(folder):
        mil_ok(*shlex.split(f"{LABELS} --run labels --labels any,CE --folds 2"))
    shutil.copytree(folder / "labels", folder / "copy")
    for slide in new["image_id"]:
        (folder / "scans" / slide).mkdir(parents=True)
        Image.new("L", (40, 40), 60).save(folder / "scans" / slide / "0.png")
    return folder


@pytest.fixture(autouse=True)
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    monkeypatch.setattr(ViewServer, "serve_forever", lambda server: None)
    monkeypatch.setattr(subgroups, "MAX_GROUPS", 19)
    for with_intervals in (validate, recalibrate, compare_models):
        monkeypatch.setitem(with_intervals.__kwdefaults__, "n_resamples", 50)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        (f"{MEAN} --cohort train.csv --by centre", "goes with --by patient",
         f"{MEAN} --cohort train.csv --by patient"),
        (f"{MEAN} --cohort train.csv --folds-of runs/a", "which states the folds",
         f"{TRAIN} --head mean --cohort train.csv --folds-of runs/a"),
        (f"{INFER} --slides bags --series bags", "give either --slides or --series",
         f"{INFER} --slides bags"),
        (f"{INFER} --bags bags/b", "one folder for a run of one encoder", INFER),
        (f"{EXPLAIN} --patient x000", "requires --patients",
         f"{EXPLAIN} --patients new.csv --patient x000"),
        (f"{EXPLAIN} --patients new.csv --slide x000_0", "give either --patients or --slide",
         f"{EXPLAIN} --slide x000_0"),
        (f"infer {NEW} --bags bags/b --run both --out {{out}}/p.csv --tta",
         "does not go with combined runs",
         f"infer {NEW} --bags bags/b --run both --out {{out}}/p.csv"),
        ("combine runs/a runs/b", "name the new run", "combine runs/a runs/b --run {out}/new"),
        ("combine runs/a new.csv --run {out}/new", "either runs or files, not both",
         "combine runs/a runs/b --run {out}/new"),
        ("report runs/a --explanations nowhere", "nowhere is not a folder",
         "report runs/a --bags bags/a"),
        (f"{MEAN} --cohort train.csv --set seed=1 --set seed=2", "two values of seed",
         f"{MEAN} --cohort train.csv --set seed=2"),
        ("backbones --pathology uni", "goes without PATTERN", "backbones --pathology"),
    ],
)  # fmt: skip
def test_advice_on_usage_is_usage_that_works(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path), exit_code=2)


@pytest.mark.parametrize(
    ("wrong", "advice", "then"),
    [
        (f"{MEAN} --cohort train.csv --set learning_rate=1e30",
         "Give values nearer to the defaults, 0.001 and 0.01.",
         f"{MEAN} --cohort train.csv --set learning_rate=0.001"),
        (f"{TRAIN} --head mean --cohort centre.csv --by centre", "Use --by patient.",
         f"{MEAN} --cohort centre.csv --by patient"),
        (f"{TRAIN} --head mean --cohort confounded.csv --by centre",
         "Use --by patient; centre and class are confounded here.",
         f"{MEAN} --cohort confounded.csv --by patient"),
        (f"{TRAIN} --head mean --cohort none.csv --by centre", "Add it, or use --by patient.",
         f"{MEAN} --cohort none.csv --by patient"),
        (f"{MEAN} --cohort ages.csv --covariates age", "Leave out --head, or --covariates.",
         f"{MEAN} --cohort ages.csv"),
        (f"{TRAIN} --cohort train.csv --calibrator temperature",
         "or a single head such as --head gated",
         f"{TRAIN} --cohort train.csv --calibrator temperature --head gated --folds 2"),
        (f"{TRAIN} --head mean --cohort train.csv --folds-of bags",
         NO_RUN, f"{TRAIN} --head mean --cohort train.csv --folds-of runs/b"),
        (f"{MEAN} --cohort train.csv".replace("bags/a", "bags/empty"),
         "embed.csv in the folder of the bags says why. Add patients of that class",
         f"{MEAN} --cohort train.csv"),
        (f"{MEAN} --cohort train.csv --calibrator beta", "Take platt, which decision 0017 chose.",
         f"{MEAN} --cohort train.csv --calibrator platt"),
        ("combine runs/a runs/fewer --run {out}/new",
         "Embed the missing slides and train again, or leave the patients out of both.",
         "combine runs/a runs/b --run {out}/new"),
        ("combine runs/a runs/twice --run {out}/new",
         "Embed the missing slides for both encoders and train again.",
         "combine runs/a runs/b --run {out}/new"),
        ("evaluate runs/a --cohort new.csv --bags bags/a --out {out}/e.html --by image_id",
         "Write groups into the table, such as 'below 60' and '60 and above'.",
         "evaluate runs/a --cohort new.csv --bags bags/a --out {out}/e.html --by sex"),
        (f"{MEAN} --cohort train.csv --config bags/a/000_0.h5",
         "Bags of earlier versions and imported ones state none: give the options themselves.",
         f"{MEAN} --cohort train.csv"),
        (INFER.replace("runs/a", "nowhere"), NO_RUN, INFER),
        (INFER.replace("runs/a", "runs"), "Name one of runs/a, ", INFER),
        (INFER.replace("runs/a", "runs/a/model.json"), "Name runs/a.", INFER),
        (INFER.replace("bags/a", "new.csv"), "new.csv: a file, no folder", INFER),
        (f"{INFER} --slides nowhere", "nowhere: there is no such file or folder", INFER),
        (INFER.replace("runs/a", "nowhere"), "Make one with 'mil train'",
         f"{MEAN} --cohort train.csv"),
        (f"{INFER} --tta",
         "Leave --tta out, or make bags with 'mil embed --views' and train on them.", INFER),
        ("infer --patients new.csv --run runs/a --bags {out} --series scans --out {out}/p.csv",
         "Name them with --slides instead of --series.", INFER),
        (f"{INFER} --typicality 0.0001", "Give a higher level, or none", INFER),
        (f"{EXPLAIN} --slide x0_0", "Check --bags, or embed the slide with 'mil embed'.",
         f"{EXPLAIN} --slide x000_0"),
        (EXPLAIN.replace("runs/a", "both") + " --slide x000_0", "Name one of those in both/members",
         EXPLAIN.replace("runs/a", "both/members/a") + " --slide x000_0"),
        ("report bags", NO_RUN, "report runs/a --bags bags/a"),
        ("evaluate runs/a --cohort train.csv --bags bags/a --out {out}/e.html",
         "Add patients that the run was not trained on",
         "evaluate runs/a --cohort new.csv --bags bags/a --out {out}/e.html"),
        ("evaluate runs/a --cohort new.csv --bags . --out {out}/e.html",
         "or name another folder of bags.",
         "evaluate runs/a --cohort new.csv --bags bags/a --out {out}/e.html"),
        ("recalibrate runs/a --cohort train.csv --bags bags/a --run {out}/new",
         "Add local patients that the run was not trained on",
         "recalibrate runs/a --cohort new.csv --bags bags/a --run {out}/new"),
        ("recalibrate runs/a --cohort new.csv --bags bags/a --run runs/a/new",
         "Name another with --run.",
         "recalibrate runs/a --cohort new.csv --bags bags/a --run {out}/new"),
        ("compare runs/a bags --out {out}/c.html", NO_RUN,
         "compare runs/a runs/b --out {out}/c.html"),
        ("compare judged/one judged/classes --out {out}/c.html",
         "Take runs that predict the same classes.",
         "compare judged/one judged/same --out {out}/c.html"),
        ("compare judged/one judged/flipped --out {out}/c.html",
         "Train both on the same table of labels.",
         "compare judged/one judged/same --out {out}/c.html"),
        ("compare judged/one judged/others --out {out}/c.html",
         "Compare models of the same patients.",
         "compare judged/one judged/same --out {out}/c.html"),
        ("compare judged/one judged/few --out {out}/c.html",
         "Compare models that share more patients.",
         "compare judged/one judged/same --out {out}/c.html"),
        ("compare labels copy --out {out}/c.html", "Name one, such as labels/labels/CE.",
         "compare labels/labels/CE copy/labels/CE --out {out}/c.html"),
        ("combine runs/a both --run {out}/new", "Name the runs that it combines.",
         "combine runs/a runs/b --run {out}/new"),
        (EXPLAIN.replace("runs/a", "labels") + " --slide x000_0",
         "Name one, such as labels/labels/CE.",
         EXPLAIN.replace("runs/a", "labels/labels/CE") + " --slide x000_0"),
        (f"{LABELS} --run {{out}}/l --labels some --folds 9",
         "Use fewer folds (--folds 4), or leave it out of --labels.",
         f"{LABELS} --run {{out}}/l --labels some --folds 4"),
        (f"{LABELS} --run {{out}}/l --labels any,rare --folds 3",
         "Leave it out of --labels, or add patients.",
         f"{LABELS} --run {{out}}/l --labels any --folds 2"),
        (f"{LABELS} --run {{out}}/l --labels any,all --folds 2", "Leave it out of --labels.",
         f"{LABELS} --run {{out}}/l --labels any --folds 2"),
        (f"{LABELS} --run {{out}}/l --labels any,ce2 --folds 2", "or name it with --labels.",
         f"{LABELS} --run {{out}}/l --labels any,CE --folds 2"),
        (f"{TRAIN} --head mean --cohort fewer.csv --folds-of runs/a",
         "Train on the same patients, with the same slides embedded.",
         f"{TRAIN} --head mean --cohort train.csv --folds-of runs/a"),
        (f"{MEAN} --cohort few.csv",
         "Add patients of that class, or take the class out of the table.",
         f"{MEAN} --cohort fewer.csv"),
        ("evaluate both --cohort new.csv --bags bags/b --out {out}/e.html",
         "Give their folder with --bags too",
         "evaluate both --cohort new.csv --bags bags/b --bags bags/a --out {out}/e.html"),
        ("evaluate runs/a --cohort one_class.csv --bags bags/a --out {out}/e.html",
         "Add patients of another class",
         "evaluate runs/a --cohort new.csv --bags bags/a --out {out}/e.html"),
    ],
)  # fmt: skip
def test_advice_on_runs_and_cohorts_leads_to_results(
    wrong: str, advice: str, then: str, tmp_path: Path
) -> None:
    follow_advice(wrong.format(out=tmp_path), advice, then.format(out=tmp_path))


def test_the_number_of_folds_that_is_advised_works(tmp_path: Path) -> None:
    train = f"{TRAIN.format(out=tmp_path)} --head mean --cohort train.csv --folds"
    failed = mil(*shlex.split(train), 20)
    assert failed.exit_code == 1
    advised = re.search(r"Use --folds (\d+), or add patients of that class\.", failed.output)
    assert advised is not None, failed.output
    mil_ok(*shlex.split(train), advised[1])


def test_settings_of_training_are_those_of_a_run(tmp_path: Path) -> None:
    train = f"train --bags bags/a --cohort train.csv --run {tmp_path}/again --config "
    mil_ok(*shlex.split(f"{MEAN.format(out=tmp_path)} --cohort train.csv"))
    follow_advice(
        f"{train} bags/stated/000_0.h5",
        "A run states the settings of 'mil train', each of its bags those of 'mil embed'.",
        f"{train} {tmp_path}/run",
    )


def test_settings_of_a_run_from_python_are_given_as_its_model_states_them(tmp_path: Path) -> None:
    train = f"train --bags bags/a --cohort train.csv --run {tmp_path}/again --folds 3"
    settings = json.loads(Path("runs/a/model.json").read_text())["settings"]
    stated = shlex.join(
        f"--set={name}={settings[name]}" for name in ("head", "n_members", "n_components",
                                                      "fixed_steps", "device")
    )  # fmt: skip
    follow_advice(
        f"{train} --config runs/a",
        "give the options themselves, by --set where there is none, as 'settings' in model.json",
        f"{train} {stated}",
    )
    again = json.loads((tmp_path / "again" / "model.json").read_text())["settings"]
    assert {name: again[name] for name in settings} == settings


def test_a_run_that_is_there_is_replaced_with_overwrite(tmp_path: Path) -> None:
    train = f"{MEAN.format(out=tmp_path)} --cohort train.csv"
    mil_ok(*shlex.split(train))
    follow_advice(train, "or replace it with --overwrite.", f"{train} --overwrite")


def test_without_any_run_one_is_trained_or_named(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    infer = ["infer", "--patients", study / "new.csv", "--bags", study / "bags" / "a"]
    follow_advice(
        infer, "Train one, or name another with --run.", [*infer, "--run", study / "runs" / "a"]
    )


@pytest.mark.parametrize(
    ("of", "file", "command", "advice"),
    [
        ("runs/a", "model.json", f"infer {NEW} --run {{run}} --out {{out}}/p.csv",
         "Copy it again, or train again with 'mil train'."),
        ("runs/a", "heads.safetensors", f"infer {NEW} --run {{run}} --out {{out}}/p.csv",
         "again with 'mil train'."),
        ("runs/a", "judged.csv", "compare {run} runs/b --out {out}/page.html",
         "Copy the run again, or train again with 'mil train'."),
        ("runs/a", "notes.json", "report {run}",
         "Copy the run again, or train again with 'mil train'."),
        ("both", "combination.json",
         f"infer {NEW} --bags bags/b --run {{run}} --out {{out}}/p.csv",
         "Copy it again, or combine the runs again."),
        ("labels", "labels.json", f"infer {NEW} --run {{run}} --out {{out}}/p.csv",
         "Train again."),
        ("recalibrated", "recalibration.json", "report {run}",
         "or recalibrate again with 'mil recalibrate'."),
    ],
)  # fmt: skip
def test_a_damaged_run_is_copied_again(
    study: Path, tmp_path: Path, of: str, file: str, command: str, advice: str
) -> None:
    if of == "recalibrated" and not (study / of).exists():
        mil_ok(*f"recalibrate runs/a --cohort new.csv --bags bags/a --run {of}".split())
    shutil.copytree(study / of, run := tmp_path / "run")
    (run / file).write_text("damaged")
    words = shlex.split(command.format(run=run, out=tmp_path))
    failed = mil(*words)
    assert failed.exit_code == 1
    assert failed.stderr.splitlines()[-1].endswith(advice), failed.stderr
    shutil.copytree(study / of, run, dirs_exist_ok=True)
    mil_ok(*words)


def test_another_port_is_chosen_where_one_is_in_use() -> None:
    view = f"view runs/a {NEW} --no-browser --port".split()
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        failed = mil(*view, used.getsockname()[1])
        assert failed.exit_code == 1
        assert "Choose another with --port; 0 takes any free one." in failed.output
        assert mil(*view, 0).exit_code == 0
