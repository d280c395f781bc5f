from __future__ import annotations

import numpy as np

from tests.benchmarks.leak_gap import Tiles, judge, with_patient_effect


def patients_with_a_look_of_their_own(*, n_patients: int, n_tiles: int) -> Tiles:
    """Tiles scatter little around their patient's, which has nothing to do with the label."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(n_patients, 24))
    owner = np.repeat(np.arange(n_patients), n_tiles)
    features = effects[owner] + 0.2 * rng.normal(size=(len(owner), 24))
    return Tiles(
        features=features.astype(np.float32), owner=owner, labels=np.arange(n_patients) % 2
    )


def test_folds_of_tiles_find_labels_that_nothing_tells() -> None:
    tiles = patients_with_a_look_of_their_own(n_patients=24, n_tiles=8)
    claimed = judge(tiles, folds="tiles", n_folds=4, seed=0)
    result = judge(tiles, folds="patients", n_folds=4, seed=0)
    assert claimed["tile_accuracy"] > 0.9
    assert claimed["patient_auroc"] > 0.9
    assert result["tile_accuracy"] < 0.7


def test_where_tiles_of_a_patient_are_not_alike_both_folds_agree() -> None:
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(30), 10)
    labels = np.arange(30) % 2
    features = (rng.normal(size=(300, 4)) + labels[owner][:, None]).astype(np.float32)
    tiles = Tiles(features=features, owner=owner, labels=labels)
    claimed, result = (
        judge(tiles, folds=folds, n_folds=5, seed=0) for folds in ("tiles", "patients")
    )
    assert abs(claimed["tile_accuracy"] - result["tile_accuracy"]) < 0.05


def test_a_look_moves_all_tiles_of_a_patient_alike() -> None:
    tiles = patients_with_a_look_of_their_own(n_patients=4, n_tiles=5)
    plain = with_patient_effect(tiles, effect_sd=0.0, seed=0)
    moves = with_patient_effect(tiles, effect_sd=0.5, seed=0).features - plain.features
    assert np.allclose(moves[tiles.owner == 2], moves[tiles.owner == 2][0], atol=1e-5)
    assert not np.allclose(moves[tiles.owner == 2][0], moves[tiles.owner == 3][0], atol=0.1)
