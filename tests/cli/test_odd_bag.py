"""Folders in which one bag was made otherwise than the others: most of them are the norm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from features.bags.bag import check_same_fingerprint, usual_fingerprint
from features.bags.h5 import read_bag, write_bag
from features.errors import BagError
from tests.cli.running import mil
from tests.fakes import make_bag, write_cohort


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort whose first bag, in every order, has another tile size."""
    folder = tmp_path_factory.mktemp("odd")
    write_cohort(folder, n_patients=8, shift=0.8)
    path = folder / "bags" / "000_0.h5"
    bag = read_bag(path)
    fingerprint = replace(bag.meta.fingerprint, tile_px=256)
    write_bag(path, replace(bag, meta=replace(bag.meta, fingerprint=fingerprint)))
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "train --cohort {0}/train.csv --bags {0}/bags --run {1}/run",
        "audit {0}/train.csv --bags {0}/bags",
        "bags pack {0}/bags --out {1}/pack",
    ],
)
def test_the_odd_bag_is_named_though_it_comes_first(
    world: Path, tmp_path: Path, command: str
) -> None:
    result = mil(*command.format(world, tmp_path).split())
    assert result.exit_code == 1, result.output
    assert (
        "000_0.h5: made with --tile-px 256; expected --tile-px 224 as in 9 of 10 bags"
        in result.output
    )


def test_the_others_are_exported(world: Path, tmp_path: Path) -> None:
    result = mil("bags", "export", world / "bags", "--to", "trident", "--out", tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert "made with --tile-px 256; expected --tile-px 224 as in 9 of 10 bags" in result.output
    assert len(list((tmp_path / "out").glob("*/features_*/*.h5"))) == 9


def test_of_as_many_on_either_side_the_first_is_the_norm() -> None:
    one = make_bag("a").meta.fingerprint
    other = replace(one, tile_px=256)
    assert usual_fingerprint([one, other, other]) == other
    assert usual_fingerprint([other, one]) == other
    check_same_fingerprint([("a", one), ("b", one)])
    with pytest.raises(
        BagError, match="c: made with --tile-px 256; expected --tile-px 224 as in 2 of"
    ):
        check_same_fingerprint([("a", one), ("b", one), ("c", other)])
