from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from features.bags.bag import Fingerprint, as_json
from features.bags.setting_words import describe_difference
from features.embedding.config import EmbedConfig
from features.tiling.grid import TileSettings
from features.tiling.stain import STAIN_NORMS
from tests.fakes import make_series

ENCODER: Any = SimpleNamespace(
    name="fake", weights_sha256="0" * 64, dim=8,
    preprocessing=SimpleNamespace(as_json=lambda: as_json(mean=[0.5], std=[0.2])),
)  # fmt: skip
PLAIN = EmbedConfig().make_fingerprint(ENCODER)


def made(**tiles: Any) -> Fingerprint:
    return EmbedConfig(tiles=TileSettings(**tiles)).make_fingerprint(ENCODER)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (made(max_tiles=20), ("--max-tiles 20", "no --max-tiles")),
        (made(min_tissue=0.5), ("--min-tissue 0.5", "--min-tissue 0.3")),
        (made(tile_px=256), ("--tile-px 256", "--tile-px 224")),
        (made(target_mpp=1.0), ("--mpp 1", "--mpp 0.5")),
        (made(overlap_px=16), ("--overlap 16", "--overlap 0")),
        (made(rules=()), ("--rules none", "--rules ")),
        (made(rules=("ink",)), ("--rules ink", "--rules ")),
        (
            made(target_mpp=1.0, max_tiles=20, min_tissue=0.1, tile_px=128, overlap_px=8),
            ("--tile-px 128, --mpp 1, --overlap 8 and 2 more settings", "--tile-px 224, --mpp 0.5"),
        ),
        (
            made(target_mpp=1.0, min_tissue=0.1, tile_px=128, overlap_px=8),
            ("--tile-px 128, --mpp 1, --overlap 8 and 1 more setting", "--tile-px 224, --mpp 0.5"),
        ),
        (replace(PLAIN, encoder="a", dim=9), ("--backbone a", "--backbone fake")),
        (replace(PLAIN, weights_sha256="f" * 64), ("weights ffffffffffff", "weights ")),
        (replace(PLAIN, dim=1024), ("embeddings of 1,024 numbers", "embeddings of 8 numbers")),
        (replace(PLAIN, weights_sha256="unknown"), ("unknown weights", "weights ")),
        (replace(PLAIN, filter_sha256="ab" * 32), ("--filter with hash abab", "no --filter")),
        (
            replace(PLAIN, stain_norm=STAIN_NORMS["macenko"]),
            ("--stain-norm macenko", "no --stain-norm"),
        ),
        (replace(PLAIN, views=as_json(n_views=4, seed=0)), ("--views 4", "no --views")),
        (make_series("a").meta.fingerprint, ("--series", "slides instead of --series")),
        (
            replace(PLAIN, tissue=as_json(unknown=True), tile_px=0, target_mpp=0.0),
            ("unknown --tile-px, unknown --mpp, unknown settings of the tissue", "--tile-px 224"),
        ),
        (replace(PLAIN, tissue="[" * 9), ("tissue [[[[[", "tissue {")),
        (replace(PLAIN, tissue="[1]"), ("tissue [1]", "tissue {")),
        (replace(PLAIN, transform="x" * 60_000), ("preprocessing xxx", "preprocessing ")),
    ],
)
def test_settings_that_differ_are_named_by_their_options(
    other: Fingerprint, words: tuple[str, str]
) -> None:
    found = describe_difference(vars(other), vars(PLAIN))
    for text, expected in zip(found, words, strict=True):
        assert text.startswith(expected)
        assert "1 more settings" not in text
        assert len(text) < 200
    assert describe_difference(vars(PLAIN), vars(other)) == found[::-1]


def test_views_and_masks_of_the_same_kind_are_told_apart() -> None:
    one, other = (replace(PLAIN, views=as_json(n_views=4, seed=seed)) for seed in (0, 3))
    assert describe_difference(vars(one), vars(other)) == ("--views-seed 0", "--views-seed 3")
    older = replace(PLAIN, tissue=as_json(min_tissue=0.3))
    newer = replace(PLAIN, tissue=as_json(min_tissue=0.3, mask_version=3))
    words = "version 1 of the tissue mask", "version 3 of the tissue mask"
    assert describe_difference(vars(older), vars(newer)) == words


def test_options_come_before_what_follows_from_them() -> None:
    own, other = PLAIN, replace(
        PLAIN, weights_sha256="f" * 64, dim=PLAIN.dim + 1, transform=as_json(input_px=8),
        tile_px=999, overlap_px=7, filter_sha256="e" * 64,
    )  # fmt: skip
    for text in describe_difference(vars(own), vars(other)):
        shown, _, counted = text.partition(" and ")
        assert shown.count("--") == 3
        assert counted.endswith("more settings")


def test_every_field_of_a_fingerprint_has_words() -> None:
    for field in fields(Fingerprint):
        value = getattr(PLAIN, field.name)
        other = replace(
            PLAIN, **{field.name: value + 1 if isinstance(value, int | float) else "{}"}
        )
        if other != PLAIN:
            one_words, other_words = describe_difference(vars(other), vars(PLAIN))
            assert one_words != other_words
            assert "_" not in one_words + other_words
