from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing import RawArray
from pathlib import Path
from threading import Event
from typing import Any, cast

import numpy as np
import pandas as pd
import psutil
import pytest
import timm
import torch
from safetensors.torch import save_file

from features.embedding.config import EmbedConfig
from features.embedding.distributed import EmbeddingWorkerFactory, open_executor
from features.embedding.estimate import estimate_embedding
from features.embedding.pipeline import NoProgress, embed_slides
from features.embedding.results import SlideResult
from features.embedding.shared_encoder import SharedEncoderWorker, reading_processes
from features.embedding.sources import record_crash, slide_sources
from features.embedding.worker import EmbeddingWorker
from features.encoders.base import ConcatResult, Encoder
from features.errors import EncoderError, MilError, OutputError
from features.parallel.local import LocalExecutor
from features.slides.synthetic import make_cohort, render_slide, write_slide
from features.tiling.grid import TileSettings
from features.utils.stage_times import StageTimes
from tests.disks import few_handles
from tests.features.parallel.toys import exit_at_once

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
    # A busy machine may take half a minute to start the processes, which is told as well.
    assert ["SIGKILL" in text for text in warnings if "still waiting" not in text] == [True]


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


@pytest.fixture(scope="module")
def encoder(world: Path) -> Encoder:
    return config_for(world).load_encoder()


def shared(
    bags: Path, encoder: Encoder, config: EmbedConfig, *, n_processes: int = 2
) -> closing[SharedEncoderWorker]:
    return closing(SharedEncoderWorker(bags, lambda: encoder, config, n_processes=n_processes))


@pytest.mark.parametrize("n_left", [0, 2, 3])
def test_an_encoder_that_cannot_be_shared_for_want_of_open_files_is_an_error_with_advice(
    world: Path, encoder: Encoder, tmp_path: Path, n_left: int
) -> None:
    RawArray("B", 1)  # imports a module that it needs
    with (
        pytest.raises(
            MilError, match=r"reading process.* cannot be (shared|started).*expected room"
        ) as caught,
        few_handles(n_left=n_left),
        shared(tmp_path / "bags", encoder, config_for(world)),
    ):
        pass
    assert "ulimit -n 4096" in caught.value.hint


@pytest.mark.slow
def test_processes_that_share_an_encoder_make_the_same_bags_though_one_is_killed(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    config, bags = config_for(world), tmp_path / "bags"
    progress, times = Killer(bags, n_kills=1), StageTimes()
    with shared(bags, config.load_encoder(bags), config) as worker:
        results = embed_slides(
            [world / "slides"], bags, config, executor=LocalExecutor(worker), progress=progress,
            times=times,
        )  # fmt: skip
    assert {result.slide_id: result.status for result in results} == EXPECTED
    same_bytes(bags, whole)
    assert len(progress.warnings) == 1
    assert "SIGKILL" in progress.warnings[0]
    assert all(times.as_dict()[stage] > 0 for stage in ("mask", "decode", "device", "write"))


@pytest.mark.parametrize("error", [EncoderError("resnet", actual="no file"), KeyboardInterrupt()])
def test_processes_start_before_their_encoder_is_loaded_and_end_if_it_cannot_be(
    world: Path, tmp_path: Path, error: BaseException
) -> None:
    readers: list[psutil.Process] = []

    def load_encoder() -> Encoder:
        until = time.monotonic() + 120.0
        while len(readers) < 2 and time.monotonic() < until:  # They have not begun at once.
            time.sleep(0.05)
            readers[:] = [
                child
                for child in psutil.Process().children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
        raise error

    with pytest.raises(type(error)):
        SharedEncoderWorker(tmp_path, load_encoder, config_for(world), n_processes=2)
    assert len(readers) >= 2
    assert not any(reader.is_running() for reader in readers)


def test_slides_that_have_a_bag_count_neither_for_processes_nor_as_tiles(
    world: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[int | None, int | None]] = []

    def count(*_: object, n_sources: int | None, n_tiles_expected: int | None, **__: object) -> int:
        counted.append((n_sources, n_tiles_expected))
        return 1

    monkeypatch.setattr("features.embedding.distributed.reading_processes", count)
    (tmp_path / "s0.h5").touch()
    config = replace(config_for(world), encoder=encoder)
    for some in (config, replace(config, overwrite=True)):
        with open_executor(
            some, tmp_path, bag_ids=["s0", "s1", "s2"], n_tiles_expected=600
        ):  # fmt: skip
            pass
    with open_executor(config, tmp_path, bag_ids=["s0"], n_tiles_expected=200):
        pass
    with open_executor(config, tmp_path):
        pass
    assert counted == [(2, 400), (3, 600), (0, 1), (None, None)]


def test_reading_processes_that_cannot_start_are_told_at_once_and_end_the_run(
    world: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "features.embedding.shared_encoder._ReadingWorkerFactory", lambda **_: exit_at_once
    )
    progress = Killer(tmp_path, n_kills=0)
    with (
        pytest.raises(MilError, match=r"reading process .* 3 times while it started") as caught,
        shared(tmp_path, encoder, config_for(world)) as worker,
    ):
        embed_slides(
            [world / "slides"], tmp_path, config_for(world), executor=LocalExecutor(worker),
            progress=progress,
        )  # fmt: skip
    assert "give fewer --workers" in caught.value.hint
    again = "ended with code 3 while it started; it is started again"
    for number in (1, 2):
        assert f"worker reading process {number} {again}" in progress.warnings


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("ended by SIGSEGV", "Copy or export it again, or leave it out."),
        ("ended by SIGKILL", "Memory may be short: give a smaller --workers or --batch."),
        (
            "ended by SIGBUS",
            "Memory or a disk may be full: free some space, or copy the file again.",
        ),
        ("ended by SIGABRT", "Embed it alone to see the reason, or leave it out."),
        ("ended with code 1", "Embed it alone to see the reason, or leave it out."),
        ("stopped (no room)", "Embed it alone to see the reason, or leave it out."),
    ],
)
def test_a_slide_that_ends_every_process_is_failed_with_what_to_do(
    world: Path, how: str, hint: str
) -> None:
    path = world / "slides" / "s0.tif"
    (source,) = slide_sources([path], config_for(world), given_mpp={}, scene=None)
    result = record_crash(source, f"every worker that ran it {how}")
    assert (result.status, result.slide_id) == ("failed", "s0")
    assert result.message == (
        f"{path}: every worker that ran it {how}; expected a worker that stays alive. {hint}"
    )


class OneThread(ThreadPoolExecutor):
    def __init__(self, n_threads: int) -> None:
        super().__init__(1)


class RemoteDevice:
    """Encoder whose device is none of the cores; its batches fail from the given one on."""

    def __init__(self, encoder: Encoder, *, fails_from: int | None = None) -> None:
        self._encoder, self._fails_from = encoder, fails_from
        self.device = torch.device("meta")
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed_async(self, tiles: np.ndarray) -> ConcatResult:
        self.sizes.append(len(tiles))
        if self._fails_from is not None and len(self.sizes) >= self._fails_from:
            raise EncoderError("the GPU", actual="out of memory", expected="less")
        return self._encoder.embed_async(tiles)


def test_only_many_tiles_before_a_device_of_their_own_are_read_by_processes(
    world: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.embedding.shared_encoder.available_memory", lambda: 99 << 30)
    config = replace(config_for(world), n_workers=3)
    remote: Any = RemoteDevice(encoder)
    assert reading_processes("cuda", config, n_tiles_expected=None) == 3
    assert reading_processes("cuda", config, n_tiles_expected=10_000) == 3
    assert reading_processes("cuda", config, n_tiles_expected=100) == 1
    assert reading_processes("cpu", config, n_tiles_expected=None) == 1
    assert reading_processes("cuda", replace(config, n_workers=1), n_tiles_expected=None) == 1
    assert 1 < reading_processes("cuda", replace(config, n_workers=99), n_tiles_expected=None) < 99
    for n_sources, n_workers, n_processes in ((1, 1, 1), (2, 1, 2), (9, 1, 3), (3, 2, 2)):
        assert n_processes == reading_processes(
            "cuda", config, n_tiles_expected=None, n_sources=n_sources, n_workers=n_workers
        )
    large = replace(config, batch_tiles=16_384)
    assert reading_processes("cuda", large, n_tiles_expected=None) == 2
    memory = "features.embedding.shared_encoder.available_{}"
    monkeypatch.setattr(memory.format("memory"), lambda: 5 << 29)
    assert reading_processes("cuda", config, n_tiles_expected=None) == 2
    assert reading_processes("cuda", config, n_tiles_expected=None, n_workers=2) == 1
    monkeypatch.setattr(memory.format("memory"), lambda: 99 << 30)
    monkeypatch.setattr(memory.format("shared_memory"), lambda: 2 * 2 * 8 * 64 * 64 * 3)
    assert reading_processes("cuda", config, n_tiles_expected=None) == 2
    assert reading_processes("cuda", config, n_tiles_expected=None, n_workers=2) == 1
    few = EmbeddingWorkerFactory(
        bags_dir=tmp_path, config=replace(config, encoder=remote), n_tiles_expected=100
    )
    assert isinstance(few(), EmbeddingWorker)


@pytest.mark.slow
def test_a_batch_that_the_shared_encoder_fails_at_fails_its_slides_with_its_message(
    world: Path, encoder: Encoder, tmp_path: Path
) -> None:
    remote: Any = RemoteDevice(encoder, fails_from=3)
    config = replace(config_for(world), encoder=remote, n_workers=2)
    results = embed_slides([world / "slides"], tmp_path / "bags", config)
    by_status = {result.slide_id: result for result in results if result.status == "failed"}
    assert set(by_status) > {"broken"}
    assert all(
        result.message == "the GPU: out of memory; expected less"
        for slide_id, result in by_status.items()
        if slide_id != "broken"
    )
    assert remote.sizes[:2] == [8, 8]


def test_an_estimate_counts_the_processes_that_read(
    world: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(ticks) / 2)  # half a second per tile
    monkeypatch.setattr("features.embedding.shared_encoder._FEW_TILES", 1)
    monkeypatch.setattr("features.embedding.shared_encoder.available_memory", lambda: 99 << 30)
    sources = slide_sources(
        sorted((world / "slides").glob("s*.tif")), config_for(world), given_mpp={}, scene=None
    )
    rates = {}
    for n_processes in (1, 2, 3):
        config = replace(
            config_for(world), encoder=cast("Encoder", RemoteDevice(encoder)), n_workers=n_processes
        )
        with monkeypatch.context() as patched:
            patched.setattr("features.embedding.estimate.ThreadPoolExecutor", OneThread)
            estimate = estimate_embedding(sources, config, started_s=time.monotonic())
        rates[n_processes] = estimate.decode_tiles_per_s
    assert (rates[2], rates[3]) == (4.0, 6.0)
    assert rates[1] > 6.0  # measured as it is, without the clock that ticks


@pytest.mark.slow
def test_processes_that_share_an_encoder_end_at_once_when_interrupted(
    world: Path, encoder: Encoder, tmp_path: Path
) -> None:
    class Interrupted(NoProgress):
        def slide_started(self, slide_id: str, n_tiles: int) -> None:
            raise KeyboardInterrupt

    config, bags = config_for(world), tmp_path / "bags"
    with shared(bags, encoder, config) as worker:
        readers = psutil.Process().children(recursive=True)
        assert len(readers) >= 2
        with pytest.raises(KeyboardInterrupt):
            embed_slides(
                [world / "slides"], bags, config, executor=LocalExecutor(worker),
                progress=Interrupted(),
            )  # fmt: skip
        running = [reader.cmdline() for reader in readers if reader.is_running()]
        assert not any("spawn_main" in " ".join(command) for command in running)
    assert not list(bags.glob("*.h5"))


_SCRIPT = """
from pathlib import Path
import sys
sys.path[:0] = {paths}
from tests.features.embedding.test_distributed import *

world, bags = Path({world!r}), Path({bags!r})
config = config_for(world)
remote = RemoteDevice(config.load_encoder())
config = replace(config, encoder=remote, n_workers=2)
print("began")
results = embed_slides([world / "slides"], bags, config)
print(sorted((result.slide_id, result.status) for result in results) == sorted(EXPECTED.items()))
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_for_processes_that_share_an_encoder(
    world: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(paths=sys.path, world=str(world), bags=str(tmp_path / "bags")))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("began\nTrue\n", "", 0)


def test_only_other_processes_have_the_name_of_a_loaded_encoder_in_its_place(
    world: Path, encoder: Encoder
) -> None:
    config = replace(config_for(world), encoder=encoder)
    (source,) = slide_sources([world / "slides" / "s0.tif"], config, given_mpp={}, scene=None)
    there = pickle.loads(pickle.dumps(source.without_encoder()))  # noqa: S301
    assert there.config == replace(config, encoder=encoder.name)
    assert source.config.encoder is copy.copy(config).encoder is encoder


_HOLD = """
import sys, time
from pathlib import Path
from features.parallel.locks import shared_locks
with shared_locks(Path(sys.argv[1])) as locks:
    print("held" if locks.acquire("s0") else "", flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_a_stop_is_obeyed_while_another_command_embeds_a_slide(
    world: Path, encoder: Encoder, tmp_path: Path
) -> None:
    config, bags, stop = config_for(world), tmp_path / "bags", Event()
    ended: list[str] = []

    class Stopping(NoProgress):
        def slide_ended(self, result: SlideResult) -> None:
            ended.append(result.slide_id)
            if len(ended) == len(EXPECTED) - 1:
                stop.set()

    (bags / ".claims").mkdir(parents=True)
    with (
        shared(bags, encoder, config) as worker,
        subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(bags / ".claims")], stdout=subprocess.PIPE, text=True
        ) as hold,
    ):
        assert hold.stdout is not None
        assert hold.stdout.readline() == "held\n"
        results = embed_slides(
            [world / "slides"], bags, config, executor=LocalExecutor(worker),
            progress=Stopping(), stop=stop,
        )  # fmt: skip
        hold.kill()
    assert "s0" not in {result.slide_id for result in results}
    assert len(results) == len(EXPECTED) - 1
