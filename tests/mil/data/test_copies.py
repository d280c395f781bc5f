"""Copies that lost tiles or gained some, found by the tiles that both slides have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.bags.tile_keys import N_SKETCHED, TileKeys, make_tile_keys, no_sketch, sketch_tiles
from mil.data.copies import MIN_SHARED_TILES, ContentKeys, CopyIndex

DIM = 16


@dataclass(frozen=True)
class Slide:
    tile_sketch: TileKeys
    content_keys: ContentKeys = ()


def tiles(n_tiles: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_tiles, DIM)).astype(np.float16)


def slide(features: np.ndarray, *keys: tuple[str, str]) -> Slide:
    return Slide(sketch_tiles(make_tile_keys(features)), keys)


def pairs(*slides: Slide) -> list[tuple[int, int]]:
    """Return the pairs that an index finds, in training and slide by slide as in inference."""
    index = CopyIndex(slides)
    found = {
        (min(number, other), max(number, other))
        for number, one in enumerate(slides)
        for other in index.find(one.content_keys, one.tile_sketch)
        if other != number
    }
    assert index.pairs() == sorted(found)
    return index.pairs()


@given(
    n_shared=st.integers(0, 40), n_own=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_slides_of_eight_common_tiles_are_copies_whatever_else_they_have(
    n_shared: int, n_own: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shared = tiles(n_shared, 1)
    ones, others = (np.concatenate([shared, tiles(n, 2 + i)]) for i, n in enumerate(n_own))
    found = pairs(slide(ones), slide(tiles(30, 9)), slide(rng.permutation(others)))
    assert found == ([(0, 2)] if n_shared >= MIN_SHARED_TILES else [])


@pytest.mark.parametrize("share", [0.03, 0.5, 0.99])
def test_a_piece_of_a_large_slide_is_found(share: float) -> None:
    whole = tiles(15_000, 0)
    piece = np.random.default_rng(1).permutation(whole)[: int(share * len(whole))]
    assert len(slide(whole).tile_sketch) == N_SKETCHED
    assert pairs(slide(tiles(5_000, 2)), slide(whole), slide(piece)) == [(1, 2)]


def test_another_type_and_a_repeated_tile_change_nothing() -> None:
    own = tiles(20, 0)
    assert pairs(slide(own), slide(own[:9].astype(np.float32))) == [(0, 1)]
    blank = np.repeat(tiles(1, 3), 20, axis=0)
    assert pairs(slide(np.concatenate([own, blank])), slide(blank)) == []


def test_tiles_that_are_on_many_slides_tell_nothing() -> None:
    blank = tiles(10, 0)
    many = [slide(np.concatenate([blank, tiles(20, seed)])) for seed in range(1, 18)]
    assert pairs(*many[:16]) == [(one, other) for one in range(16) for other in range(one + 1, 16)]
    assert pairs(*many) == []


def test_equal_files_and_hashes_are_copies_without_a_sketch() -> None:
    unknown = [Slide(no_sketch(), keys) for keys in ((("file", "a"),), (), (("file", "a"),))]
    assert pairs(*unknown) == [(0, 2)]
    assert CopyIndex([]).pairs() == []
