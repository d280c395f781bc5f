"""More than two classes work throughout: train, infer, score, report, explain."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from features.bags import write_bag
from mil.heads import head_names
from tests.fakes import make_bag

CLASSES = ["benign", "grade 1", "grade 2"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    (folder / "bags").mkdir()
    rows = ["slide_id,patient_id,label"]
    for number in range(48):
        bag = make_bag(f"s{number}", n_tiles=6, dim=16, seed=2)
        bag.features[:, number % 3] += np.float16(1.2)
        write_bag(folder / "bags" / f"s{number}.h5", bag)
        rows.append(f"s{number},p{number},{CLASSES[number % 3]}")
    (folder / "train.csv").write_text("\n".join(rows))
    for head in ("gated", "additive"):
        found = run(
            "train", "--cohort", folder / "train.csv", "--bags", folder / "bags", "--run",
            folder / head, "--folds", 3, "--device", "cpu", "--head", head,
        )  # fmt: skip
        assert found.exit_code == 0, found.output
    return folder


def test_training_scores_three_classes_and_draws_each(world: Path) -> None:
    scores = json.loads((world / "gated" / "scores.json").read_text())
    assert scores["constant"]["weighted_log_loss"]["value"] == pytest.approx(np.log(3))
    assert scores["calibrated"]["weighted_log_loss"]["value"] < 0.8
    page = (world / "gated" / "report.html").read_text()
    for name in CLASSES:
        assert page.count(name) > 3


@pytest.mark.parametrize("head", ["gated", "additive"])
def test_infer_score_and_explain_name_three_classes(world: Path, tmp_path: Path, head: str) -> None:
    where = ("--run", world / head, "--bags", world / "bags", "--patients", world / "train.csv")
    assert run("infer", *where, "--out", tmp_path / "out.csv").exit_code == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert list(rows[0]) == ["patient_id", *CLASSES]
    proba = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (proba.argmax(axis=1) == np.arange(48) % 3).mean() > 0.9
    scored = run(
        "score", tmp_path / "out.csv", "--cohort", world / "train.csv", "--calibrate",
        "--reliability", "--repeats", 2, "--resamples", 100, "--json",
    )  # fmt: skip
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)["files"][0]["raw"]["auroc"]["value"] > 0.95
    explained = run("explain", *where, "--patient", "p1", "--out", tmp_path / "e")
    assert explained.exit_code == 0, explained.output
    assert "grade 1" in (tmp_path / "e" / "p1" / "index.html").read_text()


@pytest.mark.parametrize("calibrator", ["auto", "dirichlet", "temperature"])
def test_calibrators_of_more_classes_serve_three(world: Path, calibrator: str) -> None:
    where = ("--run", world / "gated", "--bags", world / "bags", "--patients", world / "train.csv")
    assert run("infer", *where, "--out", world / "again.csv").exit_code == 0
    found = run(
        "score", world / "again.csv", "--cohort", world / "train.csv", "--calibrate",
        "--calibrator", calibrator, "--repeats", 1, "--resamples", 100,
    )  # fmt: skip
    assert found.exit_code == 0, found.output


def test_every_head_is_offered_by_the_command() -> None:
    words = " ".join(run("train", "--help").output.split())
    assert [name for name in head_names() if name not in words] == []
