from __future__ import annotations

import json
from pathlib import Path

import pytest

from mil.base_learners import BASE_LEARNERS
from mil.inference.bundle import load_bundle
from mil.reporting.learners import describe_weights, weights_table
from mil.reporting.run_report import write_report
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import write_cohort


def test_weights_are_told_in_one_sentence_and_nothing_is_said_of_a_single_head() -> None:
    weights = {"gated": 0.21, "mean": 0.4, "histogram": 0.389, "spread": 0.001}
    assert describe_weights(weights) == (
        "Weights of the stack: mean embedding 40 %, mixture of clusters 39 %, attention heads "
        "21 %; none on spread within the patient"
    )
    assert describe_weights({}) == ""
    assert "No learner carries a signal" in describe_weights(dict.fromkeys(weights, 0.0))


@pytest.mark.parametrize("n_tiles", [1, pytest.param(6, marks=pytest.mark.ci)])
def test_weights_are_in_console_report_card_and_scores(tmp_path: Path, n_tiles: int) -> None:
    table = write_cohort(tmp_path, n_patients=18, shift=1.0, n_tiles=n_tiles)
    (tmp_path / "train.csv").write_text(  # one slide per patient
        "\n".join(row for row in table.read_text().splitlines() if "_1," not in row)
    )
    summary = train_run(
        table, tmp_path / "bags", tmp_path / "run", n_folds=2,
        report=False, config=TrainConfig(n_members=2, n_components=6, fixed_steps=8),
    )  # fmt: skip
    run = load_bundle(tmp_path / "run")
    assert list(summary.learners) == ["gated", *BASE_LEARNERS]
    assert sum(summary.learners.values()) == pytest.approx(1)
    page = write_report(run.path).read_text()
    of_page = weights_table(run)
    assert of_page is not None
    assert describe_weights(summary.learners) in page
    assert "A stack of 2 gated attention heads" in (run.path / "MODEL_CARD.md").read_text()
    stored = json.loads((run.path / "scores.json").read_text())["learners"]
    assert {name: of["weight"] for name, of in stored.items()} == summary.learners
    constant = [name for name, of in stored.items() if of["constant"]]
    assert constant == (["projections", "mixture"] if n_tiles == 1 else [])
    notes = [note for note in summary.notes if "the stack is smaller: 'projections'" in note]
    assert len(notes) == (n_tiles == 1)
    assert ("The stack is smaller" in page) == (n_tiles == 1)
