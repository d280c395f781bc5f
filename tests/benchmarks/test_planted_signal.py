"""The script of the planted-signal study: what it generates, measures and draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.planted_signal import generate, main, measure


def test_the_signal_lies_in_that_share_of_the_tiles_of_every_second_patient() -> None:
    world = generate(n_patients=200, share=0.2, n_new=10)
    assert len(world.new) == 10
    along = [bag @ world.projection for bag in world.bags]
    raised = np.mean([part.mean() for part in along[1::2]]) - np.mean(
        [part.mean() for part in along[::2]]
    )
    assert raised == pytest.approx(0.2 * 4, abs=0.25)
    few = generate(n_patients=4, share=0.001)
    assert max(few.bags[1] @ few.projection) > 2


def test_a_maximum_finds_few_tiles_and_a_mean_does_not() -> None:
    cells = measure(shares=[0.05], heads=["mean", "max"], sizes=[60], n_runs=1)
    result = {cell.head: cell.auroc for cell in cells}
    assert result["max"] > result["mean"] + 0.1
    assert result["direction known"] > 0.9
    assert 0.4 < result["mean + logistic"] < 0.8


def test_every_cell_is_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([
        "--shares", "0.05,0.2", "--heads", "mean", "--sizes", "20,30", "--runs", "2",
        "--figure", str(tmp_path / "f.png"),
    ])  # fmt: skip
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 2 * 3 * 2
    assert all(cell["low"] <= cell["auroc"] <= cell["high"] for cell in cells)
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 1000
