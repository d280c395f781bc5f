from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from features.embedding.config import EmbedConfig
from features.embedding.distributed import EmbeddingWorkerFactory, open_executor
from features.embedding.pipeline import NoProgress, embed_slides
from features.embedding.results import SlideResult
from features.errors import MilError, OutputError
from features.slides.synthetic import make_cohort, render_slide, write_slide
from features.tiling.grid import TileSettings

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


def config_for(world: Path, *, device: str = "cpu", **options: Any) -> EmbedConfig:
    return EmbedConfig(
        encoder="test_vit", weights=(world / "tiny.safetensors",), runtime="eager", batch_tiles=8,
        tiles=TileSettings(tile_px=64, target_mpp=1.0), device=device, n_workers=1, **options,
    )  # fmt: skip


class Killer(NoProgress):
    """Progress that kills one running worker whenever a slide is done."""

    def __init__(self, bags: Path, *, n_kills: int) -> None:
        self._locks_dir = bags / ".claims"
        self._n_left = n_kills
        self.n_tiles = 0
        self.warnings: list[str] = []

    def tiles_done(self, n_tiles: int) -> None:
        self.n_tiles += n_tiles

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def slide_ended(self, result: SlideResult) -> None:
        for path in sorted(self._locks_dir.glob("*.claim")) if self._n_left else ():
            with suppress(OSError, ValueError):  # given back, or not written yet
                pid = int(json.loads(path.read_text())["pid"])
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    self._n_left -= 1
                    return


def embed(world: Path, bags: Path, config: EmbedConfig, *, n_kills: int = 0) -> list[str]:
    """Embed all slides, check the results, and return the warnings."""
    progress = Killer(bags, n_kills=n_kills)
    results = embed_slides([world / "slides"], bags, config, progress=progress)
    if not n_kills:
        assert progress.n_tiles == sum(result.n_tiles for result in results)
    assert {result.slide_id: result.status for result in results} == EXPECTED
    return progress.warnings


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """Bags of one embedder in this process."""
    bags = world / "whole"
    config = config_for(world)
    assert not embed(world, bags, config)
    with open_executor(config, bags) as executor:
        (again,) = embed_slides([world / "slides" / "s0.tif"], bags, config, executor=executor)
    assert again.status == "skipped"
    return bags


def same_bytes(bags: Path, whole: Path) -> None:
    made = {path.name: path.read_bytes() for path in bags.glob("*.h5")}
    assert made == {path.name: path.read_bytes() for path in whole.glob("*.h5")}
    assert {path.name for path in bags.iterdir()} == {*made, "embed.csv", "execution.txt"}
    table = pd.read_csv(bags / "embed.csv", dtype=str).set_index("slide_id")["status"]
    assert table.to_dict() == EXPECTED


def test_a_worker_checks_the_version_and_the_folder(world: Path, tmp_path: Path) -> None:
    factory = EmbeddingWorkerFactory(bags_dir=tmp_path, config=config_for(world))
    with pytest.raises(MilError, match=r"mil-slides .*; expected 0\.0\.1"):
        replace(factory, version="0.0.1")()
    with pytest.raises(OutputError, match="one folder that all machines share"):
        replace(factory, shared_file=tmp_path / "missing")()


@pytest.mark.slow
def test_processes_make_the_same_bags_as_one_embedder_here_though_one_is_killed(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    config = config_for(world, device="cpu,cpu")
    warnings = embed(world, tmp_path / "bags", config, n_kills=1)
    same_bytes(tmp_path / "bags", whole)
    assert len(warnings) == 1
    assert "SIGKILL" in warnings[0]


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_bags_though_one_worker_is_killed(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        config = config_for(world, engine="ray")
        warnings = embed(world, tmp_path / "bags", config, n_kills=1)
    finally:
        ray.shutdown()
    same_bytes(tmp_path / "bags", whole)
    assert warnings[0] == "on Ray: 2 workers with 1 cores"
    assert any("died" in text and "jobs queued again" in text for text in warnings[1:])
