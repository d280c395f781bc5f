from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.bags.h5 import find_bags
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.cli.running import mil, mil_ok
from tests.fakes import write_cohort

FAST = TrainConfig(n_members=1, n_components=8, fixed_steps=10)


@pytest.mark.ci
def test_inference_averages_views_when_asked_and_refuses_where_there_are_none(
    tmp_path: Path,
) -> None:
    for name, n_views in (("with", 2), ("without", 0)):
        table = write_cohort(tmp_path / name, n_patients=15, shift=0.7, n_views=n_views)
        cohort = read_cohort(table, labelled=True)
        bags = load_patient_bags(cohort, find_bags(tmp_path / name / "bags"))
        train_run(
            cohort, bags, tmp_path / name / "run", n_folds=3, n_repeats=1, seed=0,
            config=FAST, on_head=lambda done, total: None,
        )  # fmt: skip

    def ask(name: str, *options: str):
        folder = tmp_path / name
        return mil(
            "infer", "--patients", folder / "train.csv", "--run", folder / "run", "--bags",
            folder / "bags", "--out", tmp_path / "out.csv", "--json", *options,
        )  # fmt: skip

    plain = ask("with")
    assert json.loads(plain.stdout)["views_averaged"] == 0
    before = pd.read_csv(tmp_path / "out.csv")["CE"]
    averaged = ask("with", "--tta")
    assert json.loads(averaged.stdout)["views_averaged"] == 2
    assert not np.allclose(before, pd.read_csv(tmp_path / "out.csv")["CE"])
    mil_ok(
        "explain", "--run", tmp_path / "with" / "run", "--bags", tmp_path / "with" / "bags",
        "--patients", tmp_path / "with" / "train.csv", "--patient", "001", "--tta", "--out",
        tmp_path / "explained",
    )  # fmt: skip
    told = json.loads((tmp_path / "explained" / "001" / "explanation.json").read_text())
    inferred = pd.read_csv(tmp_path / "out.csv", dtype={"patient_id": str}).set_index("patient_id")
    assert told["probabilities"]["CE"] == pytest.approx(inferred.loc["001", "CE"], abs=1e-12)
    refused = ask("without", "--tta")
    assert refused.exit_code == 1
    assert "trained on bags without views" in refused.output
