from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from features.embedding.config import EmbedConfig, make_fingerprint
from features.embedding.distributed import (
    WorkerFactory,
    local_executor,
    process_executor,
    ray_executor,
)
from features.embedding.pipeline import embed_slides_by
from features.embedding.results import SlideResult
from features.encoders.config import EncoderConfig
from features.errors import MilError, OutputError
from features.parallel.base import Executor
from features.slides.reader import find_slides
from features.slides.synthetic import make_cohort, render_slide, write_slide
from features.tiling.grid import TileSettings
from features.tiling.tissue import TissueSettings

SETTINGS = EmbedConfig(
    tiles=TileSettings(tile_px=64, target_mpp=1.0), tissue=TissueSettings(), batch_tiles=8
)
N_SLIDES = 6
EXPECTED = {f"s{number}": "done" for number in range(N_SLIDES)} | {
    "blank": "empty", "broken": "failed",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, one of them blank and one broken, and weights of a small backbone."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "slides").mkdir()
    for number, plan in enumerate(make_cohort(n_patients=N_SLIDES, seed=4, signal=1.0)[:N_SLIDES]):
        write_slide(folder / "slides" / f"s{number}.tif", render_slide(plan)[500:2300, 400:2600])
    write_slide(folder / "slides" / "blank.tif", np.full((700, 700, 3), 240, np.uint8))
    (folder / "slides" / "broken.tif").write_bytes(b"II*\x00 no more")
    torch.manual_seed(0)
    weights = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(weights, folder / "tiny.safetensors")
    return folder


def plan_for(world: Path, bags: Path) -> WorkerFactory:
    request = EncoderConfig(
        name="test_vit", weights=(world / "tiny.safetensors",), device="cpu", batch_tiles=8,
        execution="eager",
    )  # fmt: skip
    return WorkerFactory(
        bags_dir=bags, encoder=request, fingerprint=partial(make_fingerprint, settings=SETTINGS),
        batch_tiles=8, n_workers=1,
    )  # fmt: skip


class Killer:
    """Progress that kills one worker at work as soon as a slide is done."""

    def __init__(self, bags: Path, *, n_kills: int) -> None:
        self._claims = bags / ".claims"
        self._n_left = n_kills
        self.n_tiles = 0

    def slide_started(self, slide_id: str, n_tiles: int) -> None: ...

    def tiles_done(self, n_tiles: int) -> None:
        self.n_tiles += n_tiles

    def noted(self, text: str) -> None: ...

    def slide_ended(self, outcome: SlideResult) -> None:
        for path in sorted(self._claims.glob("*.claim")) if self._n_left else ():
            with suppress(OSError, ValueError):  # given back, or not written yet
                pid = int(json.loads(path.read_text())["pid"])
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    self._n_left -= 1
                    return


def embed(world: Path, bags: Path, engine: Executor, *, n_kills: int = 0) -> dict[str, str]:
    """What became of each slide."""
    progress = Killer(bags, n_kills=n_kills)
    outcomes = embed_slides_by(
        engine, find_slides([world / "slides"]), bags, settings=SETTINGS, given_mpp={},
        overwrite=False, progress=progress,
    )  # fmt: skip
    if not n_kills:
        assert progress.n_tiles == sum(outcome.n_tiles for outcome in outcomes)
    return {outcome.slide_id: outcome.status for outcome in outcomes}


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """Bags of one embedder in this process."""
    bags = world / "whole"
    with local_executor(plan_for(world, bags)) as engine:
        assert embed(world, bags, engine) == EXPECTED
        again = embed_slides_by(
            engine, find_slides([world / "slides" / "s0.tif"]), bags, settings=SETTINGS,
            given_mpp={}, overwrite=False, progress=Killer(bags, n_kills=0),
        )  # fmt: skip
    assert [outcome.status for outcome in again] == ["skipped"]
    return bags


def same_bytes(bags: Path, whole: Path) -> None:
    made = {path.name: path.read_bytes() for path in bags.glob("*.h5")}
    assert made == {path.name: path.read_bytes() for path in whole.glob("*.h5")}
    assert {path.name for path in bags.iterdir()} == {*made, "embed.csv", "execution.txt"}
    table = pd.read_csv(bags / "embed.csv", dtype=str).set_index("slide_id")["status"]
    assert table.to_dict() == EXPECTED


def test_a_plan_says_where_it_cannot_be_followed(world: Path, tmp_path: Path) -> None:
    plan = plan_for(world, tmp_path)
    with pytest.raises(MilError, match=r"mil-slides .*; expected 0\.0\.1"):
        replace(plan, version="0.0.1")()
    with pytest.raises(OutputError, match="one folder that all machines share"):
        replace(plan, mark=tmp_path / "nowhere")()


@pytest.mark.slow
def test_processes_make_the_same_bags_as_one_embedder_here_though_one_is_killed(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    plan = plan_for(world, tmp_path / "bags")
    with process_executor(plan, ["cpu", "cpu"], on_warning=notes.append) as engine:
        assert embed(world, tmp_path / "bags", engine, n_kills=1) == EXPECTED
    same_bytes(tmp_path / "bags", whole)
    assert len(notes) == 1
    assert "SIGKILL" in notes[0]


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_bags_though_one_worker_is_killed(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    notes: list[str] = []
    plan = plan_for(world, tmp_path / "bags")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with ray_executor(plan, None, on_warning=notes.append) as engine:
            assert embed(world, tmp_path / "bags", engine, n_kills=1) == EXPECTED
    finally:
        ray.shutdown()
    same_bytes(tmp_path / "bags", whole)
    assert notes[0] == "on Ray: 2 embedders with 1 cores"
    assert any("died" in note and "jobs queued again" in note for note in notes[1:])
