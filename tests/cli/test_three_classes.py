"""More than two classes work throughout: describe, train, infer, score, report, explain, view."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cli.viewer.content import ViewerState
from features.bags.h5 import find_bags, write_bag
from mil.data.cohort import read_cohort
from mil.heads import head_names
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from tests.cli.running import mil, mil_ok
from tests.fakes import make_bag

CLASSES = ["benign", "grade 1", "grade 2"]


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
        mil_ok(
            "train", "--cohort", folder / "train.csv", "--bags", folder / "bags", "--run",
            folder / head, "--folds", 3, "--device", "cpu", "--head", head,
        )  # fmt: skip
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
    assert mil("infer", *where, "--out", tmp_path / "out.csv").exit_code == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert list(rows[0]) == ["patient_id", *CLASSES]
    proba = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (proba.argmax(axis=1) == np.arange(48) % 3).mean() > 0.9
    scored = mil_ok(
        "score", tmp_path / "out.csv", "--cohort", world / "train.csv", "--calibrate",
        "--reliability", "--repeats", 2, "--resamples", 100, "--json",
    )  # fmt: skip
    assert json.loads(scored.stdout)["files"][0]["raw"]["auroc"]["value"] > 0.95
    mil_ok("explain", *where, "--patient", "p1", "--out", tmp_path / "e")
    assert "grade 1" in (tmp_path / "e" / "p1" / "index.html").read_text()


def test_three_classes_are_calibrated_by_another_calibrator(world: Path) -> None:
    where = ("--run", world / "gated", "--bags", world / "bags", "--patients", world / "train.csv")
    assert mil("infer", *where, "--out", world / "again.csv").exit_code == 0
    mil_ok(
        "score", world / "again.csv", "--cohort", world / "train.csv", "--calibrate",
        "--calibrator", "temperature", "--repeats", 1, "--resamples", 100,
    )  # fmt: skip


def test_describe_audit_and_report_name_three_classes(world: Path, tmp_path: Path) -> None:
    bags = ("--bags", world / "bags")
    mil_ok("describe", world / "train.csv", *bags, "--out", tmp_path / "d.html")
    audited = mil("audit", world / "train.csv", *bags)
    assert audited.exit_code in (0, 3), audited.output
    assert mil("report", world / "gated").exit_code == 0
    for page in (tmp_path / "d.html", world / "gated" / "report.html"):
        text = page.read_text()
        assert [name for name in CLASSES if name not in text] == []
    card = (world / "gated" / "MODEL_CARD.md").read_text()
    assert [name for name in CLASSES if name not in card] == []


def test_the_viewer_gives_each_patient_three_probabilities(world: Path) -> None:
    model, cohort = load_bundle(world / "gated"), read_cohort(world / "train.csv", labelled=False)
    predictions = predict(model, cohort, world / "bags", prior=np.full(3, 1 / 3))
    viewed = ViewerState(
        model, cohort, predictions, bags=find_bags(world / "bags"), prior=np.full(3, 1 / 3),
        paths=None,
    )  # fmt: skip
    data = json.dumps(viewed.patients())
    viewed.close()
    assert all(name in data for name in CLASSES)


@pytest.mark.ci
@pytest.mark.parametrize("calibrator", ["none", "beta", "temperature"])
def test_three_classes_are_trained_with_each_calibrator_and_retired_ones_refused(
    world: Path, tmp_path: Path, calibrator: str
) -> None:
    result = mil(
        "train", "--cohort", world / "train.csv", "--bags", world / "bags", "--run",
        tmp_path / "run", "--folds", 2, "--device", "cpu", "--calibrator", calibrator,
        "--head", "gated",
    )  # fmt: skip
    if calibrator == "beta":
        assert result.exit_code == 1
        words = " ".join(result.output.split())
        assert "moved to" in words
        assert "Take platt" in words
    else:
        assert result.exit_code == 0, result.output


def test_every_head_is_offered_by_the_command() -> None:
    words = " ".join(mil("train", "--help").output.split())
    assert [name for name in head_names() if name not in words] == []


def test_three_classes_are_compared_combined_and_evaluated(world: Path, tmp_path: Path) -> None:
    runs = [world / "gated", world / "additive"]
    compared = json.loads(mil_ok("compare", *runs, "--out", tmp_path / "c.html", "--json").stdout)
    assert compared["n_patients"] == 48
    mil_ok("combine", *runs, "--run", tmp_path / "all")
    (tmp_path / "new").mkdir()
    rows = ["slide_id,patient_id,label"]
    for number in range(18):
        bag = make_bag(f"n{number}", n_tiles=6, dim=16, seed=2)
        bag.features[:, number % 3] += np.float16(1.2)
        write_bag(tmp_path / "new" / f"n{number}.h5", bag)
        rows.append(f"n{number},n{number},{CLASSES[number % 3]}")
    (tmp_path / "new.csv").write_text("\n".join(rows))
    data = json.loads(
        mil_ok("evaluate", tmp_path / "all", "--cohort", tmp_path / "new.csv", "--bags",
               tmp_path / "new", "--out", tmp_path / "e.html", "--json").stdout
    )  # fmt: skip
    assert data["priors"]["balanced"]["weighted_log_loss"]["value"] < 0.8
    assert all(0 < one["guaranteed"] < 1 for one in data["sets"])
