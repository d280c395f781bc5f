"""Bags with augmented views of tiles: drawn in ensemble, averaged where asked for, never mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from features.bags.h5 import find_bags, read_bag, write_bag
from features.errors import BagError
from mil.base_learners.stack import predict_learner_views
from mil.calibration.priors import balanced
from mil.data.bags import PatientBags, load_patient_bags
from mil.data.cohort import Cohort, read_cohort
from mil.data.features import OnDiskFeatures
from mil.data.splits import patient_folds
from mil.errors import RunError
from mil.heads.ensemble import predict_members, predict_views
from mil.heads.random_streams import RandomStreams
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.predict import predict
from mil.training import ensemble
from mil.training.config import TrainConfig
from mil.training.cross_validation import OutOfFoldPredictions, cross_validate, fit_calibrator
from mil.training.ensemble import predict_batch, train_ensemble
from mil.training.feature_cache import FeatureCache
from mil.training_run import train_run
from tests.fakes import make_bag, write_cohort

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bags with views, a cohort and a finished run."""
    folder = tmp_path_factory.mktemp("views")
    write_cohort(folder, n_patients=30, shift=0.7, n_views=3)
    cohort, bags = load(folder)
    train_run(
        cohort, bags, folder / "run", n_folds=3, n_repeats=1, seed=0, config=FAST,
        on_head=lambda done, total: None,
    )  # fmt: skip
    return folder


def load(folder: Path, *, most_bytes: int | None = None) -> tuple[Cohort, PatientBags]:
    cohort = read_cohort(folder / "train.csv", labelled=True)
    return cohort, load_patient_bags(cohort, find_bags(folder / "bags"), most_bytes=most_bytes)


@pytest.fixture
def run(world: Path) -> ModelBundle:
    return load_bundle(world / "run")


def cross(cohort: Cohort, bags: PatientBags) -> OutOfFoldPredictions:
    folds = patient_folds(cohort, n_folds=3, n_repeats=1, seed=0)
    return cross_validate(bags, cohort, folds, config=FAST, seed=0)


def test_views_are_loaded_beside_the_tiles_they_are_of(world: Path) -> None:
    cohort, held = load(world)
    _, stored = load(world, most_bytes=0)
    assert isinstance(stored.views, OnDiskFeatures)
    assert held.n_versions == stored.n_versions == 4
    for patient in cohort.patients:
        name = patient.patient_id
        bags = [read_bag(world / "bags" / f"{slide}.h5") for slide in patient.slide_ids]
        expected = np.concatenate([bag.views for bag in bags if bag.views is not None])
        np.testing.assert_array_equal(held.views[name], expected)
        np.testing.assert_array_equal(stored.views[name], expected)
    part = held.subset(["003"])
    assert list(part.views) == ["003"]
    assert list(stored.subset(["003"]).views) == ["003"]


def test_what_is_learned_from_files_with_views_is_what_is_learned_from_memory(world: Path) -> None:
    held, stored = (cross(*load(world, most_bytes=most_bytes)) for most_bytes in (None, 0))
    assert held.logits.tobytes() == stored.logits.tobytes()
    assert held.averaged is not None
    assert stored.averaged is not None
    assert held.averaged.tobytes() == stored.averaged.tobytes()


def test_a_step_draws_every_look_at_a_tile_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    rows = torch.cartesian_prod(torch.arange(5.0), torch.arange(3.0))  # (tile, view)
    one = torch.tensor([2, 3])
    cache = FeatureCache(
        tiles=rows,
        starts=torch.tensor([0, 2]),
        lengths=one,
        labels=torch.tensor([0, 1]),
        n_versions=3,
    )
    both = FeatureCache.concatenate([cache, cache])
    batch = both.sample(torch.tensor([0, 1, 2, 3] * 500), 3, RandomStreams())
    tiles, views = batch.features[batch.mask].T
    assert set(tiles.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    shares = torch.bincount(views.long(), minlength=3) / len(views)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    plain = both.take_evenly(torch.tensor([0, 1]), 3)
    assert plain.features[plain.mask].tolist() == [[t, 0.0] for t in (0.0, 1.0, 2.0, 3.0, 4.0)]


def test_heads_learn_from_views_and_are_judged_on_plain_tiles(world: Path) -> None:
    cohort, bags = load(world)
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    alike = replace(
        bags, views={name: np.repeat(t[:, None], 3, axis=1) for name, t in bags.features.items()}
    )
    learned, unmoved = (
        train_ensemble(store, labels, n_classes=2, config=FAST, seed=(0,))
        for store in (bags, alike)
    )
    tiles = bags.features["003"]
    assert not np.array_equal(*(predict_members(e.heads, tiles)[0] for e in (learned, unmoved)))
    found, other = cross(cohort, bags), cross(cohort, alike)
    assert found.averaged is not None
    assert not np.array_equal(found.averaged, found.logits)
    # Views that equal their tile add nothing: the average is what the plain tile gives.
    np.testing.assert_allclose(other.averaged, other.logits, atol=1e-6)


def test_the_average_over_views_is_that_of_single_views(world: Path, run: ModelBundle) -> None:
    bag = read_bag(world / "bags" / "003_0.h5")
    assert bag.views is not None
    logits, attention = predict_views(run.heads, bag.features, bag.views)
    assert logits.shape == (4, 2, 2)
    assert attention.shape == (4, 2, len(bag.features))
    np.testing.assert_array_equal(logits[0], predict_members(run.heads, bag.features)[0])
    np.testing.assert_array_equal(logits[2], predict_members(run.heads, bag.views[:, 1])[0])


def test_many_patients_at_once_are_told_what_each_is_told_alone(
    world: Path, run: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "_TILES_PER_PREDICTION", 30)
    _, bags = load(world)
    names = bags.nonempty()
    together = predict_batch(run.heads, bags, names, device=torch.device("cpu"))
    alone = [predict_views(run.heads, bags.features[name], bags.views[name])[0] for name in names]
    np.testing.assert_allclose(together, np.stack(alone, axis=2), rtol=1e-4, atol=1e-5)


def test_each_calibrator_is_fitted_on_what_inference_gives(world: Path, run: ModelBundle) -> None:
    oof = cross(*load(world))
    view_averaged = oof.view_averaged()
    assert view_averaged is not None
    rows = np.ones(oof.fold.shape, bool)
    assert run.view_calibrator is not None
    assert run.view_calibrator.as_dict() == fit_calibrator(view_averaged, rows).as_dict()
    assert run.calibrator.as_dict() == fit_calibrator(oof, rows).as_dict()
    assert run.view_calibrator.as_dict() != run.calibrator.as_dict()


def test_probabilities_are_of_plain_tiles_or_of_all_views(world: Path, run: ModelBundle) -> None:
    cohort = read_cohort(world / "train.csv", labelled=False)
    prior = balanced(run.classes)
    plain = predict(run, cohort, world / "bags", prior=prior)
    averaged = predict(run, cohort, world / "bags", prior=prior, tta=True)
    name = cohort.patients[1].slide_ids[0]
    bag = read_bag(world / "bags" / f"{name}.h5")
    assert bag.views is not None
    logits, _ = predict_learner_views(run.heads, run.base_learners, bag.features, bag.views)
    expected = (
        run.calibrator.predict_proba(logits[0].mean(axis=0, keepdims=True))[0],
        run.with_view_calibrator().calibrator.predict_proba(logits.mean(axis=(0, 1))[None])[0],
    )
    np.testing.assert_allclose(plain[1].probabilities, expected[0])
    np.testing.assert_allclose(averaged[1].probabilities, expected[1])
    assert sum(averaged[0].attention_share.values()) == pytest.approx(1.0)


def test_prediction_sets_are_of_plain_tiles_whether_views_are_averaged_or_not(
    world: Path, run: ModelBundle
) -> None:
    cohort = read_cohort(world / "train.csv", labelled=False)
    unseen = replace(run, training_slides=())
    plain, averaged = (
        predict(unseen, cohort, world / "bags", prior=balanced(run.classes), tta=tta)
        for tta in (False, True)
    )
    sets = [prediction.prediction_set for prediction in plain]
    assert len(set(sets)) > 1
    assert [prediction.prediction_set for prediction in averaged] == sets


def test_the_bundle_says_that_views_were_there(world: Path, run: ModelBundle) -> None:
    assert run.settings["n_views"] == run.fingerprint.n_views == 3
    scores = json.loads((world / "run" / "scores.json").read_text())
    assert 0 < scores["views averaged"]["weighted_log_loss"]["value"] < 1
    assert "3 augmented views" in (world / "run" / "MODEL_CARD.md").read_text()
    assert "mil infer --tta" in (world / "run" / "notes.json").read_text()


def test_bags_with_and_without_views_are_neither_trained_on_together_nor_judged(
    world: Path, run: ModelBundle, tmp_path: Path
) -> None:
    write_bag(tmp_path / "003_0.h5", make_bag("003_0", n_tiles=12, dim=16))
    cohort = read_cohort(world / "train.csv", labelled=True)
    paths = {**find_bags(world / "bags"), "003_0": tmp_path / "003_0.h5"}
    with pytest.raises(BagError, match="made with no --views; expected --views"):
        load_patient_bags(cohort, paths)
    with pytest.raises(BagError, match=r"made with no --views; expected --views .* as in the run"):
        predict(run, cohort, tmp_path, prior=balanced(run.classes))


def test_a_run_without_views_has_none_to_average(world: Path, run: ModelBundle) -> None:
    cohort = read_cohort(world / "train.csv", labelled=False)
    bare = replace(run, view_calibrator=None)
    with pytest.raises(RunError, match="trained on bags without views"):
        predict(bare, cohort, world / "bags", prior=balanced(run.classes), tta=True)
