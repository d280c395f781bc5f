from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.bags.h5 import find_bags
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.splits import Fold, patient_folds
from mil.training import checkpoints, cross_validation, fold_jobs
from mil.training.checkpoints import Checkpoints, FoldResult
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training.ensemble import EnsembleTask, train_ensemble, train_ensembles
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
    """Seeds of the ensembles that cross-validations really trained."""
    seeds: list[tuple[int, ...]] = []

    def watch(tasks: Sequence[EnsembleTask], **kwargs: object) -> object:
        seeds.extend(tuple(task.seed) for task in tasks)
        return train_ensembles(tasks, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(fold_jobs, "train_ensembles", watch)
    return seeds


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folds are trained one after another, as large ones are."""
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
    assert n_whole == (12 if nested else 3)
    trained.clear()
    # Two heads a fold: killed in the middle of the third fold, or of the first inner folds.
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
def test_folds_that_are_trained_together_are_taken_over_together(
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
        fit(cohort, bags, tmp_path / "run", kill=8)
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
    assert len(trained) == 3
    assert not (tmp_path / ".run.part").exists()


def test_a_name_depends_on_all_that_decides_a_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, cohort = noise_cohort(12, 0)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    fold, other_fold = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)[:2]

    def name(
        of: PatientBags = bags, fold=fold, labels=labels, settings=FAST, seed=(0,), n_classes=2,
        beside: tuple[Fold, ...] = (), within: Fold | None = None,
    ) -> str:  # fmt: skip
        return Checkpoints(tmp_path, of).keys(
            (fold, *beside), labels, n_classes=n_classes, config=settings,
            seeds=[seed] * (1 + len(beside)), outer_fold=within,
        )[0]  # fmt: skip

    turned = fold.train_ids[0]
    taught = {**bags.features, turned: bags.features[turned] + np.float16(1)}
    shown = {**bags.features, fold.test_ids[0]: bags.features[fold.test_ids[0]][:-1]}
    views = {patient_id: tiles[:, None] for patient_id, tiles in bags.features.items()}
    names = [
        name(),
        name(of=replace(bags, features=taught)),
        name(of=replace(bags, features=shown)),
        name(of=replace(bags, views=views)),
        name(labels={**labels, turned: 1 - labels[turned]}),
        name(fold=other_fold),
        name(settings=replace(FAST, mixup=0.1)),
        name(seed=(1,)),
        name(n_classes=3),
        name(beside=(other_fold,)),
        name(within=other_fold),
    ]
    assert name() == names[0]
    # A patient's own label has no part in how it is judged.
    judged = fold.test_ids[0]
    assert name(labels={**labels, judged: 1 - labels[judged]}) == names[0]
    monkeypatch.setattr(checkpoints, "_code", lambda: "another program")
    assert len({*names, name()}) == len(names) + 1


def test_numbers_come_back_to_the_last_bit_and_damage_is_no_judgement(tmp_path: Path) -> None:
    bags, cohort = noise_cohort(9, 0)
    kept = Checkpoints(tmp_path / "part", bags)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    heads = train_ensemble(bags, labels, n_classes=2, config=FAST, seed=(0,)).heads
    logits = {"p": np.array([1 / 3, -np.pi * 1e-9])}
    record = EpochRecord(member=0, epoch=1, train_loss=0.1 + 0.2, val_loss=float("nan"))
    assert kept.read("a", head="gated", n_classes=2) is None
    averaged = {"p": logits["p"] / 7}
    kept.write("a", FoldResult(logits=logits, heads=heads, history=(record,), averaged=averaged))
    found = kept.read("a", head="gated", n_classes=2)
    assert found is not None
    assert states(found.heads) == states(heads)
    assert found.logits["p"].tobytes() == logits["p"].tobytes()
    assert found.averaged["p"].tobytes() == averaged["p"].tobytes()
    assert found.history[0].train_loss == record.train_loss
    assert np.isnan(found.history[0].val_loss)
    file = tmp_path / "part" / "a.safetensors"
    whole = file.read_bytes()
    for damage in (b"", b"{}", whole[:-1], whole.replace(b"patients", b"patience")):
        file.write_bytes(damage)
        assert kept.read("a", head="gated", n_classes=2) is None
    file.write_bytes(whole)
    assert kept.read("a", head="mean", n_classes=2) is None
    kept.discard()
    assert not (tmp_path / "part").exists()


def test_heads_of_folds_taken_over_are_counted(tmp_path: Path) -> None:
    bags, cohort = noise_cohort(18, 1)
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    kept = Checkpoints(tmp_path / "part", bags)
    counts, found = [], []
    for _ in range(2):
        heads: list[None] = []
        found.append(
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
    assert found[0].logits.tobytes() == found[1].logits.tobytes()
