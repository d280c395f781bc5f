"""The benchmark of training, on next to nothing."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from mil.settings import TrainSettings
from tests.benchmarks import fixed_steps, streaming, training


def test_the_benchmark_of_training_prints_what_it_promises(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_MOST_EPOCHS", 3)
    quick = partial(TrainSettings, n_members=2, fixed_steps=4)
    monkeypatch.setattr(training, "TrainSettings", quick)
    options = {"patients": 24, "folds": 2, "tiles": 12, "dim": 40, "device": "cpu"}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert training.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["speedup"] == pytest.approx(found["peer_s"] / found["ours_s"])
    difference = found["log_loss_difference"]
    assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
    assert difference["value"] == pytest.approx(found["ours_log_loss"] - found["peer_log_loss"])
    assert 0 < found["matmul_fraction"] < 1
    assert 0 < found["busy_matmul_fraction"] < 1
    assert found["ours_heads"] == 4
    assert found["peer_epochs"] == [3, 3]


def test_generated_bags_are_ragged_and_carry_their_signal_in_a_few_tiles() -> None:
    bags, cohort = training.generate(n_patients=60, n_tiles=100, dim=32)
    sizes = list(bags.n_tiles.values())
    assert 50 <= min(sizes) < max(sizes) <= 150
    assert np.bincount(cohort.labels).tolist() == [40, 20]
    again, _ = training.generate(n_patients=60, n_tiles=100, dim=32)
    assert again.features["0003"].tobytes() == bags.features["0003"].tobytes()


def test_steps_are_compared_on_the_same_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_steps, "_TRIED", ((3, 1e-3), (3, 1e-3), (20, 1e-2)))
    monkeypatch.setattr(fixed_steps, "_N_PATIENTS", 18)
    default, same, other = fixed_steps.measure(signal=3.0, seeds=[0, 1])
    assert default == same
    assert default["difference"] == {"mean": 0.0, "standard_error": 0.0}
    assert other["log_loss"] != default["log_loss"]


@pytest.mark.slow
def test_a_cohort_larger_than_its_limit_trains_within_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The program itself takes about 1 GiB; 3 GiB of embeddings do not fit beside it into 2.
    arguments = ["--patients", "3000", "--tiles", "400", "--memory-gib", "2", "--epochs", "1"]
    assert streaming.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["in_files"]
    assert found["embeddings_gib"] > 2.5
    assert found["peak_gib"] < found["limit_gib"]
