"""Real runs of ``mil embed`` killed, stopped and run side by side."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import timm
import torch
from safetensors.torch import save_file

from features.bags.h5 import read_bag
from features.slides.synthetic import make_cohort, render_slide, write_slide

N_SLIDES = 10
N_KILLS = 20
started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_left_behind(sigint_reaches_children: None) -> Iterator[None]:
    """Kill what a test that failed has left, with all its workers."""
    yield
    for process in started:
        with suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    started.clear()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, weights of a small backbone, and the bags of an undisturbed run."""
    folder = tmp_path_factory.mktemp("kill")
    (folder / "slides").mkdir()
    for number, plan in enumerate(make_cohort(n_patients=N_SLIDES, seed=4, signal=1.0)[:N_SLIDES]):
        pixels = render_slide(plan)
        write_slide(folder / "slides" / f"s{number}.tif", pixels[500:2300, 400:2600])
    write_slide(folder / "slides" / "blank.tif", np.full((700, 700, 3), 240, np.uint8))
    torch.manual_seed(0)
    weights = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file(weights, folder / "tiny.safetensors")
    done = start(folder, folder / "whole")
    assert done.wait() == 0
    return folder


def start(
    folder: Path,
    bags: Path,
    *more: str,
    stderr: int = subprocess.DEVNULL,
    ignores_sigint: bool = False,
) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "cli", "embed", folder / "slides", "--bags", bags,
        "--backbone", "test_vit", "--weights", folder / "tiny.safetensors", "--tile-px", "64",
        "--mpp", "1.0", "--batch", "8", "--workers", "2", "--execution", "eager", *more,
    ]  # fmt: skip
    if ignores_sigint:  # as shells start commands in the background
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=stderr, text=True,
        start_new_session=True,
    )  # fmt: skip
    started.append(process)
    return process


def stamps(bags: Path) -> dict[str, tuple[int, int]]:
    """Which file each bag is, and when it was written."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in whole_bags(bags)}


def whole_bags(bags: Path) -> list[Path]:
    """Return finished bags; the name of a file being written begins with a dot."""
    return sorted(path for path in bags.glob("*.h5") if not path.name.startswith("."))


def workers_at_work(bags: Path, parent: subprocess.Popen[str]) -> set[int]:
    """Processes that have slides in work for another one."""
    pids = set()
    for path in (bags / ".claims").glob("*.claim"):
        with suppress(OSError, ValueError):  # given back, or not written yet
            pids.add(int(json.loads(path.read_text())["pid"]))
    return pids - {parent.pid}


def start_two(
    folder: Path, bags: Path, *more: str, stderr: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen[str], int]:
    """A run with two processes, and one of them, once it has slides in work."""
    bags.mkdir(exist_ok=True)
    (bags / "execution.txt").write_text("eager float32 batch 8\n")  # so that none goes first
    parent = start(folder, bags, "--device", "cpu,cpu", *more, stderr=stderr)
    while not (pids := workers_at_work(bags, parent)):
        assert parent.poll() is None, "it ended before its workers had begun"
        time.sleep(0.01)
    return parent, min(pids)


def same_bytes(bags: Path, whole: Path) -> None:
    names = {path.name for path in whole_bags(whole)}
    assert {path.name for path in whole_bags(bags)} == names
    for name in names:
        assert (bags / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    world: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    bags = tmp_path / "bags"
    began = time.monotonic()
    assert start(world, tmp_path / "timed").wait() == 0
    whole_s = time.monotonic() - began
    finished: dict[str, tuple[int, int]] = {}
    n_killed = 0
    while n_killed < N_KILLS:
        process = start(world, bags)
        time.sleep(rng.uniform(0.2, 1.0) * whole_s)
        if process.poll() is not None:  # it was done before: begin anew
            whole_s *= 0.9  # the machine may have been busier when the time was taken
            same_bytes(bags, world / "whole")
            finished = {}
            shutil.rmtree(bags)
            continue
        process.kill()
        process.wait()
        n_killed += 1
        for path in whole_bags(bags):
            read_bag(path)
        now = stamps(bags) if bags.exists() else {}
        assert finished.items() <= now.items()  # nothing that was whole is embedded again
        finished = now
    assert start(world, bags).wait() == 0
    assert finished.items() <= stamps(bags).items()
    same_bytes(bags, world / "whole")
    assert not list(bags.glob(".*.part.h5"))
    assert not (bags / ".claims").exists()


@pytest.mark.slow
def test_two_processes_share_a_folder_and_one_takes_over_from_the_other(
    world: Path, tmp_path: Path
) -> None:
    bags = tmp_path / "bags"
    first, second = start(world, bags), start(world, bags)
    while not whole_bags(bags) and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert second.wait() == 0
    same_bytes(bags, world / "whole")
    table = pd.read_csv(bags / "embed.csv", dtype=str)
    assert len(table) == N_SLIDES + 1
    assert table["slide_id"].is_unique


@pytest.mark.slow
def test_two_undisturbed_processes_do_each_slide_once(world: Path, tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    both = [start(world, bags), start(world, bags)]
    seen: dict[str, tuple[int, int]] = {}
    while any(process.poll() is None for process in both):
        now = stamps(bags) if bags.exists() else {}
        assert seen.items() <= now.items()
        seen = now
        time.sleep(0.05)
    assert [process.returncode for process in both] == [0, 0]
    same_bytes(bags, world / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ignores_sigint"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)],
)
def test_ctrl_c_and_sigterm_finish_what_is_in_work_and_say_so(
    world: Path, tmp_path: Path, number: int, ignores_sigint: bool
) -> None:
    bags = tmp_path / "bags"
    process = start(world, bags, stderr=subprocess.PIPE, ignores_sigint=ignores_sigint)
    while not whole_bags(bags) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finishing the slides in progress" in stderr
    names = {path.name for path in whole_bags(bags)}
    assert 0 < len(names) <= N_SLIDES + 1
    assert not list(bags.glob(".*"))
    table = pd.read_csv(bags / "embed.csv", dtype=str)
    assert {f"{name}.h5" for name in table["slide_id"]} == names
    assert start(world, bags).wait() == 0
    same_bytes(bags, world / "whole")


@pytest.mark.slow
def test_processes_of_one_command_share_slides_and_take_over_from_one_that_is_killed(
    world: Path, tmp_path: Path
) -> None:
    bags = tmp_path / "bags"
    process, worker = start_two(world, bags, stderr=subprocess.PIPE)
    os.kill(worker, signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "ended by SIGKILL; jobs queued again:" in stderr
    same_bytes(bags, world / "whole")
    table = pd.read_csv(bags / "embed.csv", dtype=str)
    assert table["slide_id"].is_unique
    assert set(table["status"]) == {"done", "empty"}
    assert not list(bags.glob(".*"))


@pytest.mark.slow
def test_processes_end_with_the_command_that_started_them(world: Path, tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    process, _ = start_two(world, bags)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    assert start(world, bags, "--device", "cpu,cpu").wait() == 0
    same_bytes(bags, world / "whole")
    assert not list(bags.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_processes_finish_their_slides_and_twice_stops_them(
    world: Path, tmp_path: Path, number: int
) -> None:
    bags = tmp_path / "bags"
    process, _ = start_two(world, bags, stderr=subprocess.PIPE)
    os.killpg(process.pid, number)  # as terminals and schedulers do it: to all of them
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "finishing the slides in progress" in stderr
    assert "taken over" not in stderr
    assert 1 <= len(whole_bags(bags)) < N_SLIDES + 1
    again, _ = start_two(world, bags, "--overwrite", stderr=subprocess.PIPE)
    workers = psutil.Process(again.pid).children()
    for _ in range(2):
        os.killpg(again.pid, number)
        time.sleep(0.1)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 130, stderr
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not (bags / ".claims").exists()


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_sigterm_lets_workers_on_ray_finish_their_slides(
    world: Path, tmp_path: Path, to_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    bags = tmp_path / "bags"
    process = start(world, bags, "--engine", "ray", stderr=subprocess.PIPE)
    while not whole_bags(bags) and process.poll() is None:
        time.sleep(0.02)
    if to_all:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "finishing the slides in progress" in stderr
    assert "jobs queued again" not in stderr
    names = {path.name for path in whole_bags(bags)}
    table = pd.read_csv(bags / "embed.csv", dtype=str)
    assert {f"{name}.h5" for name in table["slide_id"]} == names
    assert set(table["status"]) <= {"done", "empty"}
    assert not list(bags.glob(".*"))


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_and_what_is_whole_stays(world: Path, tmp_path: Path) -> None:
    bags = tmp_path / "bags"
    process = start(world, bags, stderr=subprocess.PIPE)
    while not whole_bags(bags) and process.poll() is None:
        time.sleep(0.02)
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    assert any("finishing the slides in progress" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    for path in whole_bags(bags):
        read_bag(path)
    assert start(world, bags).wait() == 0
    same_bytes(bags, world / "whole")
    assert not list(bags.glob(".*.part.h5"))
