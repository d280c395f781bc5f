from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mil.heads.random_streams import RandomStreams
from mil.training.augmentation import add_noise, apply_instance_dropout, mix_bags
from tests.batches import pad


def test_nothing_is_drawn_for_what_is_switched_off() -> None:
    batch = pad([torch.randn(5, 3)])
    before = torch.random.get_rng_state()
    assert apply_instance_dropout(batch, 0.0, RandomStreams()) is batch
    assert add_noise(batch, 0.0, RandomStreams()) is batch
    assert torch.equal(before, torch.random.get_rng_state())


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_dropped_tiles_leave_real_ones_and_at_least_one(
    lengths: list[int], share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    batch = pad([1 + torch.arange(n, dtype=torch.float32)[:, None] for n in lengths])
    left = apply_instance_dropout(batch, share, RandomStreams())
    assert left.mask.any(dim=1).all()
    assert not (left.mask & ~batch.mask).any()
    assert torch.equal(left.features[left.mask], batch.features[left.mask])
    assert not left.features[~left.mask].any()


def test_tiles_are_dropped_at_the_rate_asked_for() -> None:
    torch.manual_seed(0)
    left = apply_instance_dropout(pad([torch.zeros(20_000, 1)]), 0.3, RandomStreams())
    assert left.mask.sum().item() == pytest.approx(14_000, rel=0.02)


def test_noise_has_the_deviation_asked_for_and_leaves_padding_alone() -> None:
    torch.manual_seed(0)
    batch = pad([torch.ones(200, 100), torch.ones(3, 100)])
    noisy = add_noise(batch, 0.5, RandomStreams())
    noise = noisy.features[0] - 1
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert not noisy.features[~noisy.mask].any()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    n_heads=st.integers(1, 3),
    alpha=st.floats(0.1, 5),
    seed=st.integers(0, 99),
)
def test_a_mixture_holds_the_stated_shares_of_two_patients_of_one_head(
    lengths: list[int], n_heads: int, alpha: float, seed: int
) -> None:
    torch.manual_seed(seed)
    n_patients, lengths = len(lengths), lengths * n_heads
    # Each tile says whose it is and which.
    bags = [
        torch.stack([torch.full((n,), float(i)), torch.arange(n) + 0.0], 1)
        for i, n in enumerate(lengths)
    ]
    mixture = mix_bags(pad(bags), alpha, RandomStreams([None] * n_heads), n_heads=n_heads)
    assert sorted(mixture.partners.tolist()) == list(range(len(bags)))
    owners = torch.arange(len(bags)) // n_patients
    assert torch.equal(mixture.partners // n_patients, owners)
    assert (mixture.shares >= 0.5).all()
    for index, (features, mask) in enumerate(zip(*mixture.batch, strict=True)):
        partner, share = int(mixture.partners[index]), mixture.shares[index].item()
        n_own = max(1, round(share * lengths[index]))
        n_other = round((1 - share) * lengths[partner])
        mixed = features[mask]
        assert mixed[:, 0].tolist() == [index] * n_own + [partner] * n_other
        for part in (mixed[:n_own, 1].tolist(), mixed[n_own:, 1].tolist()):
            assert len(set(part)) == len(part)
