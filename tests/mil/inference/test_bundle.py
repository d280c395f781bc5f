from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mil
from features.bags.h5 import find_bags, read_bag, write_bag
from features.errors import BagError
from mil.calibration.priors import balanced, parse_prior
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.errors import CalibrationError, RunError
from mil.inference.attention import explain_patients
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.output import write_details, write_predictions
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import make_bag, write_cohort

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bags, a cohort and a finished run."""
    folder = tmp_path_factory.mktemp("world")
    table = write_cohort(folder, n_patients=30, shift=0.7)
    cohort = read_cohort(table, labelled=True)
    train_run(
        cohort,
        load_patient_bags(cohort, find_bags(folder / "bags")),
        folder / "run",
        n_folds=3,
        n_repeats=1,
        seed=0,
        config=FAST,
        on_head=lambda done, total: None,
    )
    return folder


@pytest.fixture
def run(world: Path) -> ModelBundle:
    return load_bundle(world / "run")


def write_new_patients(folder: Path, *rows: str) -> Path:
    path = folder / "test.csv"
    path.write_text("\n".join(["image_id,patient_id", *rows]) + "\n")
    return path


def test_a_run_holds_what_it_promises(world: Path, run: ModelBundle) -> None:
    names = {path.name for path in (world / "run").iterdir()}
    assert names == {
        "heads.safetensors", "model.json", "folds.csv", "out_of_fold.csv", "scores.json",
        "history.csv", "slides.csv", "slides.safetensors", "judged.csv", "notes.json",
        "MODEL_CARD.md", "report.html",
        "fold_heads.safetensors", "sets.json", "base_learners.safetensors",
        "fold_base_learners.safetensors", "typicality.safetensors", "typicality.csv",
        "provenance.json",
    }  # fmt: skip
    assert run.classes == ("CE", "LAA")
    assert len(run.heads) == 2
    assert len(run.out_of_fold) == 30
    scores = json.loads((world / "run" / "scores.json").read_text())
    assert scores["kind"] == "cross-fitted"
    assert scores["constant"]["weighted_log_loss"]["value"] == pytest.approx(np.log(2))


def test_the_card_says_what_for_on_whom_how_judged_and_how_well(
    world: Path, run: ModelBundle
) -> None:
    card = (run.path / "MODEL_CARD.md").read_text()
    assert re.findall(r"(?m)^\*\*([^.*]+)", card) == [
        "What it does", "What it is for", "What it is not for", "Trained on", "Made of",
        "How it was evaluated", "Scores", "What cannot be ruled out", "Limits", "Made with",
    ]  # fmt: skip
    scores = json.loads((run.path / "scores.json").read_text())
    for kind in ("calibrated", "mean + logistic", "cohort prior", "constant", "shortcut: tiles"):
        assert f"| {kind} | {scores[kind]['weighted_log_loss']['value']:.4f} [" in card
    assert f"Seed {run.settings['seed']}; python " in card
    assert max(map(len, card.splitlines())) < 220


def test_training_again_gives_the_same_bytes(world: Path) -> None:
    cohort = read_cohort(world / "train.csv", labelled=True)
    bags = load_patient_bags(cohort, find_bags(world / "bags"))
    train_run(
        cohort, bags, world / "again", n_folds=3, n_repeats=1, seed=0, config=FAST,
        on_head=lambda done, total: None,
    )  # fmt: skip
    names = {path.name for path in (world / "run").iterdir()} - {"report.html", "MODEL_CARD.md"}
    for name in names:  # the others name the run
        assert (world / "again" / name).read_bytes() == (world / "run" / name).read_bytes()


def test_a_run_keeps_the_calibrator_asked_for(world: Path, tmp_path: Path) -> None:
    cohort = read_cohort(world / "train.csv", labelled=True)
    bags = load_patient_bags(cohort, find_bags(world / "bags"))
    ask_for = partial(
        train_run, cohort, bags, tmp_path / "run", n_folds=3, n_repeats=1, seed=0,
        config=replace(FAST, head="gated"), on_head=lambda done, total: None,
    )  # fmt: skip
    ask_for(calibrator="temperature")
    described = json.loads((tmp_path / "run" / "model.json").read_text())
    assert described["settings"]["calibrator"] == "temperature"
    assert described["calibrator"]["kind"] == "temperature"
    assert load_bundle(tmp_path / "run").calibrator.as_dict() == described["calibrator"]
    with pytest.raises(CalibrationError, match="calibrator 'dirichlet': moved to"):
        ask_for(calibrator="dirichlet")


@pytest.mark.usefixtures("two_inner_folds")
@pytest.mark.parametrize("stops", [False, True])
def test_what_is_deployed_is_stopped_as_what_was_validated(tmp_path: Path, stops: bool) -> None:
    cohort = read_cohort(write_cohort(tmp_path, n_patients=48, shift=0.7), labelled=True)
    bags = load_patient_bags(cohort, find_bags(tmp_path / "bags"))
    train_run(
        cohort, bags, tmp_path / "run", n_folds=3, n_repeats=1, seed=0,
        config=replace(FAST, head="gated", early_stopping=stops),
        on_head=lambda done, total: None,
    )  # fmt: skip
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert set(history["fold"]) == {"0", "1", "2", "deployed"}
    assert set(history["stop_loss"].notna().groupby(history["fold"]).any()) == {stops}


def test_every_patient_asked_for_gets_one_row_in_order(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    write_bag(world / "bags" / "new_0.h5", make_bag("new_0", dim=16, seed=3))
    write_bag(
        world / "bags" / "bare_0.h5", make_bag("bare_0", n_tiles=0, dim=16, empty_reason="none")
    )
    cohort = read_cohort(
        write_new_patients(
            tmp_path, "new_0,new", "gone_0,gone", "bare_0,bare", "002_0,002", "new_x,new"
        ),
        labelled=False,
    )
    predictions = predict(run, cohort, world / "bags", prior=balanced(run.classes))
    write_predictions(tmp_path / "out.csv", predictions, classes=run.classes)
    write_details(tmp_path / "out.details.csv", predictions, classes=run.classes)
    rows = pd.read_csv(tmp_path / "out.csv", dtype={"patient_id": str})
    assert list(rows.columns) == ["patient_id", "CE", "LAA"]
    assert rows["patient_id"].tolist() == ["new", "gone", "bare", "002"]
    np.testing.assert_allclose(rows[["CE", "LAA"]].sum(axis=1), 1)
    assert [p.status for p in predictions] == ["slides_missing", "no_bag", "no_tissue", "ok"]
    np.testing.assert_allclose(rows.iloc[1:3][["CE", "LAA"]], 0.5)
    details = pd.read_csv(tmp_path / "out.details.csv", dtype=str)
    assert details["n_tiles"].tolist() == ["4", "0", "0", "12"]
    assert details["seen_in_training"].tolist() == ["false", "false", "false", "true"]


def test_a_patient_without_tissue_gets_the_prior_asked_for(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    cohort = read_cohort(write_new_patients(tmp_path, "gone_0,gone"), labelled=False)
    prior = parse_prior("CE=0.7,LAA=0.3", run.classes, {})
    predictions = predict(run, cohort, world / "bags", prior=prior)
    np.testing.assert_allclose(predictions[0].probabilities, [0.7, 0.3])


def test_a_seen_patient_is_told_by_id_and_by_the_content_of_a_slide(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    same_file = make_bag("copy_0", dim=16, seed=9, content_id="content of 004_0")
    write_bag(world / "bags" / "copy_0.h5", same_file)
    embedded_again = read_bag(world / "bags" / "007_0.h5")
    renamed = replace(embedded_again, meta=replace(embedded_again.meta, slide_id="renamed_0"))
    write_bag(world / "bags" / "renamed_0.h5", renamed)
    cohort = read_cohort(
        write_new_patients(tmp_path, "copy_0,copy", "renamed_0,renamed", "001_0,001"),
        labelled=False,
    )
    predictions = predict(run, cohort, world / "bags", prior=balanced(run.classes))
    assert [p.matched_training_patient for p in predictions] == ["004", "007", "001"]
    for prediction, seen in zip(predictions, ("004", "007", "001"), strict=True):
        assert prediction.out_of_fold is not None
        np.testing.assert_allclose(prediction.out_of_fold, run.out_of_fold[seen])


def test_the_spread_of_the_heads_holds_no_less_than_the_attention_of_all_slides(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    cohort = read_cohort(write_new_patients(tmp_path, "000_0,000", "000_1,000"), labelled=False)
    prediction = predict(run, cohort, world / "bags", prior=balanced(run.classes))[0]
    assert (prediction.ensemble_min <= prediction.ensemble_max).all()
    assert set(prediction.attention_share) == {"000_0", "000_1"}
    assert sum(prediction.attention_share.values()) == pytest.approx(1)


def test_three_lines_of_python_predict_at_the_balanced_prior(world: Path, tmp_path: Path) -> None:
    cohort = read_cohort(write_new_patients(tmp_path, "001_0,001", "gone_0,gone"), labelled=False)
    first, without_bag = mil.predict(mil.load_bundle(str(world / "run")), cohort, f"{world}/bags")
    assert first.probabilities.sum() == pytest.approx(1)
    assert without_bag.probabilities.tolist() == [0.5, 0.5]
    with pytest.raises(BagError, match="there is no such folder"):
        mil.predict(mil.load_bundle(world / "run"), cohort, tmp_path / "nowhere")


def test_a_prior_shifts_all_rows_the_same_way(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    cohort = read_cohort(write_new_patients(tmp_path, "001_0,001", "003_0,003"), labelled=False)
    even = predict(run, cohort, world / "bags", prior=balanced(run.classes))
    rare = predict(run, cohort, world / "bags", prior=np.array([0.9, 0.1]))
    for one, other in zip(even, rare, strict=True):
        odds = np.log(one.probabilities[0] / one.probabilities[1])
        assert np.log(other.probabilities[0] / other.probabilities[1]) - odds == pytest.approx(
            np.log(9)
        )


@pytest.mark.parametrize("slide_id", ["../../odd_0", "/tmp/odd_0", "even_0"])
def test_a_bag_that_names_another_slide_is_refused_before_its_name_is_used(
    world: Path, run: ModelBundle, tmp_path: Path, slide_id: str
) -> None:
    write_bag(tmp_path / "odd_0.h5", make_bag(slide_id, dim=16))
    cohort = read_cohort(write_new_patients(tmp_path, "odd_0,odd"), labelled=False)
    with pytest.raises(BagError, match="expected that of 'odd_0'"):
        predict(run, cohort, find_bags(tmp_path), prior=balanced(run.classes))
    with pytest.raises(BagError, match="expected that of 'odd_0'"):
        list(explain_patients(run, cohort, find_bags(tmp_path), prior=balanced(run.classes)))


def test_bags_made_otherwise_are_refused_by_field(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    write_bag(tmp_path / "odd_0.h5", make_bag("odd_0", dim=8))
    cohort = read_cohort(write_new_patients(tmp_path, "odd_0,odd"), labelled=False)
    with pytest.raises(
        BagError,
        match="made with embeddings of 8 numbers; expected embeddings of 16 numbers as in the run",
    ):
        predict(run, cohort, tmp_path, prior=balanced(run.classes))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", b"{", "damaged"),
        ("model.json", b"[]", "format None; expected 'mil-run'"),
        ("model.json", b"[" * 100_000, "damaged"),
        ("heads.safetensors", pickle.dumps({"weight": 1}), "damaged"),
        ("model.json", b'{"format": "mil-run", "format_version": 99}', "format version 99"),
        ("model.json", b'{"format": "mil-run", "format_version": 1}', "damaged"),
        ("heads.safetensors", b"nothing", "damaged"),
        ("heads.safetensors", None, "damaged"),
        ("slides.csv", b"a,b\n1,2\n", "damaged"),
        ("out_of_fold.csv", b"patient_id,CE\n1,x\n", "damaged"),
        ("model.json", None, "no model.json in it"),
    ],
)
def test_a_damaged_run_is_said_to_be_damaged(
    world: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(world / "run", copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(RunError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"n_components": -1},
        {"n_components": 10**12},
        {"n_components": "8"},
        {"n_heads": 0},
        {"n_heads": 10**9},
        {"calibrator": None},
        {"calibrator": {"kind": "shrunken_platt", "slope": 1, "bias": [0, 0, 0]}},
        {"classes": ["CE"]},
        {"classes": ["CE", "CE"]},
        {"classes": [["CE"], ["LAA"]]},
        {"cohort_counts": [1, 2, 3]},
        {"cohort_counts": [-1, 2]},
        {"settings": None},
        {"settings": {}},
        {"fingerprint": {"dim": 10**11}},
        {"fingerprint": {"dim": -4}},
    ],
    ids=str,
)
def test_a_description_that_does_not_fit_the_run_is_damage(
    world: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(world / "run", copy)
    described = json.loads((copy / "model.json").read_text())
    for name, value in change.items():
        is_part = isinstance(value, dict) and value and name == "fingerprint"
        described[name] = described[name] | value if is_part else value
    (copy / "model.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match="damaged"):
        load_bundle(copy)


def test_a_pipe_in_a_run_is_damage_and_not_waited_for(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run" / "notes.json").unlink()
    os.mkfifo(tmp_path / "run" / "notes.json")
    with pytest.raises(RunError, match="is no plain file"):
        load_bundle(tmp_path / "run")
