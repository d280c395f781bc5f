from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mil.augmentation import add_noise, drop_tiles, mix_bags


def test_nothing_is_drawn_for_what_is_switched_off() -> None:
    bag = torch.randn(5, 3)
    before = torch.random.get_rng_state()
    assert drop_tiles(bag, 0.0) is bag
    assert add_noise(bag, 0.0) is bag
    assert torch.equal(before, torch.random.get_rng_state())


@given(n_tiles=st.integers(1, 9), share=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_dropped_tiles_leave_real_ones_and_at_least_one(
    n_tiles: int, share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    bag = torch.arange(n_tiles, dtype=torch.float32)[:, None]
    kept = drop_tiles(bag, share)[:, 0].tolist()
    assert kept
    assert sorted(set(kept)) == kept
    assert set(kept) <= set(bag[:, 0].tolist())


def test_tiles_are_dropped_at_the_rate_asked_for() -> None:
    torch.manual_seed(0)
    assert len(drop_tiles(torch.zeros(20_000, 1), 0.3)) == pytest.approx(14_000, rel=0.02)


def test_noise_has_the_deviation_asked_for() -> None:
    torch.manual_seed(0)
    noise = add_noise(torch.ones(200, 100), 0.5) - 1
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    alpha=st.floats(0.1, 5),
    seed=st.integers(0, 99),
)
def test_a_mixture_holds_the_stated_shares_of_two_patients(
    lengths: list[int], alpha: float, seed: int
) -> None:
    torch.manual_seed(seed)
    # Each tile says whose it is and which.
    bags = [
        torch.stack([torch.full((n,), float(i)), torch.arange(n) + 0.0], 1)
        for i, n in enumerate(lengths)
    ]
    mixture = mix_bags(bags, alpha)
    assert sorted(mixture.partners.tolist()) == list(range(len(bags)))
    assert (mixture.shares >= 0.5).all()
    for index, mixed in enumerate(mixture.bags):
        partner, share = int(mixture.partners[index]), mixture.shares[index].item()
        n_own = max(1, round(share * lengths[index]))
        n_other = round((1 - share) * lengths[partner])
        assert mixed[:, 0].tolist() == [index] * n_own + [partner] * n_other
        for part in (mixed[:n_own, 1].tolist(), mixed[n_own:, 1].tolist()):
            assert len(set(part)) == len(part)
