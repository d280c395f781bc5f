"""The benchmark of training, on next to nothing."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from mil.training.config import TrainConfig
from tests.benchmarks import few_patients, nested, streaming, training


def test_the_benchmark_of_training_prints_what_it_promises(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_MOST_EPOCHS", 3)
    quick = partial(TrainConfig, n_members=2, fixed_steps=4)
    monkeypatch.setattr(training, "TrainConfig", quick)
    options = {"patients": 24, "folds": 2, "tiles": 12, "dim": 40, "device": "cpu"}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert training.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["speedup"] == pytest.approx(result["peer_s"] / result["ours_s"])
    difference = result["log_loss_difference"]
    assert difference["interval"][0] <= difference["value"] <= difference["interval"][1]
    assert difference["value"] == pytest.approx(result["ours_log_loss"] - result["peer_log_loss"])
    assert 0 < result["matmul_fraction"] < 1
    assert 0 < result["busy_matmul_fraction"] < 1
    assert result["ours_heads"] == 4
    assert result["peer_epochs"] == [3, 3]


def test_the_stack_is_timed_against_its_own_heads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "TrainConfig", partial(TrainConfig, n_members=1, fixed_steps=2))
    options = ("--patients", "24", "--folds", "3", "--tiles", "8", "--dim", "20", "--device", "cpu")
    assert training.main(["--stack-over-gated", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    ratio = result["stack_busy_s"] / result["gated_busy_s"]
    assert result["stack_over_gated"] == pytest.approx(ratio)
    assert result["n_folds"] == 3


def test_generated_bags_are_ragged_and_carry_their_signal_in_a_few_tiles() -> None:
    bags, cohort = training.generate(n_patients=60, n_tiles=100, dim=32)
    sizes = list(bags.n_tiles.values())
    assert 50 <= min(sizes) < max(sizes) <= 150
    assert np.bincount(cohort.labels).tolist() == [40, 20]
    again, _ = training.generate(n_patients=60, n_tiles=100, dim=32)
    assert again.features["0003"].tobytes() == bags.features["0003"].tobytes()


def test_settings_are_compared_on_the_same_cohorts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert few_patients.Kind.draw(0) == few_patients.Kind.draw(0) != few_patients.Kind.draw(1)
    small = few_patients.Kind(n_patients=18, n_tiles=5, share=1.0, signal=1.0, n_moved=8, every=3)
    monkeypatch.setattr(few_patients.Kind, "draw", lambda _seed: small)
    few = few_patients.Setting(fixed_steps=3)
    more = few_patients.Setting(fixed_steps=20, patients_a_component=1.5)
    default, same, other = few_patients.measure([0, 1], tried=(few, few, more))
    assert default == same
    assert default["difference"] == {"mean": 0.0, "standard_error": 0.0}
    assert other["log_loss"] != default["log_loss"]


def test_nested_scores_are_compared_with_cross_fitted_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "TrainConfig", partial(TrainConfig, n_members=1, fixed_steps=2))
    monkeypatch.setattr(nested, "_N_PATIENTS", 30)
    result = nested.measure(signal=1.0, seeds=[0, 1])
    assert result["difference"]["mean"] == pytest.approx(result["nested"] - result["cross_fitted"])  # type: ignore[index,operator]
    assert result["nested"] != result["cross_fitted"]
    assert result["cost"] > 1  # type: ignore[operator]


@pytest.mark.slow
def test_a_cohort_larger_than_its_limit_trains_within_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # It takes 1.8 to 2.1 GiB, as measured; 2.86 GiB of embeddings do not fit into 2.75.
    arguments = ["--patients", "3000", "--tiles", "400", "--memory-gib", "2.75", "--epochs", "1"]
    assert streaming.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["in_files"]
    assert result["embeddings_gib"] > result["limit_gib"]
    assert result["peak_gib"] < result["limit_gib"]
