"""Runs on full disks and devices; :mod:`tests.mil.inference.test_bundle` checks bundles."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from features.bags.h5 import find_bags
from features.errors import OutputError
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.errors import RunError
from mil.training import ensemble
from mil.training.checkpoints import run_lock
from mil.training.config import TrainConfig
from mil.training_run import TrainingSummary, train_run
from tests.disks import full_after, small_disk
from tests.fakes import write_cohort

FAST = TrainConfig(n_members=1, n_components=4, fixed_steps=5)
N_FOLDS = 2


def fit(world: Path, run_dir: Path, *, seed: int = 0) -> TrainingSummary:
    cohort = read_cohort(world / "train.csv", labelled=True)
    return train_run(
        cohort, load_patient_bags(cohort, find_bags(world / "bags")), run_dir, n_folds=N_FOLDS,
        n_repeats=1, seed=seed, config=FAST, on_head=lambda done, total: None,
    )  # fmt: skip


def contents(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a cohort and the results of two undisturbed runs, each named ``run``."""
    folder = tmp_path_factory.mktemp("world")
    write_cohort(folder, n_patients=18, shift=0.7)
    for seed in (0, 1):
        fit(folder, folder / str(seed) / "run", seed=seed)
    return folder


@pytest.mark.parametrize("n_files", [1, N_FOLDS + 4])  # while folds are kept, and the bundle
def test_a_disk_that_fills_up_leaves_the_old_run_whole_and_the_new_one_can_go_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_files: int
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(world / "0" / "run", run_dir)
    with monkeypatch.context() as patched:
        full_after(patched, n_files, number=errno.ENOSPC, text="No space left on device")
        with pytest.raises(OutputError, match=r"run.*cannot be written \(No space left on device"):
            fit(world, run_dir, seed=1)
    assert contents(run_dir) == contents(world / "0" / "run")
    assert {path.name for path in tmp_path.iterdir()} <= {"run", ".run.part"}
    fit(world, run_dir, seed=1)
    assert contents(run_dir) == contents(world / "1" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_does_not_fit_on_the_disk_is_an_error_and_leaves_no_partial_run(
    world: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", n_bytes=4 << 20) as disk:
        (disk / "ballast").write_bytes(bytes((4 << 20) - (100 << 10)))
        with pytest.raises(OutputError, match=r"run.*No space left on device.*Free some space"):
            fit(world, disk / "run")
        assert not (disk / "run").exists()
        (disk / "ballast").unlink()
        fit(world, disk / "run")
        assert contents(disk / "run") == contents(world / "0" / "run")


def test_a_path_that_can_be_no_folder_is_told_before_the_training(
    world: Path, tmp_path: Path
) -> None:
    cohort = read_cohort(world / "train.csv", labelled=True)
    (tmp_path / "run").write_text("not a run")
    with pytest.raises(OutputError, match=r"run: cannot be used as a folder \(a file\)"):
        train_run(
            cohort, load_patient_bags(cohort, find_bags(world / "bags")), tmp_path / "run",
            n_folds=N_FOLDS, n_repeats=1, seed=0, config=FAST,
            on_head=lambda done, total: pytest.fail("trained"),
        )  # fmt: skip
    assert (tmp_path / "run").read_text() == "not a run"


def test_a_folder_of_runs_that_vanishes_costs_no_training(world: Path, tmp_path: Path) -> None:
    cohort = read_cohort(world / "train.csv", labelled=True)
    folder, aside = tmp_path / "runs", tmp_path / "unplugged"

    def vanish(done: int, _: int) -> None:
        if done == N_FOLDS + 1:  # the folds are finished and kept
            folder.rename(aside)

    train_run(
        cohort, load_patient_bags(cohort, find_bags(world / "bags")), folder / "run",
        n_folds=N_FOLDS, n_repeats=1, seed=0, config=FAST, on_head=vanish,
    )  # fmt: skip
    assert aside.is_dir()
    assert contents(folder / "run") == contents(world / "0" / "run")


def short_of_memory(monkeypatch: pytest.MonkeyPatch, is_short: Callable[[int, int], bool]) -> None:
    """Run out of memory for some numbers of heads or of calls."""
    real, calls = ensemble.train_heads, itertools.count(1)

    def train(heads: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        if is_short(len(heads), next(calls)):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(heads, *arguments, **options)

    monkeypatch.setattr(ensemble, "train_heads", train)


def test_a_device_out_of_memory_trains_fewer_ensembles_together(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, lambda n_heads, _: n_heads > FAST.n_members)
    fit(world, tmp_path / "run")
    result, expected = (
        pd.read_csv(path / "out_of_fold.csv", dtype={"patient_id": str})
        for path in (tmp_path / "run", world / "0" / "run")
    )
    pd.testing.assert_frame_equal(result, expected, atol=1e-4)


def test_a_device_without_memory_for_one_ensemble_is_an_error_and_finished_folds_are_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        short_of_memory(patched, lambda _, n_calls: n_calls > 1)  # the ensemble to deploy
        with pytest.raises(RunError, match=r"device cpu: out of memory.*--device cpu"):
            fit(world, run_dir)
    assert len(list((tmp_path / ".run.part").iterdir())) == N_FOLDS
    fit(world, run_dir)
    assert contents(run_dir) == contents(world / "0" / "run")


def test_a_second_training_of_one_run_is_refused_while_the_first_is_at_work(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "runs" / "first"
    with run_lock(run_dir):
        with run_lock(tmp_path / "runs" / "other"):
            assert not run_dir.exists()
        with (
            pytest.raises(RunError, match=r"another training is writing it.*Wait.*--run"),
            run_lock(run_dir),
        ):
            pytest.fail("two at once")
    with run_lock(run_dir):
        assert [path.name for path in run_dir.parent.iterdir()] == [".first.claims"]
    assert not list(run_dir.parent.iterdir())
