"""Runs on disks that refuse; :mod:`tests.mil.test_model` has what a run says."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from features.bags import find_bags
from features.errors import OutputError
from mil.cohort import read_cohort
from mil.data import load_patient_bags
from mil.fitting import FitSummary, fit_run
from mil.training import TrainSettings
from tests.disks import full_after, small_disk
from tests.fakes import write_cohort

FAST = TrainSettings(n_members=1, n_components=4, fixed_steps=5)
N_FOLDS = 2


def fit(world: Path, run_dir: Path, *, seed: int = 0) -> FitSummary:
    cohort = read_cohort(world / "train.csv", labelled=True)
    return fit_run(
        cohort, load_patient_bags(cohort, find_bags(world / "bags")), run_dir, n_folds=N_FOLDS,
        n_repeats=1, seed=seed, settings=FAST, on_head=lambda done, total: None,
    )  # fmt: skip


def contents(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort, and what two undisturbed runs come to, each named ``run``."""
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


def test_a_run_that_does_not_fit_on_the_disk_is_told_and_leaves_nothing_half(
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
