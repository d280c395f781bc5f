"""Contributions of tiles and learners add up to what the run predicts, in every kind of run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from features.bags.h5 import find_bags, read_bag, write_bag
from features.filters.classifier import write_filter
from mil.base_learners import BASE_LEARNERS, learner_key, learner_names
from mil.calibration import StackedPlattScaling
from mil.calibration.priors import balanced
from mil.data.cohort import read_cohort
from mil.inference.attention import Explanation, explain_patients
from mil.inference.attention_export import tile_table
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.contributions import learner_weights
from mil.inference.output import write_details
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.fakes import make_bag, make_filter, make_series

KINDS = (
    "two classes",
    *(pytest.param(kind, marks=pytest.mark.ci) for kind in ("three classes", "filter", "series")),
    "views",
)
QUICK = TrainConfig(n_members=2, n_components=6, fixed_steps=8)


def make_world(folder: Path, kind: str, *, n_patients: int = 18) -> Path:
    """Write bags and a table, and train a stack on them."""
    (folder / "bags").mkdir()
    n_classes = 3 if kind == "three classes" else 2
    rows = ["image_id,patient_id,label"]
    for number in range(n_patients + 1):
        for image in range(1 + (number % 6 == 0)):
            name = f"{number:02d}_{image}"
            if kind == "series":
                bag = make_series(name, n_images=7, dim=12)
            else:
                bag = make_bag(name, n_tiles=7 + image, dim=12, n_views=2 * (kind == "views"))
            bag.features[:, number % n_classes] += np.float16(1.2)
            if kind == "filter":
                bag.features[:2] += np.float16(3)
            write_bag(folder / "bags" / f"{name}.h5", replace(bag))
            rows.append(f"{name},{number:02d},{'abc'[number % n_classes]}")
    new = [row for row in rows if row.split(",")[1] == f"{n_patients:02d}"]
    (folder / "new.csv").write_text("\n".join([rows[0], *new]) + "\n")
    (folder / "train.csv").write_text("\n".join(row for row in rows if row not in new) + "\n")
    given = None
    if kind == "filter":
        given = folder / "filter.safetensors"
        write_filter(given, make_filter(n_slides=4, dim=12))
    train_run(
        folder / "train.csv", folder / "bags", folder / "run", config=QUICK, n_folds=2,
        tile_filter=given, report=False,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), request.param)


def explain(
    world: Path, *, bags: Path | None = None, tta: bool = False
) -> tuple[ModelBundle, Explanation]:
    run = load_bundle(world / "run")
    cohort = read_cohort(world / "new.csv", labelled=False)
    prior = balanced(run.classes)
    (explanation,) = explain_patients(run, cohort, bags or world / "bags", prior=prior, tta=tta)
    return (run.with_view_calibrator() if tta else run), explanation


def check(run: ModelBundle, explanation: Explanation) -> None:
    """Tiles add up to learners, and learners to the probabilities."""
    assert isinstance(run.calibrator, StackedPlattScaling)
    assert [one.name for one in explanation.learners] == list(learner_names("stack"))
    whole = [one.name for one in explanation.learners if one.of_tiles is not None]
    assert whole == ["gated", "mean", "projections", "mixture"]
    of_slides = {
        name: np.concatenate([slide.by_learner[name] for slide in explanation.slides])
        for name in whole
    }
    for one in explanation.learners:
        if one.of_tiles is not None:
            np.testing.assert_allclose(one.of_tiles.sum(axis=0), one.logits, atol=1e-5)
            np.testing.assert_array_equal(of_slides[one.name], one.of_tiles)
    parts = np.stack([one.part for one in explanation.learners])
    probabilities = softmax(parts.sum(axis=0) + run.calibrator.bias_)
    np.testing.assert_allclose(probabilities, explanation.prediction.probabilities, atol=1e-6)
    tile_wise = [one.part for one in explanation.learners if one.of_tiles is not None]
    np.testing.assert_allclose(explanation.logits, np.sum(tile_wise, axis=0), atol=1e-5)
    for name, part in explanation.prediction.learner_parts.items():
        np.testing.assert_allclose(part, parts[learner_names("stack").index(name)], atol=1e-6)
    assert sum(one.weight for one in explanation.learners) == pytest.approx(1)
    assert learner_weights(run) == {one.name: one.weight for one in explanation.learners}
    assert sum(len(slide.attention) for slide in explanation.slides) == len(of_slides["gated"])


def test_tiles_add_up_to_learners_and_learners_to_the_prediction(world: Path) -> None:
    run, explanation = explain(world)
    check(run, explanation)
    table = pd.concat([tile_table(slide, classes=run.classes) for slide in explanation.slides])
    for one in explanation.learners:
        columns = [f"{learner_key(one.name)}_{name}" for name in run.classes]
        if one.of_tiles is None:
            assert not set(columns) & set(table)
        else:
            np.testing.assert_allclose(table[columns].sum(), one.logits, atol=1e-5)
    totals = table[[f"contribution_{name}" for name in run.classes]].sum()
    np.testing.assert_allclose(totals, explanation.logits, atol=1e-5)
    if run.fingerprint.n_views:
        with_views = explain(world, tta=True)
        check(*with_views)
        assert not np.allclose(with_views[1].learners[0].logits, explanation.learners[0].logits)
    if run.tile_filter is not None:
        assert explanation.n_tiles == sum(  # two tiles of each slide are dropped
            len(read_bag(path).features) - 2
            for name, path in find_bags(world / "bags").items()
            if name in explanation.prediction.slide_ids
        )


def test_details_hold_the_share_of_each_learner(world: Path, tmp_path: Path) -> None:
    run = load_bundle(world / "run")
    predictions = predict(run, read_cohort(world / "new.csv", labelled=False), world / "bags")
    write_details(tmp_path / "d.csv", predictions, classes=run.classes)
    table = pd.read_csv(tmp_path / "d.csv")
    shares = table[[f"logit_share_{learner_key(name)}" for name in ("gated", *BASE_LEARNERS)]]
    np.testing.assert_allclose(shares.abs().sum(axis=1), 1, atol=1e-6)


def test_a_patient_out_of_range_has_no_parts(world: Path, tmp_path: Path) -> None:
    for name in ("18_0", "18_1"):
        bag = read_bag(world / "bags" / f"{name}.h5")
        bag.features[:] *= np.float16(500)
        write_bag(tmp_path / f"{name}.h5", bag)
    _, explanation = explain(world, bags=tmp_path)
    assert explanation.prediction.status == "out_of_range"
    assert explanation.learners == ()
    assert explanation.prediction.learner_parts == {}
    assert all(slide.contributions is None for slide in explanation.slides)
