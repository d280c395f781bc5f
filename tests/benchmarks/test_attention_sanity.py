"""The script of the sanity checks: what it generates, and that it tells heads apart."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from mil.training.config import TrainConfig
from tests.benchmarks import attention_sanity
from tests.benchmarks.attention_sanity import generate, main


def test_every_second_patient_and_all_that_are_held_out_have_moved_tiles() -> None:
    world = generate(n_patients=6, n_held_out=2)
    assert list(world.labels.values()) == [0, 1] * 3
    assert world.planted.sum() == 14
    assert len(world.held_out) == 2
    assert {bag.shape for bag in world.held_out} == {(144, 32)}


def test_trained_heads_find_the_moved_tiles_and_random_ones_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(TrainConfig, n_members=2, fixed_steps=30, learning_rate=5e-3)
    monkeypatch.setattr(attention_sanity, "TrainConfig", quick)
    main([
        "--heads", "gated", "--patients", "40", "--held-out", "4", "--repeats", "1",
        "--figure", str(tmp_path / "f.png"),
    ])  # fmt: skip
    result = json.loads(capsys.readouterr().out)["gated"]
    correlation = {kind: of["mean"] for kind, of in result["rank_correlation"].items()}
    assert correlation["trained again"] > 0.4
    assert abs(correlation["random"]) < 0.3
    assert result["auroc"]["trained"] > 0.75 > result["auroc"]["random"]
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 800
