"""Several labels a patient: train, infer, score and explain by the commands that a user types."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.h5 import write_bag
from mil.multilabel.train import is_multilabel_bundle, load_multilabel_bundle
from tests.cli.running import mil, mil_ok
from tests.fakes import make_series

NAMES = "any,left,right"


def write_world(folder: Path, *, n_scans: int) -> None:
    """Scans of 8 images: one of the first four is raised along one axis, or of the last along
    another, or both, or none; ``labels.csv`` has one row an image."""
    (folder / "bags").mkdir()
    rng = np.random.default_rng(0)
    rows = ["slide_id,patient_id,source," + NAMES]
    for number in range(n_scans):
        left, right = number % 2, number // 2 % 2
        bag = make_series(f"s{number}", n_images=8, dim=16, seed=1)
        bag.features[:] *= np.float16(0.3)
        marked = np.zeros((8, 2), int)
        for side, has in enumerate((left, right)):
            if has:
                place = rng.integers(4) + 4 * side
                bag.features[place, side] += np.float16(4)
                marked[place, side] = 1
        write_bag(folder / "bags" / f"s{number}.h5", bag)
        rows += [
            f"s{number},p{number},{source},{max(mark)},{mark[0]},{mark[1]}"
            for source, mark in zip(bag.source or (), marked.tolist(), strict=True)
        ]
    (folder / "labels.csv").write_text("\n".join(rows))
    scans = [f"s{number},p{number}" for number in range(n_scans)]
    (folder / "scans.csv").write_text("\n".join(["slide_id,patient_id", *scans]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, n_scans=48)
    result = mil_ok(
        "train", "--cohort", folder / "labels.csv", "--labels", NAMES, "--bags", folder / "bags",
        "--run", folder / "run", "--folds", 3, "--device", "cpu", "--json",
    )  # fmt: skip
    (folder / "train.json").write_text(result.stdout)
    return folder


def test_training_gives_a_run_and_a_report_a_label(world: Path) -> None:
    result = json.loads((world / "train.json").read_text())
    losses = result["weighted_label_loss"]
    assert losses["calibrated"]["value"] < losses["cohort prior"]["value"]
    assert list(result["labels"]) == NAMES.split(",")
    page = (world / "run" / "report.html").read_text()
    for name in NAMES.split(","):
        assert (world / "run" / "labels" / name / "report.html").is_file()
        assert f'href="./labels/{name}/report.html"' in page
    assert is_multilabel_bundle(world / "run")
    run = load_multilabel_bundle(world / "run")
    np.testing.assert_allclose(run.shares, [0.75, 0.5, 0.5])
    assert not list(world.glob(".run*"))


def test_the_report_is_drawn_again_from_what_the_run_holds(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    before = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    mil_ok("report", run)
    assert (run / "report.html").read_bytes() == before
    described = json.loads((run / "labels.json").read_text())
    del described["scores"]["labels"]["left"]["gains"]
    (run / "labels.json").write_text(json.dumps(described))
    assert_refused("labels.json was changed", run)
    of_version_1 = {name: value for name, value in described.items() if "sha256" not in name}
    (run / "labels.json").write_text(json.dumps(of_version_1 | {"format_version": 1}))
    assert_refused("labels.json", run)


def test_a_label_of_another_training_is_refused(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    shutil.rmtree(run / "labels" / "left")
    shutil.copytree(world / "run" / "labels" / "right", run / "labels" / "left")
    assert_refused("the run of left is another", run)


def assert_refused(words: str, run: Path) -> None:
    result = mil("report", run)
    assert result.exit_code == 1
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_all_labels_share_their_folds(world: Path) -> None:
    tables = {(world / "run" / "labels" / n / "folds.csv").read_text() for n in NAMES.split(",")}
    assert len(tables) == 1


def test_infer_writes_one_column_a_label_and_rows_need_not_sum_to_one(
    world: Path, tmp_path: Path
) -> None:
    mil_ok(
        "infer", "--run", world / "run", "--bags", world / "bags", "--patients",
        world / "scans.csv", "--out", tmp_path / "out.csv",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert list(rows[0]) == ["patient_id", "any", "left", "right"]
    assert [row["patient_id"] for row in rows] == [f"p{number}" for number in range(48)]
    values = np.array([[float(row[name]) for name in NAMES.split(",")] for row in rows])
    assert np.ptp(values.sum(axis=1)) > 0.5
    scored = mil_ok(
        "score", tmp_path / "out.csv", "--cohort", world / "labels.csv", "--labels", NAMES,
        "--resamples", 100, "--json",
    )  # fmt: skip
    scores = json.loads(scored.stdout)
    assert scores["label_counts"] == {"any": 36, "left": 24, "right": 24}
    (file,) = scores["files"]
    loss = file["weighted_label_loss"]
    assert loss["raw"]["value"] < loss["cohort prior"]["value"]
    assert file["labels"]["left"]["raw"]["auroc"]["value"] > 0.9
    details = list(csv.DictReader((tmp_path / "out.details.csv").read_text().splitlines()))
    assert details[0]["seen_in_training"] == "true"
    assert 0 <= float(details[0]["out_of_fold_left"]) <= 1


@pytest.mark.ci
def test_scores_of_labels_are_calibrated_where_asked_for(world: Path, tmp_path: Path) -> None:
    file, other = world / "run" / "out_of_fold.csv", tmp_path / "other.csv"
    other.write_bytes(file.read_bytes())
    result = mil_ok(
        "score", file, other, "--cohort", world / "labels.csv", "--labels", NAMES, "--calibrate",
        "--reliability", "--repeats", 2, "--resamples", 100,
    )  # fmt: skip
    words = " ".join(result.output.split())
    for text in ("mean probability of 2", "calibrated", "reliability of left", "cross-fitted"):
        assert text in words
    assert f"Next: open {world / 'run' / 'report.html'}" in words
    for arguments in (("--class", "left"), ("--calibrator", "none")):
        refused = mil(
            "score", file, "--cohort", world / "labels.csv", "--labels", NAMES, *arguments
        )
        assert refused.exit_code == 2


@pytest.mark.ci
def test_a_killed_training_goes_on_at_the_label_it_was_in(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mil.multilabel.train as module

    asked, real = [], module.train_run

    def until_killed(cohort: Any, *arguments: Any, **options: Any) -> object:
        asked.append(cohort.classes[1])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(cohort, *arguments, **options)

    monkeypatch.setattr(module, "train_run", until_killed)
    command = (
        "train", "--cohort", world / "labels.csv", "--labels", NAMES, "--bags", world / "bags",
        "--run", tmp_path / "run", "--folds", 3, "--device", "cpu", "--json",
    )  # fmt: skip
    assert mil(*command).exit_code != 0
    assert not (tmp_path / "run").exists()
    again = mil_ok(*command)
    assert asked == ["any", "left", "left", "right"]
    for path in sorted((world / "run").rglob("*.*")):
        twin = tmp_path / "run" / path.relative_to(world / "run")
        assert twin.is_file()
        if path.suffix in (".csv", ".safetensors"):
            assert twin.read_bytes() == path.read_bytes()
    data, before = json.loads(again.stdout), json.loads((world / "train.json").read_text())
    assert data["weighted_label_loss"] == before["weighted_label_loss"]
    assert data["labels"]["any"]["scores"] == before["labels"]["any"]["scores"]
    assert not list(tmp_path.glob(".run*"))


@pytest.mark.ci
def test_what_was_done_with_other_settings_or_labels_is_done_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mil.multilabel.train as module

    asked, real = [], module.train_run

    def fit(cohort: Any, *arguments: Any, **options: Any) -> object:
        asked.append(cohort.classes[1])
        if options["seed"] == 0 and len(asked) == 2:
            raise KeyboardInterrupt
        return real(cohort, *arguments, **options)

    monkeypatch.setattr(module, "train_run", fit)
    command = (
        "train", "--cohort", world / "labels.csv", "--bags", world / "bags", "--run",
        tmp_path / "run", "--folds", 2, "--device", "cpu",
    )  # fmt: skip
    assert mil(*command, "--labels", "any,left").exit_code != 0
    mil_ok(*command, "--labels", "left", "--seed", 1)
    assert asked == ["any", "left", "left"]
    assert [path.name for path in (tmp_path / "run" / "labels").iterdir()] == ["left"]


@pytest.mark.ci
def test_labels_of_images_teach_the_attention_where_asked_for(world: Path, tmp_path: Path) -> None:
    command = (
        "train", "--cohort", world / "labels.csv", "--labels", "any,left", "--bags",
        world / "bags", "--run", tmp_path / "run", "--folds", 2, "--device", "cpu",
        "--image-labels", world / "labels.csv",
    )  # fmt: skip
    result = mil_ok(*command)
    words = " ".join(result.output.split())
    assert "trained on labels of single images of 36 patients" in words
    assert "images of 24 patients" in words
    refused = mil(*command, "--overwrite", "--filter", world / "none.filter")
    assert refused.exit_code == 2


def test_a_patient_without_a_bag_gets_the_shares_asked_for(world: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("slide_id,patient_id\ngone,q\ns0,known\n")
    stated = "any=.3,left=.2,right=.1"
    for prior, expected in (
        (None, [0.75, 0.5, 0.5]), ("balanced", [0.5] * 3), (stated, [0.3, 0.2, 0.1]),
    ):  # fmt: skip
        result = mil(
            "infer", "--run", world / "run", "--bags", world / "bags", "--patients",
            tmp_path / "test.csv", "--out", tmp_path / "out.csv",
            *(() if prior is None else ("--prior", prior)),
        )  # fmt: skip
        assert result.exit_code == 3
        row = (tmp_path / "out.csv").read_text().splitlines()[1].split(",")
        np.testing.assert_allclose([float(value) for value in row[1:]], expected)


@pytest.mark.parametrize("prior", ["any=0.5", "any=0,left=.1,right=.1", "half", "a=b,c=d,e=f"])
def test_a_prior_that_lacks_a_label_is_refused(world: Path, prior: str) -> None:
    result = mil(
        "infer", "--run", world / "run", "--bags", world / "bags", "--patients",
        world / "scans.csv", "--prior", prior,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "no shares of all labels" in result.output


def test_each_label_explains_itself(world: Path, tmp_path: Path) -> None:
    mil_ok(
        "explain", "--run", world / "run" / "labels" / "left", "--bags", world / "bags",
        "--slide", "s1", "--out", tmp_path,
    )  # fmt: skip
    page = (tmp_path / "s1" / "index.html").read_text()
    assert "no left" in page
    assert "What each learner adds" in page
    told = json.loads((tmp_path / "s1" / "explanation.json").read_text())
    with (tmp_path / "s1" / "s1.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_name = {one["learner"]: one for one in told["learners"]}
    for name in ("gated", "mean"):
        for label, logit in by_name[name]["logits"].items():
            assert sum(float(row[f"{name}_{label}"]) for row in rows) == pytest.approx(
                logit, abs=1e-5
            )
    logits = {
        label: sum(one["parts"][label] for one in told["learners"]) + told["biases"][label]
        for label in told["probabilities"]
    }
    odds = np.exp(logits["left"] - logits["no left"])
    assert told["probabilities"]["left"] == pytest.approx(odds / (1 + odds), abs=1e-6)


@pytest.mark.parametrize("options", [("--abstain",), ("--coverage", 0.8)])
def test_prediction_sets_of_several_labels_are_refused(
    world: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    result = mil(
        "infer", "--run", world / "run", "--patients", world / "labels.csv", "--bags",
        world / "bags", "--out", tmp_path / "out.csv", *options,
    )  # fmt: skip
    assert result.exit_code == 2
    assert "does not go with a run of several labels" in " ".join(result.output.split())
    assert not (tmp_path / "out.csv").exists()


def test_commands_for_one_label_say_so_of_a_run_of_several(world: Path, tmp_path: Path) -> None:
    result = mil(
        "explain", "--run", world / "run", "--bags", world / "bags", "--slide", "s1", "--out",
        tmp_path,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "a run of several labels; expected the run of one of them" in result.output


def test_a_finished_run_is_replaced_only_when_asked(world: Path) -> None:
    result = mil(
        "train", "--cohort", world / "labels.csv", "--labels", NAMES, "--bags", world / "bags",
        "--run", world / "run",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "not empty" in result.output


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("patient_id,any,left\np0,1,1\n", "no column 'right'"),
        ("patient_id,any,left,right\np0,1,1,1.5\n", "right is '1.5'"),
        ("patient_id,any,left,right\np0,1,1,0.5\n", "no row for 47 of 48 patients"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(
    world: Path, tmp_path: Path, rows: str, message: str
) -> None:
    (tmp_path / "out.csv").write_text(rows)
    result = mil("score", tmp_path / "out.csv", "--cohort", world / "labels.csv", "--labels", NAMES)
    assert result.exit_code == 1
    assert message in result.output


def test_a_damaged_list_of_labels_is_one_line(world: Path, tmp_path: Path) -> None:
    for content in ("{}", "no", '{"format": "x", "format_version": 1, "labels": []}'):
        (tmp_path / "labels.json").write_text(content)
        result = mil("infer", "--run", tmp_path, "--patients", world / "scans.csv")
        assert result.exit_code == 1
        assert "labels.json" in result.output


@pytest.mark.ci
def test_runs_of_one_label_are_combined_and_those_of_several_refused(
    world: Path, tmp_path: Path
) -> None:
    shutil.copytree(world / "run" / "labels" / "any", tmp_path / "again")
    one = world / "run" / "labels" / "any"
    mil_ok("combine", one, tmp_path / "again", "--run", tmp_path / "all")
    for runs, words in (
        ((world / "run", tmp_path / "again"), "a run of several labels"),
        ((one, world / "run" / "labels" / "left"), "classes no left, left"),
    ):
        for command in (("combine", *runs, "--run", tmp_path / "no"), ("compare", *runs)):
            refused = mil(*command)
            assert refused.exit_code == 1
            assert words in refused.output
            assert len(refused.output.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()
