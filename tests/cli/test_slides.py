"""Commands that look at slides before anything is embedded."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from cli.commands.embed import expected_tiles
from cli.shared.arguments import select_shard
from features.bags.h5 import read_bag
from features.embedding.config import EmbedConfig
from features.encoders.exported import KnownExport
from features.slides.synthetic import make_cohort, render_slide, write_slide
from features.tiling.grid import TileSettings
from features.utils.stage_times import STAGES
from tests.cli.running import mil, mil_ok
from tests.features.encoders.test_encoder import TINY, tiny_state


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painted slide, a blank one, and a broken one."""
    folder = tmp_path_factory.mktemp("slides")
    plan = make_cohort(n_patients=1, seed=1, signal=1.0)[0]
    write_slide(folder / "clot.tif", render_slide(plan)[600:2600, 600:2600])
    write_slide(folder / "blank.tif", np.full((900, 900, 3), (196, 211, 192), np.uint8))
    (folder / "broken.tif").write_bytes(b"II*\x00 no more")
    return folder


def test_inspect_prints_what_was_understood(slides: Path) -> None:
    result = mil_ok("inspect", slides / "clot.tif")
    for words in ("clot", "tiff", "2,000 x 2,000 px (4 megapixels", "0.25 x 0.25 (assumed)"):
        assert words in result.stdout
    data = json.loads(mil("inspect", slides, "--json").stdout)
    assert [slide["slide_id"] for slide in data["slides"]] == ["blank", "clot"]
    assert data["slides"][1]["levels"] == [[2000, 2000, 1.0]]
    assert "broken.tif" in next(iter(data["failed"]))
    assert mil("inspect", slides).exit_code == 3
    assert mil("inspect", slides / "broken.tif").exit_code == 1


def test_inspect_tells_the_resolution_that_would_be_used(slides: Path) -> None:
    data = json.loads(mil("inspect", slides / "clot.tif", "--slide-mpp", 0.5, "--json").stdout)
    assert data["slides"][0]["mpp_used"] == [0.5, 0.5]
    assert data["slides"][0]["mpp_source"] == "given"
    assert data["slides"][0]["width_mm"] == 1.0


@pytest.mark.ci
def test_a_dry_run_counts_and_writes_nothing(slides: Path, tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    result = mil("embed", slides, "--bags", bags, "--dry-run", "--batch", 8, "--json")
    data = json.loads(result.stdout)
    assert data["n_slides"] == 2
    assert data["n_tiles"] > 0
    assert data["bag_gb"] == pytest.approx(data["n_tiles"] * 1280 * 2 / 1e9)
    assert data["hours"] * 3600 > data["survey_s"] > 0
    assert list(data["failures"]) == ["broken"]
    assert not bags.exists()
    again = mil("embed", slides, "--bags", bags, "--dry-run", "--batch", 8)
    assert "tiles/s" in again.stdout
    assert again.exit_code == result.exit_code == 3
    nothing = mil("embed", slides / "broken.tif", "--bags", bags, "--dry-run")
    assert (nothing.exit_code, nothing.stdout) == (1, "")
    assert nothing.stderr.count("failed: ") == 1


@pytest.mark.ci
def test_a_cached_export_runs_and_is_timed_without_torch(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("MIL_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "tiny.safetensors"
    save_file(tiny_state(), weights)
    options = ["--backbone", TINY, "--weights", str(weights), "--device", "cpu", "--json"]
    embed = ["embed", str(slides), "--bags", str(tmp_path / "bags"), *options]
    done = mil(*embed, "--execution", "onnx")
    assert done.exit_code == 3, done.output  # of the broken slide
    eager = mil(*embed, "--execution", "eager", "--bags", str(tmp_path / "eager"))
    code = (
        "import atexit, sys; from cli.app import main; heavy = {'torch', 'torchvision', 'timm'}; "
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr)); main()"
    )

    def run(*more: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", code, *embed, *more], capture_output=True, text=True, check=False
        )
        assert done.returncode == 3, done.stderr  # of the broken slide
        assert done.stderr.split()[-1] == "[]"
        return json.loads(done.stdout)

    for folder in ("bags", "anew"):  # its runtime recorded, and chosen
        again = run("--overwrite", "--bags", str(tmp_path / folder))
        assert again["n_tiles"] == json.loads(eager.stdout)["n_tiles"] > 0
        for path in (tmp_path / "eager").glob("*.h5"):
            bag, plain = read_bag(tmp_path / folder / path.name), read_bag(path)
            assert bag.meta.fingerprint == plain.meta.fingerprint
            np.testing.assert_allclose(bag.features, plain.features, atol=1e-2, rtol=1e-3)
    data = run("--dry-run", "--overwrite")
    assert data["n_tiles"] > 0
    assert data["runtime"] == "onnx float32"
    assert data["backbone_tiles_per_s"] > 0
    assert min(data["startup_s"], data["selection_s"]) > 0
    assert data["hours"] * 3600 > data["startup_s"] + data["selection_s"]


@pytest.mark.parametrize(("max_tiles", "n_tiles"), [(5, 10), (None, 400)])
def test_slides_are_not_looked_at_where_their_tiles_decide_nothing(
    max_tiles: int | None, n_tiles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def find(*_: object, n_tiles: int | None, **options: object) -> bool:
        asked.append(n_tiles)
        return True

    monkeypatch.setattr(KnownExport, "find", find)
    slides = [tmp_path / "a.tif", tmp_path / "b.tif"]  # which are not there
    config = EmbedConfig(tiles=TileSettings(max_tiles=max_tiles))
    assert expected_tiles(slides, config, tmp_path, given_mpp={}, scene=None) == n_tiles
    assert asked == [max_tiles and n_tiles]


@pytest.mark.ci
def test_fewer_tiles_and_other_rules_are_recorded_in_the_bag(slides: Path, tmp_path: Path) -> None:
    done = mil_ok(
        "embed", slides / "clot.tif", "--bags", tmp_path, "--max-tiles", 2, "--rules", "dark,ink",
        "--json", "--profile",
    )  # fmt: skip
    seconds = json.loads(done.stdout)["profile_s"]
    assert list(seconds) == ["whole", "start", *STAGES]
    assert seconds["whole"] > seconds["start"] > 0
    again = mil_ok("embed", slides / "clot.tif", "--bags", tmp_path, "--max-tiles", 2, "--rules",
                   "dark,ink", "--profile")  # fmt: skip
    assert all(what in again.stdout for what in (*STAGES, "the encoder worked"))
    bag = read_bag(tmp_path / "clot.h5")
    assert len(bag.features) == 2
    chosen = json.loads(bag.meta.fingerprint.tissue)
    assert chosen["max_tiles"] == 2
    assert chosen["rules"] == ["dark", "ink"]
    wrong = mil("embed", slides / "clot.tif", "--bags", tmp_path, "--rules", "bubbles")
    assert wrong.exit_code == 1
    assert "'bubbles'" in wrong.output


@pytest.mark.ci
def test_the_summary_names_a_slide_of_another_resolution(slides: Path, tmp_path: Path) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("slide_id,mpp\nclot,1.0\nblank,0.25\n")
    more = tmp_path / "more.tif"
    more.write_bytes((slides / "blank.tif").read_bytes())
    result = mil(
        "embed", slides / "clot.tif", slides / "blank.tif", more, "--bags", tmp_path / "bags",
        "--mpp-table", table, "--json",
    )  # fmt: skip
    data = json.loads(result.stdout)
    assert data["mpp"] == {"0.25": 2, "1": 1}
    assert data["mpp_outliers"] == {"clot": 1.0}


def test_shards_together_are_all_slides_and_share_none(slides: Path) -> None:
    paths = [slides / f"{number}.tif" for number in range(7)]
    parts = [select_shard(paths, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(path for part in parts for path in part) == paths
    assert select_shard(paths, None) == paths
    for wrong in ("0/3", "4/3", "2", "a/b"):
        assert mil("embed", slides, "--shard", wrong).exit_code == 2


@pytest.mark.ci
def test_a_folder_keeps_the_way_its_bags_were_made(slides: Path, tmp_path: Path) -> None:
    clot = slides / "clot.tif"
    mil_ok("embed", clot, "--bags", tmp_path, "--execution", "eager", "--batch", 8)
    assert (tmp_path / "execution.txt").read_text() == "eager float32 batch 8\n"
    made = json.loads(read_bag(tmp_path / "clot.h5").meta.software)
    assert made["execution"] == "eager float32 batch 8"
    mil_ok("embed", clot, "--bags", tmp_path, "--overwrite", "--batch", 4)
    assert (tmp_path / "execution.txt").read_text() == "eager float32 batch 8\n"
    other = mil("embed", clot, "--bags", tmp_path, "--execution", "onnx")
    assert other.exit_code == 1
    assert "eager float32 batch 8" in other.output


def test_an_unusable_cluster_is_an_error_before_anything_is_made(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags = tmp_path / "bags"
    assert mil("embed", slides, "--bags", bags, "--address", "head:6379").exit_code == 2
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else real(name)
    )
    result = mil("embed", slides, "--bags", bags, "--engine", "ray")
    assert result.exit_code == 1
    assert "pip install 'mil-slides[ray]'" in result.output
    result = mil("embed", slides, "--bags", bags, "--device", "cpu,cuda:99")
    assert result.exit_code == 1
    assert "device 'cuda:99' of 'cpu,cuda:99': this machine has cpu" in result.output
    assert not bags.exists()
