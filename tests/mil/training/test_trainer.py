"""Ensembles and heads that are taught side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mil.data.splits import patient_folds
from mil.heads import build_head, head_names
from mil.heads.ensemble import predict_members
from mil.heads.random_streams import RandomStreams
from mil.training import ensemble, trainer
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training.ensemble import (
    EnsembleTask,
    max_parallel_ensembles,
    predict_batch,
    train_ensemble,
    train_ensembles,
)
from mil.training.feature_cache import FeatureCache, build_caches
from mil.training.trainer import TrainSplit, train_heads
from tests.mil.training.test_ensemble import FAST, labels_of, noise_cohort, states


def tasks() -> list[EnsembleTask]:
    """Two ensembles that share half of their patients."""
    bags, cohort = noise_cohort(60, 1, shift=0.5)
    ids = cohort.patient_ids
    return [
        EnsembleTask(bags=bags.subset(names), labels=labels_of(cohort), seed=(number,))
        for number, names in enumerate((ids[:40], ids[20:]))
    ]


def test_the_same_ensembles_together_give_the_same_bytes() -> None:
    found = [train_ensembles(tasks(), n_classes=2, config=FAST) for _ in range(2)]
    for one, same in zip(*found, strict=True):
        assert states(one.heads) == states(same.heads)
        losses = [[record.train_loss for record in some.history] for some in (one, same)]
        assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head": "tokens"},
        {"mixup": 0.5, "feature_noise": 0.1, "instance_dropout": 0.2},
        {"early_stopping": True},
    ],
)
def test_an_ensemble_learns_the_same_alone_and_beside_others_of_other_sizes(
    change: dict[str, object],
) -> None:
    bags, cohort = noise_cohort(75, 1, shift=0.5)
    ids = cohort.patient_ids
    settings = replace(FAST, **change)  # type: ignore[arg-type]
    given = [
        EnsembleTask(bags=bags.subset(names), labels=labels_of(cohort), seed=(number,))
        for number, names in enumerate((ids[:40], ids[35:], ids[20:60]))
    ]
    together = train_ensembles(given, n_classes=2, config=settings)
    for task, beside in zip(given, together, strict=True):
        (alone,) = train_ensembles([task], n_classes=2, config=settings)
        for name in ids[::10]:
            np.testing.assert_allclose(
                predict_members(alone.heads, bags.features[name])[0],
                predict_members(beside.heads, bags.features[name])[0],
                atol=1e-3,
            )


@pytest.mark.parametrize("head", ["gated", "transmil"])
def test_poisoned_patients_of_one_ensemble_do_not_reach_the_one_beside_it(head: str) -> None:
    settings = replace(FAST, head=head)
    first, second = tasks()
    wild = {
        name: np.float32(1e6) * tiles.astype(np.float32) ** 3
        for name, tiles in second.bags.features.items()
    }
    turned = {name: 1 - label for name, label in second.labels.items()}
    poisoned = replace(second, bags=replace(second.bags, features=wild), labels=turned)
    clean = train_ensembles([first, second], n_classes=2, config=settings)
    beside = train_ensembles([first, poisoned], n_classes=2, config=settings)
    assert states(clean[0].heads) == states(beside[0].heads)
    assert states(clean[1].heads) != states(beside[1].heads)


def test_heads_stop_when_each_of_them_is_done() -> None:
    bags, cohort = noise_cohort(75, 3, shift=0.2)
    settings = replace(FAST, n_members=3, early_stopping=True, max_epochs=60, patience=6)
    settings = replace(settings, learning_rate=0.02)
    done: list[None] = []
    ensemble = train_ensemble(
        bags, labels_of(cohort), n_classes=2, config=settings, seed=(0,),
        on_head=lambda: done.append(None),
    )  # fmt: skip
    curves = [[r for r in ensemble.history if r.member == member] for member in range(3)]
    assert len({len(curve) for curve in curves}) > 1
    for curve in curves:
        looks = [record for record in curve if np.isfinite(record.val_loss)]
        best = min(looks, key=lambda record: record.val_loss)
        assert len(curve) == 60 or curve[-1].epoch - best.epoch >= 6
    assert len(done) == 3


def shelf_and_lessons(sizes: list[int]) -> tuple[FeatureCache, list[TrainSplit]]:
    """Patients of two tiles, and lessons of so many of them."""
    n = sum(sizes)
    shelf = FeatureCache(
        tiles=torch.randn(2 * n, 4), starts=2 * torch.arange(n), lengths=torch.full((n,), 2),
        labels=torch.arange(n) % 2,
    )  # fmt: skip
    parts = torch.arange(n).split(sizes)
    nobody = torch.empty(0, dtype=torch.int64)
    return shelf, [
        TrainSplit(member=i, train_idx=p, val_idx=nobody, stream=torch.Generator().manual_seed(i))
        for i, p in enumerate(parts)
    ]


def test_an_epoch_shows_every_patient_of_every_lesson_in_even_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf, given = shelf_and_lessons([33, 32])
    seen: list[torch.Tensor] = []
    draw = FeatureCache.sample_labelled

    def watch(
        self: FeatureCache, patients: torch.Tensor, n_tiles: int, rng: RandomStreams
    ) -> object:
        seen.append(patients.view(2, -1))
        return draw(self, patients, n_tiles, rng)

    monkeypatch.setattr(FeatureCache, "sample_labelled", watch)
    heads = [build_head("max", dim=4, n_components=4, n_classes=2) for _ in given]
    settings = TrainConfig(batch_patients=11, fixed_steps=3)
    train_heads(heads, given, shelf, n_classes=2, config=settings, on_head=lambda: None)
    assert [tuple(patients.shape) for patients in seen] == [(2, 11)] * 3
    long, short = torch.cat(seen, dim=1)
    assert sorted(long.tolist()) == list(range(33))
    assert sorted(set(short.tolist())) == list(range(33, 65))
    assert torch.bincount(short).max() == 2  # begun again, not drawn with rng


def test_the_loss_stopped_on_is_the_balanced_one_over_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bags, cohort = noise_cohort(40, 0)
    spec = ensemble._cache_spec(
        EnsembleTask(bags=bags, labels=labels_of(cohort), seed=(0,)), n_classes=2, config=FAST,
    )  # fmt: skip
    (shelf,) = build_caches([spec])
    head = build_head("gated", dim=16, n_components=8, n_classes=2)
    stopped_on = [torch.arange(20), torch.arange(20, 40)[::2]]
    found = []
    for most in (10, 50, 10_000):
        monkeypatch.setattr(trainer, "_TILES_PER_BATCH_CPU", most)
        exam = trainer._Validator(stopped_on, shelf, n_classes=2)
        found.append(exam.val_loss(trainer.StackedHeads([head, head], RandomStreams()).module))
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], rel=1e-5)
    logits = head.eval().forward_components(*shelf.take_evenly(stopped_on[1], 256)).logits.detach()
    labels = shelf.labels[stopped_on[1]]
    losses = -logits.log_softmax(dim=1)[range(10), labels]
    by_class = [losses[labels == label].mean() for label in (0, 1)]
    assert found[0][1] == pytest.approx(float(sum(by_class) / 2), rel=1e-5)


def test_small_cohorts_are_trained_together_and_large_ones_fold_by_fold() -> None:
    bags, _ = noise_cohort(30, 0)
    assert max_parallel_ensembles(bags, FAST) > 10
    large = {f"{n}": np.zeros((600, 16), np.float16) for n in range(30)}
    settings = TrainConfig(max_tiles=512)
    assert max_parallel_ensembles(replace(bags, features=large), settings) == 1


@pytest.mark.parametrize("head", head_names())
def test_many_patients_at_once_are_told_what_each_is_told_alone(
    monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(ensemble, "_TILES_PER_PREDICTION", 40)
    bags, cohort = noise_cohort(20, 1)
    torch.manual_seed(0)
    heads = [build_head(head, dim=16, n_components=16, n_classes=3).eval() for _ in range(2)]
    names = cohort.patient_ids[::-1]
    together = predict_batch(heads, bags, names, device=torch.device("cpu"))
    alone = np.stack([predict_members(heads, bags.features[name])[0] for name in names], axis=1)
    np.testing.assert_allclose(together, alone[None], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("head", ["gated", "tokens"])
def test_folds_on_a_gpu_say_what_folds_on_the_cpu_say(head: str) -> None:
    bags, cohort = noise_cohort(40, 1, shift=0.6)
    folds = patient_folds(cohort, n_folds=2, n_repeats=2, seed=0)
    settings = replace(FAST, head=head)
    here, there = (
        cross_validate(bags, cohort, folds, config=replace(settings, device=device), seed=0)
        for device in ("cpu", "cuda")
    )
    # Other streams of random numbers, so other heads; what they say goes the same way.
    assert np.isfinite(there.logits).all()
    margins = [(found.logits[..., 1] - found.logits[..., 0]).ravel() for found in (here, there)]
    assert np.corrcoef(margins)[0, 1] > 0.5
