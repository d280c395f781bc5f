from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from features.bags.h5 import find_bags
from features.parallel.base import Executor
from mil.base_learners.pooling import mean_and_extremes
from mil.base_learners.stack import predict_learners
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.covariates import with_covariates
from mil.data.splits import make_folds
from mil.errors import RunError
from mil.training import fold_jobs
from mil.training.checkpoints import Checkpoints
from mil.training.config import TrainConfig
from mil.training.cross_validation import FoldRunner
from mil.training.ensemble import train_ensemble
from mil.training.fold_jobs import (
    ExecutorFactory,
    FoldJob,
    local_fold_executor,
    ray_fold_executor,
)
from mil.training_run import train_run
from tests.fakes import write_cohort

SETTINGS = TrainConfig(n_members=2, n_components=8, fixed_steps=4, max_tiles=8)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("folds"), n_patients=24, shift=1.0)


def fit(
    table: Path,
    run: Path,
    executor: ExecutorFactory,
    *,
    n_heads: list[int],
    nested: bool = False,
    covariates: Sequence[str] = (),
) -> None:
    cohort = with_covariates(read_cohort(table, labelled=True), covariates)
    train_run(
        cohort, load_patient_bags(cohort, find_bags(table.parent / "bags")), run, n_folds=3,
        n_repeats=2, seed=1, config=SETTINGS, nested=nested, executor=executor,
        on_head=lambda done, total: n_heads.append(done),
    )  # fmt: skip


def files_of(run: Path) -> dict[str, bytes]:
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_finished_jobs_are_read_and_the_others_run(table: Path, tmp_path: Path) -> None:
    cohort = read_cohort(table, labelled=True)
    bags = load_patient_bags(cohort, find_bags(table.parent / "bags"))
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    folds = make_folds(cohort, by="patient", n_folds=3, n_repeats=1, seed=0)
    jobs = [
        FoldJob(folds=(f,), labels=labels, n_classes=2, config=SETTINGS, seeds=((0, f.index),))
        for f in folds
    ]
    kept = Checkpoints(tmp_path / "kept", bags)
    heads: list[str] = []
    with local_fold_executor(bags) as executor:
        first = FoldRunner(executor, checkpoints=kept, on_head=lambda: heads.append("new")).run(
            jobs[:2]
        )
        assert len(heads) == 2 * SETTINGS.n_members
        second = FoldRunner(
            _Only(executor, 2), checkpoints=kept, on_head=lambda: heads.append("known")
        ).run(jobs)
    assert len(heads) == 5 * SETTINGS.n_members
    for (one,), (other,), fold in zip(first, second, folds, strict=False):
        assert set(one.logits) == set(fold.test_ids)
        assert {name: row.tolist() for name, row in one.logits.items()} == {
            name: row.tolist() for name, row in other.logits.items()
        }


class _Only:
    """An executor that accepts one job only."""

    info = None

    def __init__(self, executor: Executor, number: int) -> None:
        self._executor, self._number = executor, number

    def run(self, jobs, listener, *, stop: Event) -> None:  # type: ignore[no-untyped-def]
        assert [number for number, _ in jobs] == [self._number]
        self._executor.run(jobs, listener, stop=stop)


def test_a_fold_that_ends_every_worker_is_an_error_that_names_it(table: Path) -> None:
    class Deadly:
        info = None

        def run(self, jobs, listener, *, stop: Event) -> None:  # type: ignore[no-untyped-def]
            listener.on_failed(jobs[0], "it ran out of memory")

    cohort = read_cohort(table, labelled=True)
    (fold, *_) = make_folds(cohort, by="patient", n_folds=3, n_repeats=1, seed=0)
    job = FoldJob(folds=(fold,), labels={}, n_classes=2, config=SETTINGS, seeds=((0,),))
    with pytest.raises(RunError, match="fold 0 of repeat 0: it ran out of memory"):
        FoldRunner(Deadly(), checkpoints=None, on_head=lambda: None).run([job])


def test_a_device_without_memory_for_all_patients_at_once_leaves_them_to_the_cpu(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object, **__: object) -> None:
        calls.append("device")
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    calls: list[str] = []
    monkeypatch.setattr(fold_jobs, "predict_batch", short)
    cohort = read_cohort(table, labelled=True)
    bags = load_patient_bags(cohort, find_bags(table.parent / "bags"))
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    ensemble = train_ensemble(bags, labels, n_classes=2, config=SETTINGS, seed=(0,))
    on_cpu, on_device = (
        dict(fold_jobs._predict_versions(ensemble, bags, torch.device(name), {}))
        for name in ("cpu", "meta")
    )
    assert calls == ["device"]
    assert list(on_cpu) == list(on_device) == list(cohort.patient_ids)
    assert all(np.array_equal(on_cpu[name], on_device[name]) for name in on_cpu)


@pytest.mark.parametrize("head", ["stack", "gated", "transmil"])
def test_patients_are_predicted_together_as_each_by_itself(
    table: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(fold_jobs, "_TILES_PER_BLOCK", 40)
    monkeypatch.setattr(fold_jobs, "_TILES_PER_BATCH", 20)
    cohort = read_cohort(table, labelled=True)
    bags = load_patient_bags(cohort, find_bags(table.parent / "bags"))
    features = {name: bags.features[name][: 1 + 7 * i % 5] for i, name in enumerate(bags.features)}
    bags = replace(bags, features=features)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    config = replace(SETTINGS, head=head)
    ensemble = train_ensemble(bags, labels, n_classes=2, config=config, seed=(0,))
    pooled = {name: mean_and_extremes(torch.from_numpy(bags.features[name])) for name in ("000",)}
    together = dict(fold_jobs._predict_versions(ensemble, bags, torch.device("cpu"), pooled))
    assert list(together) == list(cohort.patient_ids)
    for name, logits in together.items():
        alone, _ = predict_learners(ensemble.heads, ensemble.base_learners, bags.features[name])
        np.testing.assert_allclose(logits, alone[None], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_folds_on_a_ray_cluster_give_the_same_bytes_though_a_worker_is_killed(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    notes: list[str] = []
    options: dict[str, Any] = {"nested": True, "covariates": ["age"]}
    with_age = pd.read_csv(table, dtype=str)
    with_age["age"] = [60 + int(patient) * 7 % 11 for patient in with_age["patient_id"]]
    with_age.to_csv(table.with_name("with-age.csv"), index=False)
    table = table.with_name("with-age.csv")

    class Counting(list[int]):
        def append(self, done: int) -> None:
            if not self:
                _kill_an_actor()
            super().append(done)

    fit(table, tmp_path / "local" / "run", local_fold_executor, n_heads=[], **options)
    on_ray = partial(ray_fold_executor, address=None, device="cpu", on_warning=notes.append)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        fit(table, tmp_path / "ray" / "run", on_ray, n_heads=Counting(), **options)
    finally:
        ray.shutdown()
    assert files_of(tmp_path / "ray" / "run") == files_of(tmp_path / "local" / "run")
    assert any("died" in note for note in notes)


def _kill_an_actor() -> None:
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::_Actor"):
            process.kill()
            return
    raise AssertionError("no actor runs")
