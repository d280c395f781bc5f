from __future__ import annotations

import torch

from mil.heads.random_streams import RandomStreams

CPU = torch.device("cpu")


def streams(*seeds: int) -> list[torch.Generator]:
    """A stream for each seed; heads of one seed share it."""
    made = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    return [made[seed] for seed in seeds]


def test_what_an_ensemble_is_dealt_does_not_depend_on_those_beside_it() -> None:
    together, alone = RandomStreams(streams(1, 1, 2, 3)), RandomStreams(streams(2))
    like = torch.empty(8, 3, 5)
    for both in (
        (together.uniform(8, 3, device=CPU), alone.uniform(2, 3, device=CPU)),
        (together.bytes(like), alone.bytes(like[:2])),
        (together.normal(like), alone.normal(like[:2])),
        (together.integers(9, 8, 3, device=CPU), alone.integers(9, 2, 3, device=CPU)),
    ):
        assert torch.equal(both[0][4:6], both[1])
        assert not torch.equal(both[0][:2], both[1])


def test_those_who_stay_are_dealt_on_from_their_own_streams() -> None:
    rng, alone = RandomStreams(streams(1, 1, 2, 2)), RandomStreams(streams(2))
    for some in (rng.uniform(4, 3, device=CPU)[2:], alone.uniform(2, 3, device=CPU)):
        assert len(some) == 2
    rng.select([0, 3])
    assert torch.equal(rng.uniform(2, 3, device=CPU)[1:], alone.uniform(1, 3, device=CPU))


def test_without_streams_torch_s_own_is_drawn_from() -> None:
    torch.manual_seed(4)
    found = RandomStreams().uniform(2, 3, device=CPU)
    torch.manual_seed(4)
    assert torch.equal(found, torch.rand(2, 3))
