from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.bags.h5 import find_bags
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.splits import Fold, patient_folds
from mil.training import checkpoints, cross_validation, fold_jobs
from mil.training.checkpoints import Checkpoints, run_lock
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training.ensemble import train_ensemble, train_ensembles
from mil.training.fold_jobs import FoldJob, FoldResult
from mil.training.trainer import EpochRecord
from mil.training_run import train_run
from tests.fakes import write_cohort
from tests.mil.training.test_ensemble import noise_cohort, states

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


class KilledError(Exception):
    """Stands for a kill."""


def kill_at(head: int):
    def on_head(done: int, total: int) -> None:
        if done == head:
            raise KilledError

    return on_head


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the seeds of the ensembles that cross-validations trained."""
    seeds: list[tuple[int, ...]] = []

    def watch(*args: Any, **kwargs: Any) -> object:
        seeds.extend(tuple(seed) for seed in kwargs["seeds"])
        return train_ensembles(*args, **kwargs)

    monkeypatch.setattr(fold_jobs, "train_ensembles", watch)
    return seeds


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train one fold after the other, as for large cohorts."""
    monkeypatch.setattr(cross_validation, "max_parallel_ensembles", lambda bags, settings: 1)


def cohort_of(folder: Path) -> tuple[Cohort, PatientBags]:
    cohort = read_cohort(write_cohort(folder, n_patients=24, shift=0.7), labelled=True)
    return cohort, load_patient_bags(cohort, find_bags(folder / "bags"))


def fit(
    cohort: Cohort, bags: PatientBags, run: Path, *, settings: TrainConfig = FAST,
    nested: bool = False, kill: int = 0,
) -> None:  # fmt: skip
    train_run(
        cohort, bags, run, n_folds=3, n_repeats=1, seed=0, config=settings, nested=nested,
        on_head=kill_at(kill),
    )  # fmt: skip


@pytest.mark.ci
@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("nested", [False, True])
def test_a_killed_training_goes_on_at_the_fold_it_was_in_and_ends_with_the_same_bytes(
    tmp_path: Path, trained: list[tuple[int, ...]], nested: bool
) -> None:
    cohort, bags = cohort_of(tmp_path)
    fit(cohort, bags, tmp_path / "whole" / "run", nested=nested)
    n_whole = len(trained)
    assert n_whole == (12 if nested else 6)  # three folds, and nine inner folds or three pairs
    trained.clear()
    # Two heads per fold: killed in the middle of the third fold, or of the first inner folds.
    killed_at = 9 if nested else 5
    with pytest.raises(KilledError):
        fit(cohort, bags, tmp_path / "runs" / "run", nested=nested, kill=killed_at)
    assert not (tmp_path / "runs" / "run").exists()
    assert len(list((tmp_path / "runs" / ".run.part").iterdir())) == killed_at // 2
    trained.clear()
    fit(cohort, bags, tmp_path / "runs" / "run", nested=nested)
    assert len(trained) == n_whole - killed_at // 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    for path in (tmp_path / "whole" / "run").iterdir():
        assert (tmp_path / "runs" / "run" / path.name).read_bytes() == path.read_bytes(), path


@pytest.mark.ci
def test_folds_that_are_trained_together_are_read_together(
    tmp_path: Path, trained: list[tuple[int, ...]]
) -> None:
    cohort, bags = cohort_of(tmp_path)
    fit(cohort, bags, tmp_path / "whole" / "run", nested=True)
    trained.clear()
    # Six heads of the three folds, then those of the inner folds of each: killed in the second.
    with pytest.raises(KilledError):
        fit(cohort, bags, tmp_path / "runs" / "run", nested=True, kill=15)
    assert len(list((tmp_path / "runs" / ".run.part").iterdir())) == 6
    trained.clear()
    fit(cohort, bags, tmp_path / "runs" / "run", nested=True)
    assert len(trained) == 6
    for path in (tmp_path / "whole" / "run").iterdir():
        assert (tmp_path / "runs" / "run" / path.name).read_bytes() == path.read_bytes(), path


def test_a_training_killed_at_its_last_head_trains_no_fold_again(
    tmp_path: Path, trained: list[tuple[int, ...]]
) -> None:
    cohort, bags = cohort_of(tmp_path)
    with pytest.raises(KilledError):
        fit(cohort, bags, tmp_path / "run", kill=11)  # two heads per fold, one per pair
    trained.clear()
    fit(cohort, bags, tmp_path / "run")
    assert trained == []
    assert not (tmp_path / ".run.part").exists()


def test_other_settings_start_anew(tmp_path: Path, trained: list[tuple[int, ...]]) -> None:
    cohort, bags = cohort_of(tmp_path)
    with pytest.raises(KilledError):
        fit(cohort, bags, tmp_path / "run", kill=5)
    trained.clear()
    fit(cohort, bags, tmp_path / "run", settings=replace(FAST, learning_rate=2e-3))
    assert len(trained) == 6
    assert not (tmp_path / ".run.part").exists()


def test_a_key_depends_on_everything_that_determines_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, cohort = noise_cohort(12, 0)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    fold, other_fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[:2]

    def name(
        of: PatientBags = bags, fold=fold, labels=labels, settings=FAST, seed=(0,), n_classes=2,
        together: tuple[Fold, ...] = (), outer_fold: Fold | None = None,
    ) -> str:  # fmt: skip
        job = FoldJob(
            folds=(fold, *together), labels=labels, n_classes=n_classes, config=settings,
            seeds=[seed] * (1 + len(together)), outer_fold=outer_fold,
        )  # fmt: skip
        return Checkpoints(tmp_path, of).keys(job)[0]

    learner = fold.train_ids[0]
    changed = {**bags.features, learner: bags.features[learner] + np.float16(1)}
    shorter = {**bags.features, fold.test_ids[0]: bags.features[fold.test_ids[0]][:-1]}
    views = {patient_id: tiles[:, None] for patient_id, tiles in bags.features.items()}
    names = [
        name(),
        name(of=replace(bags, features=changed)),
        name(of=replace(bags, features=shorter)),
        name(of=replace(bags, views=views)),
        name(labels={**labels, learner: 1 - labels[learner]}),
        name(fold=other_fold),
        name(settings=replace(FAST, mixup=0.1)),
        name(seed=(1,)),
        name(n_classes=3),
        name(together=(other_fold,)),
        name(outer_fold=other_fold),
    ]
    assert name() == names[0]
    # A patient's own label has no effect on its prediction.
    tested = fold.test_ids[0]
    assert name(labels={**labels, tested: 1 - labels[tested]}) == names[0]
    monkeypatch.setattr(checkpoints, "_code", lambda: "another program")
    assert len({*names, name()}) == len(names) + 1


def test_numbers_come_back_to_the_last_bit_and_a_damaged_file_is_no_result(tmp_path: Path) -> None:
    bags, cohort = noise_cohort(9, 0)
    kept = Checkpoints(tmp_path / "part", bags)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    heads = train_ensemble(bags, labels, n_classes=2, config=FAST, seed=(0,)).heads
    logits = {"p": np.array([1 / 3, -np.pi * 1e-9])}
    record = EpochRecord(member=0, epoch=1, train_loss=0.1 + 0.2, val_loss=float("nan"))
    assert kept.read("a", head="gated", n_classes=2) is None
    averaged = {"p": logits["p"] / 7}
    kept.write("a", FoldResult(logits=logits, heads=heads, history=(record,), averaged=averaged))
    result = kept.read("a", head="gated", n_classes=2)
    assert result is not None
    assert states(result.heads) == states(heads)
    assert result.logits["p"].tobytes() == logits["p"].tobytes()
    assert result.averaged["p"].tobytes() == averaged["p"].tobytes()
    assert result.history[0].train_loss == record.train_loss
    assert np.isnan(result.history[0].val_loss)
    file = tmp_path / "part" / "a.safetensors"
    whole = file.read_bytes()
    for damage in (b"", b"{}", whole[:-1], whole.replace(b"patients", b"patience")):
        file.write_bytes(damage)
        assert kept.read("a", head="gated", n_classes=2) is None
    file.write_bytes(whole)
    assert kept.read("a", head="mean", n_classes=2) is None
    kept.discard()
    assert not (tmp_path / "part").exists()


def test_heads_read_from_checkpoints_are_counted(tmp_path: Path) -> None:
    bags, cohort = noise_cohort(18, 1)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    kept = Checkpoints(tmp_path / "part", bags)
    counts, results = [], []
    for _ in range(2):
        heads: list[None] = []
        results.append(
            cross_validate(
                bags,
                cohort,
                folds,
                config=FAST,
                seed=0,
                checkpoints=kept,
                on_head=lambda heads=heads: heads.append(None),  # type: ignore[misc]
            )
        )
        counts.append(len(heads))
    assert counts == [6, 6]
    assert results[0].logits.tobytes() == results[1].logits.tobytes()


def test_what_a_killed_training_left_half_written_is_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    names = (".run.5.part", ".run.part", ".run.6.part", ".other.5.part", "run.5.part")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.safetensors").touch()
        if name != ".run.6.part":  # checkpoints of a run named run.6
            (tmp_path / name / "folds.csv").touch()
    with run_lock(tmp_path / "run"):
        kept = {path.name for path in tmp_path.iterdir()}
    assert set(names) - kept == {".run.5.part"}
