"""Keys of tiles, which do not depend on their order."""

from __future__ import annotations

import numpy as np
import pytest

from features.bags.h5 import to_storage_dtype
from features.bags.tile_keys import hash_tiles, make_tile_keys, sketch_tiles

RNG = np.random.default_rng(0)
TILES = RNG.normal(size=(6, 10)).astype(np.float16)
STORED = "f03e36633038e6b4"


def hash_of(features: np.ndarray) -> str:
    return hash_tiles(make_tile_keys(features), dim=features.shape[1])


def test_the_hash_of_tiles_has_no_order_and_no_type() -> None:
    shuffled = TILES[RNG.permutation(6)]
    turned = TILES.reshape(2, 3, 10)[:, ::-1].reshape(6, 10)
    for copy in (shuffled, turned, TILES[::-1], TILES.astype(np.float32)):
        assert hash_of(copy) == hash_of(TILES)
    # It is stored in runs, and must never change.
    assert hash_of(np.arange(12, dtype=np.float16).reshape(4, 3)).startswith(STORED)


@pytest.mark.parametrize(
    "other",
    [TILES[:5], -TILES, np.roll(TILES, 1, axis=1), np.concatenate([TILES[:5], TILES[:1]]),
     TILES * np.where(np.arange(10) < 2, -1, 1), TILES + 0.001],
)  # fmt: skip
def test_other_tiles_have_another_hash(other: np.ndarray) -> None:
    assert hash_of(other.astype(np.float16)) != hash_of(TILES)


@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1e6, 1e15])
@pytest.mark.parametrize("offset", [0, 20])
def test_tiles_of_any_size_have_their_own_keys(factor: float, offset: float) -> None:
    """As float16 they would all be zero or infinite, and copies of each other."""
    tiles = ((RNG.normal(size=(50, 10)) + offset) * factor).astype(np.float32)
    keys = make_tile_keys(tiles)
    assert len(np.unique(keys[:, 0])) == 50
    assert hash_of(tiles[::-1]) == hash_of(tiles)


def test_tiles_that_are_stored_as_float32_have_the_keys_of_what_is_stored() -> None:
    tiles = (RNG.normal(size=(9, 10)) + 1e4).astype(np.float32)
    tiles[0] -= np.float32(1e4)
    assert to_storage_dtype(tiles).dtype == np.float32
    assert len(np.unique(make_tile_keys(tiles)[:, 0])) == 9


def test_a_sketch_holds_each_tile_once_in_a_stored_order() -> None:
    sketch = sketch_tiles(make_tile_keys(np.concatenate([TILES, TILES[::-1]])))
    assert sketch.shape == (6,)
    assert (np.diff(sketch) > 0).all()
    # Sketches are stored in runs as well.
    stored = sketch_tiles(make_tile_keys(np.arange(12, dtype=np.float16).reshape(4, 3)))
    assert stored.tolist() == KEYS
    assert sketch_tiles(make_tile_keys(TILES[:0])).shape == (0,)


KEYS = [322658041594265088, 1825048256635998720, 10385613239673405440, 11324959744503146752]
