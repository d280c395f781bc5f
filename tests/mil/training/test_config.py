"""What can be changed about training; :mod:`tests.mil.training.test_ensemble` has what cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mil.errors import RunError
from mil.evaluation.metrics import auroc
from mil.heads import build_head, head_names
from mil.heads.ensemble import predict_members
from mil.heads.random_streams import RandomStreams
from mil.training import trainer
from mil.training.augmentation import mix_bags
from mil.training.config import TrainConfig
from mil.training.ensemble import train_ensemble
from mil.training.feature_cache import FeatureCache
from tests.mil.training.test_ensemble import FAST, labels_of, noise_cohort, states

CHANGES: list[dict[str, object]] = [
    {"loss": "cross-entropy"},
    {"loss": "focal"},
    {"label_smoothing": 0.2},
    {"instance_dropout": 0.5},
    {"feature_noise": 0.5},
    {"mixup": 0.5},
    {"schedule": "one-cycle"},
]


def name_of(change: dict[str, object]) -> str:
    return "-".join(map(str, *change.items()))


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_every_setting_changes_the_heads_and_keeps_them_reproducible(
    change: dict[str, object],
) -> None:
    bags, cohort = noise_cohort(30, 1, shift=0.5)
    first, same, plain = (
        train_ensemble(bags, labels_of(cohort), n_classes=2, config=settings, seed=(1,))
        for settings in (replace(FAST, **change), replace(FAST, **change), FAST)  # type: ignore[arg-type]
    )
    assert states(first.heads) == states(same.heads)
    assert states(first.heads) != states(plain.heads)


@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_a_planted_signal_is_found_with_every_setting(change: dict[str, object]) -> None:
    assert held_out_auroc(replace(FAST, fixed_steps=80, **change)) > 0.85  # type: ignore[arg-type]


@pytest.mark.parametrize("head", head_names())
def test_a_planted_signal_is_found_by_every_head(head: str) -> None:
    assert held_out_auroc(replace(FAST, fixed_steps=120, head=head)) > 0.85


def held_out_auroc(settings: TrainConfig) -> float:
    bags, cohort = noise_cohort(90, 8, shift=0.7)
    known, others = cohort.patient_ids[:60], cohort.patient_ids[60:]
    ensemble = train_ensemble(
        bags.subset(known), labels_of(cohort), n_classes=2, config=settings, seed=(0,)
    )
    logits = [predict_members(ensemble.heads, bags.features[name])[0].mean(0) for name in others]
    return auroc(np.stack(logits), cohort.labels[60:])


@pytest.mark.parametrize("head", ["clam", "dsmil"])
def test_a_heads_own_loss_is_part_of_what_is_trained_on(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, cohort = noise_cohort(30, 1, shift=0.5)
    settings = replace(FAST, head=head)
    with_it = train_ensemble(bags, labels_of(cohort), n_classes=2, config=settings, seed=(1,))
    monkeypatch.setattr(type(with_it.heads[0]), "auxiliary_loss", lambda *_: None)
    without = train_ensemble(bags, labels_of(cohort), n_classes=2, config=settings, seed=(1,))
    assert with_it.history[0].train_loss > without.history[0].train_loss
    assert states(with_it.heads) != states(without.heads)


def test_one_cycle_rises_to_the_learning_rate_and_falls_below_its_start() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    settings = TrainConfig(schedule="one-cycle", learning_rate=0.01)
    schedule = trainer.build_scheduler(optimiser, settings, n_steps=50)
    rates = []
    for _ in range(50):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.01, rel=1e-3)
    assert rates[-1] < rates[0] < max(rates)


def test_the_loss_of_a_mixed_bag_is_that_of_both_labels_in_their_shares() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1])
    cache = FeatureCache(
        tiles=torch.randn(24, 5), starts=6 * torch.arange(4), lengths=torch.full((4,), 6),
        labels=labels,
    )  # fmt: skip
    head = build_head("mean", dim=5, n_components=5, n_classes=2)
    torch.nn.init.normal_(head.classify.weight)
    split = trainer.TrainSplit(
        member=0, train_idx=torch.arange(4), val_idx=torch.empty(0, dtype=torch.int64),
        stream=torch.Generator().manual_seed(3),
    )  # fmt: skip
    settings = TrainConfig(mixup=1.0)
    group = trainer.Trainer(
        [trainer._HeadState(head, split)], cache, trainer._EpochShape.of(split, cache, settings),
        n_classes=2, config=settings, on_head=lambda: None,
    )  # fmt: skip
    losses = group._train_loss(torch.arange(4))
    rng = RandomStreams([split.stream.manual_seed(3)])
    mixed = mix_bags(cache.sample(torch.arange(4), 6, rng), 1.0, rng)
    means = mixed.batch.features.sum(1) / mixed.batch.mask.sum(1, keepdim=True)
    log_proba = head.classify(means).log_softmax(dim=1)
    rows = torch.arange(4)
    own, other = log_proba[rows, labels], log_proba[rows, labels[mixed.partners]]
    expected = -mixed.shares * own - (1 - mixed.shares) * other
    torch.testing.assert_close(losses, expected.mean()[None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing: 1.0; expected 0 to below 1"),
        ({"instance_dropout": -0.1}, "instance_dropout: -0.1; expected 0 to below 1"),
        ({"feature_noise": -1.0}, "feature_noise: -1.0; expected 0 or more"),
        ({"mixup": -1.0}, "mixup: -1.0; expected 0 or more"),
        ({"feature_noise": float("nan")}, "feature_noise: nan; expected 0 or more"),
        ({"n_members": 0}, "n_members: 0; expected a whole number, 1 or more"),
        ({"max_tiles": 2.5}, "max_tiles: 2.5; expected a whole number, 1 or more"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0; expected above 0"),
        ({"clip_norm": -1.0}, "clip_norm: -1.0; expected above 0"),
        ({"schedule": "cosine"}, "schedule 'cosine': unknown; expected constant or one-cycle"),
    ],
    ids=lambda value: "" if isinstance(value, str) else name_of(value),
)
def test_settings_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        TrainConfig(**change)  # type: ignore[arg-type]
