"""Runs on the folds of another run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mil.data.cohort import read_cohort
from mil.data.splits import Fold, read_folds, write_folds
from mil.errors import SplitError
from mil.training.config import TrainConfig
from tests.cli.running import mil
from tests.studies import train_on, write_encoded_cohort


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_encoded_cohort(tmp_path, "train", n_patients=16, encoders={"a": 0.5})
    return tmp_path


@pytest.mark.ci
def test_another_seed_trains_other_heads_on_the_same_folds(world: Path) -> None:
    config = TrainConfig(head="mean", n_members=1, n_components=4, fixed_steps=2)
    first = train_on(world, world / "train.csv", "a", config=config, n_folds=2, n_repeats=2)
    options = {"config": config, "n_folds": 4, "seed": 1, "folds_of": first}
    other = train_on(world, world / "train.csv", "a", run="b", **options)
    assert (first / "folds.csv").read_bytes() == (other / "folds.csv").read_bytes()
    tables = [pd.read_csv(run / "judged.csv") for run in (first, other)]
    assert (tables[0]["raw_CE"] != tables[1]["raw_CE"]).any()
    refused = mil("train", "--cohort", world / "train.csv", "--folds-of", first, "--folds", 3)
    assert refused.exit_code == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.iloc[1:], "no fold of 1 patient, first '000'"),
        (lambda table: table.replace("000", "nobody"), "no fold of 1 patient"),
        (lambda table: table.assign(fold="first"), "'first'"),
        (lambda table: table.drop(columns="fold"), "no column 'fold'"),
    ],
)
def test_folds_of_other_patients_are_refused(world: Path, change, words: str) -> None:
    cohort = read_cohort(world / "train.csv", labelled=True)
    ids = cohort.patient_ids
    folds = [Fold(repeat=0, index=0, train_ids=ids[8:], test_ids=ids[:8]),
             Fold(repeat=0, index=1, train_ids=ids[:8], test_ids=ids[8:])]  # fmt: skip
    path = world / "folds.csv"
    write_folds(path, folds)
    assert read_folds(path, cohort) == tuple(folds)
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)
    with pytest.raises(SplitError, match=words):
        read_folds(path, cohort)
