"""Ensembles and heads that are trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mil.data.bags import PatientBags
from mil.data.splits import patient_folds
from mil.heads import base as heads_base
from mil.heads import build_head, head_names
from mil.heads.attention import GatedAttentionHead
from mil.heads.ensemble import predict_members
from mil.heads.random_streams import RandomStreams
from mil.heads.whitening import fit_pca_whitening
from mil.training import ensemble, trainer
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training.ensemble import (
    Ensemble,
    max_parallel_ensembles,
    predict_batch,
    train_ensemble,
    train_ensembles,
)
from mil.training.feature_cache import CacheSpec, FeatureCache, build_caches
from mil.training.trainer import TrainSplit, train_heads
from tests.mil.training.test_ensemble import FAST, labels_of, noise_cohort, states


def train(
    stores: Sequence[PatientBags],
    *labels: dict[str, int],
    config: TrainConfig = FAST,
    first_seed: int = 0,
) -> tuple[Ensemble, ...]:
    """Train an ensemble per store, with seeds that follow each other."""
    seeds = [(first_seed + number,) for number in range(len(stores))]
    return train_ensembles(stores, labels, seeds=seeds, n_classes=2, config=config)


def overlapping_stores() -> tuple[PatientBags, PatientBags, dict[str, int]]:
    """Return the stores of two ensembles that share half of their patients, and all labels."""
    bags, cohort = noise_cohort(60, 1, shift=0.5)
    ids = cohort.patient_ids
    return bags.subset(ids[:40]), bags.subset(ids[20:]), labels_of(cohort)


def test_the_same_ensembles_together_give_the_same_bytes() -> None:
    *stores, labels = overlapping_stores()
    twice = [train(stores, labels, labels) for _ in range(2)]
    for one, same in zip(*twice, strict=True):
        assert states(one.heads) == states(same.heads)
        losses = [[record.train_loss for record in some.history] for some in (one, same)]
        assert losses[0] == losses[1]


@pytest.mark.usefixtures("two_inner_folds")
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"head": "tokens"},
        {"mixup": 0.5, "feature_noise": 0.1, "instance_dropout": 0.2},
        {"early_stopping": True},
    ],
)
def test_an_ensemble_learns_the_same_alone_and_with_others_of_other_sizes(
    change: dict[str, object],
) -> None:
    bags, cohort = noise_cohort(75, 1, shift=0.5)
    ids = cohort.patient_ids
    settings = replace(FAST, **change)  # type: ignore[arg-type]
    stores = [bags.subset(names) for names in (ids[:40], ids[35:], ids[20:60])]
    labels = labels_of(cohort)
    together = train(stores, labels, labels, labels, config=settings)
    for number, (store, joint) in enumerate(zip(stores, together, strict=True)):
        (alone,) = train([store], labels, config=settings, first_seed=number)
        for name in ids[::10]:
            np.testing.assert_allclose(
                predict_members(alone.heads, bags.features[name])[0],
                predict_members(joint.heads, bags.features[name])[0],
                atol=1e-3,
            )


@pytest.mark.parametrize("head", ["gated", "transmil"])
def test_poisoned_patients_of_one_ensemble_do_not_reach_the_other(head: str) -> None:
    settings = replace(FAST, head=head)
    first, second, labels = overlapping_stores()
    huge = {
        name: np.float32(1e6) * tiles.astype(np.float32) ** 3
        for name, tiles in second.features.items()
    }
    swapped = {name: 1 - label for name, label in labels.items()}
    clean = train([first, second], labels, labels, config=settings)
    poisoned = train([first, replace(second, features=huge)], labels, swapped, config=settings)
    assert states(clean[0].heads) == states(poisoned[0].heads)
    assert states(clean[1].heads) != states(poisoned[1].heads)


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
        validated = [record for record in curve if np.isfinite(record.val_loss)]
        best = min(validated, key=lambda record: record.val_loss)
        assert len(curve) == 60 or curve[-1].epoch - best.epoch >= 6
    assert len(done) == 3


def cache_and_splits(sizes: list[int]) -> tuple[FeatureCache, list[TrainSplit]]:
    """Return patients with two tiles each, and splits with these numbers of them."""
    n = sum(sizes)
    cache = FeatureCache(
        tiles=torch.randn(2 * n, 4), starts=2 * torch.arange(n), lengths=torch.full((n,), 2),
        labels=torch.arange(n) % 2,
    )  # fmt: skip
    parts = torch.arange(n).split(sizes)
    none = torch.empty(0, dtype=torch.int64)
    return cache, [
        TrainSplit(member=i, train_idx=p, val_idx=none, stream=torch.Generator().manual_seed(i))
        for i, p in enumerate(parts)
    ]


def test_an_epoch_shows_every_patient_of_every_split_in_even_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache, splits = cache_and_splits([33, 32])
    batches: list[torch.Tensor] = []
    sample = FeatureCache.sample_labelled

    def watch(
        self: FeatureCache, patients: torch.Tensor, n_tiles: int, rng: RandomStreams
    ) -> object:
        batches.append(patients.view(2, -1))
        return sample(self, patients, n_tiles, rng)

    monkeypatch.setattr(FeatureCache, "sample_labelled", watch)
    heads = [build_head("max", dim=4, n_components=4, n_classes=2) for _ in splits]
    settings = TrainConfig(batch_patients=11, fixed_steps=3)
    train_heads(heads, splits, cache, n_classes=2, config=settings, on_head=lambda: None)
    assert [tuple(patients.shape) for patients in batches] == [(2, 11)] * 3
    long, short = torch.cat(batches, dim=1)
    assert sorted(long.tolist()) == list(range(33))
    assert sorted(set(short.tolist())) == list(range(33, 65))
    assert torch.bincount(short).max() == 2  # The order starts again; nothing is drawn at random.


def test_the_validation_loss_is_the_balanced_one_over_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bags, cohort = noise_cohort(40, 0)
    spec = CacheSpec(
        bags=bags, patient_ids=bags.nonempty(), labels=cohort.labels,
        whitening=fit_pca_whitening(*bags.unsupervised_features(), FAST.n_components),
    )  # fmt: skip
    (cache,) = build_caches([spec])
    head = build_head("gated", dim=16, n_components=8, n_classes=2)
    val_idx = [torch.arange(20), torch.arange(20, 40)[::2]]
    val_losses = []
    for most in (10, 50, 10_000):
        monkeypatch.setattr(trainer, "_TILES_PER_BATCH_CPU", most)
        validator = trainer._Validator(val_idx, cache, n_classes=2)
        val_losses.append(
            validator.val_loss(trainer.StackedHeads([head, head], RandomStreams()).module)
        )
    for losses in val_losses[1:]:
        assert losses == pytest.approx(val_losses[0], rel=1e-5)
    logits = head.eval().forward_components(*cache.take_evenly(val_idx[1], 256)).logits.detach()
    labels = cache.labels[val_idx[1]]
    losses = -logits.log_softmax(dim=1)[range(10), labels]
    by_class = [losses[labels == label].mean() for label in (0, 1)]
    assert val_losses[0][1] == pytest.approx(float(sum(by_class) / 2), rel=1e-5)


def test_small_cohorts_are_trained_together_and_large_ones_fold_by_fold() -> None:
    bags, _ = noise_cohort(30, 0)
    assert max_parallel_ensembles(bags, FAST) > 10
    large = {f"{n}": np.zeros((600, 16), np.float16) for n in range(30)}
    settings = TrainConfig(max_tiles=512)
    assert max_parallel_ensembles(replace(bags, features=large), settings) == 1


@pytest.mark.parametrize("head", head_names())
def test_many_patients_at_once_are_predicted_as_each_alone(
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
def test_folds_on_a_gpu_predict_as_folds_on_the_cpu(head: str) -> None:
    bags, cohort = noise_cohort(40, 1, shift=0.6)
    folds = patient_folds(cohort, n_folds=2, n_repeats=2, seed=0)
    settings = replace(FAST, head=head)
    on_cpu, on_gpu = (
        cross_validate(bags, cohort, folds, config=replace(settings, device=device), seed=0)
        for device in ("cpu", "cuda")
    )
    # Other random numbers give other heads; their predictions are correlated.
    assert np.isfinite(on_gpu.logits).all()
    margins = [(oof.logits[..., 1] - oof.logits[..., 0]).ravel() for oof in (on_cpu, on_gpu)]
    assert np.corrcoef(margins)[0, 1] > 0.5


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_head_with_a_parameter_without_gradient_trains(
    monkeypatch: pytest.MonkeyPatch, *, early_stopping: bool
) -> None:
    class Idle(GatedAttentionHead):
        """Gated attention with a linear map that nothing uses."""

        def __init__(self, *, dim: int, n_components: int, n_classes: int) -> None:
            super().__init__(dim=dim, n_components=n_components, n_classes=n_classes)
            self.unused = torch.nn.Linear(3, 2)

    monkeypatch.setitem(heads_base._HEADS, "idle", Idle)
    monkeypatch.setattr(ensemble, "N_INNER_FOLDS", 2)
    bags, cohort = noise_cohort(30, 0, shift=1.0)
    config = replace(FAST, head="idle", n_members=2, early_stopping=early_stopping, patience=2)
    trained = train_ensemble(bags, labels_of(cohort), n_classes=2, config=config, seed=(0, 1))
    assert len(trained.heads) == 2
    logits = np.array([predict_members(trained.heads, own)[0] for own in bags.features.values()])
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0
