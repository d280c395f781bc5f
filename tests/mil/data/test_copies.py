"""Copies that lost tiles or gained some, found by the tiles that both slides have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.bags.bag import Bag
from features.bags.tile_keys import N_SKETCHED, TileKeys, make_tile_keys, no_sketch, sketch_tiles
from mil.data.copies import MIN_SHARED_TILES, ContentKeys, CopyIndex, without_copies
from tests.fakes import make_bag

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


def bag(slide_id: str, features: np.ndarray) -> Bag:
    return replace(make_bag(slide_id, dim=DIM, n_tiles=len(features)), features=features)


@pytest.mark.parametrize(
    ("n_shared", "n_first", "n_second", "kept"),
    [
        (40, 0, 10, ["second", "other"]),  # the first lies in the second
        (40, 10, 10, ["first", "other"]),  # most of both are shared
        (30, 200, 20, ["first", "other"]),
        (20, 30, 30, ["first", "second", "other"]),  # sections that overlap keep their own tiles
        (3, 0, 60, ["second", "other"]),
        (3, 2, 60, ["first", "second", "other"]),
        (N_SKETCHED * 3, N_SKETCHED, 200, ["first", "other"]),
        (0, 40, 40, ["first", "second", "other"]),
    ],
)
def test_most_tiles_of_another_bag_of_the_patient_count_once(
    n_shared: int, n_first: int, n_second: int, kept: list[str]
) -> None:
    shared = tiles(n_shared, 1)
    bags = {
        "first": bag("first", np.concatenate([shared, tiles(n_first, 2)])),
        "second": bag("second", np.concatenate([tiles(n_second, 3), shared[::-1]])),
        "empty": bag("empty", tiles(0, 4)),
        "other": bag("other", tiles(30, 5)),
    }
    assert [name for name in without_copies(bags) if name != "empty"] == kept
    assert "empty" in without_copies(bags)
    assert list(without_copies({"first": bags["first"]})) == ["first"]
