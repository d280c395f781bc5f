from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mil.heads.random_streams import RandomStreams
from mil.training.feature_cache import FeatureCache, length_buckets

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def cache_of(lengths: list[int]) -> FeatureCache:
    """Each tile says whose it is and which."""
    sizes = torch.tensor(lengths)
    owners = torch.arange(len(lengths)).repeat_interleave(sizes)
    numbers = torch.cat([torch.arange(n) for n in lengths])
    return FeatureCache(
        tiles=torch.stack([owners, numbers], 1).float(),
        starts=sizes.cumsum(0) - sizes,
        lengths=sizes,
        labels=torch.zeros(len(lengths), dtype=torch.int64),
    )


@given(lengths=LENGTHS, n_tiles=st.integers(1, 30), seed=st.integers(0, 99))
def test_tiles_drawn_are_the_patients_own_and_spread_over_the_whole_bag(
    lengths: list[int], n_tiles: int, seed: int
) -> None:
    torch.manual_seed(seed)
    patients = torch.arange(len(lengths)).flip(0)
    cache = cache_of(lengths)
    for batch in (
        cache.sample(patients, n_tiles, RandomStreams()),
        cache.take_evenly(patients, n_tiles),
    ):
        for patient, features, mask in zip(patients.tolist(), *batch, strict=True):
            length = lengths[patient]
            owners, numbers = features[mask].T
            assert (owners == patient).all()
            assert len(numbers) == min(length, n_tiles)
            assert not features[~mask].any()
            width = len(mask)
            if length <= width:
                assert numbers.tolist() == list(range(length))
            else:
                stretches = torch.arange(width).double() * length / width
                assert (numbers > stretches - 1).all()
                assert (numbers <= stretches + length / width).all()


def test_every_tile_is_drawn_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    cache = cache_of([10])
    drawn = cache.sample(torch.zeros(8000, dtype=torch.int64), 4, RandomStreams()).features[..., 1]
    shares = torch.bincount(drawn.long().flatten(), minlength=10) / drawn.numel()
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.01, rtol=0)


def test_the_last_tile_of_a_very_large_bag_is_the_last_that_can_be_drawn() -> None:
    n = 2**24 + 3  # float32 cannot count so far
    cache = FeatureCache(
        tiles=torch.arange(n, dtype=torch.float64)[:, None], starts=torch.tensor([0]),
        lengths=torch.tensor([n]), labels=torch.tensor([0]),
    )  # fmt: skip
    found, _ = cache._locate(torch.tensor([0]), torch.full((1, 7), 1 - 2**-24))
    assert found[0, -1] in (n - 2, n - 1)


@given(first=LENGTHS, second=LENGTHS)
def test_joined_shelves_hold_the_same_bags(first: list[int], second: list[int]) -> None:
    joined = FeatureCache.concatenate([cache_of(first), cache_of(second)])
    whole = joined.take_evenly(torch.arange(len(first + second)), 50)
    for index, length in enumerate(first + second):
        tiles = whole.features[index, :length]
        assert (tiles[:, 0] == (index if index < len(first) else index - len(first))).all()
        assert tiles[:, 1].tolist() == list(range(length))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 120))
def test_blocks_hold_everyone_once_and_no_more_than_there_is_room_for(
    widths: list[int], room: int
) -> None:
    widths = sorted(widths, reverse=True)
    blocks = length_buckets(widths, room)
    assert [width for block in blocks for width in widths[block]] == widths
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        held = widths[block]
        assert len(held) == 1 or len(held) * held[0] <= room
        if following is not None:  # nobody who would have fitted in was left for later
            assert (len(held) + 1) * held[0] > room
