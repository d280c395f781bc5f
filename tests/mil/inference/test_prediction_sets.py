"""Coverage of prediction sets over whole trainings, and sets as a bundle keeps them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from features.bags.h5 import find_bags, write_bag
from mil.calibration.priors import balanced
from mil.data.bags import load_patient_bags
from mil.data.cohort import read_cohort
from mil.data.splits import patient_folds
from mil.errors import RunError
from mil.evaluation.abstention import AbstentionPoint
from mil.heads.ensemble import predict_members
from mil.inference.bundle import ModelBundle, load_bundle
from mil.inference.output import write_details
from mil.inference.predict import predict
from mil.inference.prediction_sets import fit_sets
from mil.training.config import TrainConfig
from mil.training.cross_validation import cross_validate
from mil.training_run import train_run
from tests.benchmarks.coverage import Situation, simulate
from tests.fakes import make_bag, write_cohort
from tests.mil.training.test_ensemble import noise_cohort, states

FAST = TrainConfig(head="gated", n_members=2, n_components=8, fixed_steps=20, max_epochs=6)


def check_coverage(situation: Situation, *, n_cohorts: int) -> None:
    """Above what is guaranteed, and about what is aimed at, beyond what chance explains."""
    result = simulate(situation, n_cohorts=n_cohorts)
    for of_class, kept in zip(result["covered"], result["guaranteed"], strict=True):
        scatter = 4 * of_class["standard_error"]
        assert of_class["mean"] + scatter > kept
        assert of_class["mean"] + scatter > situation.coverage
    if situation.signal > 0:
        assert result["auroc"] > 0.7
        assert 0.2 < result["one_class"] < 0.9


def test_whole_trainings_cover_what_they_aim_at() -> None:
    check_coverage(Situation(n_patients=45, coverage=0.8), n_cohorts=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "situation",
    [
        Situation(),
        Situation(n_patients=30),
        Situation(n_patients=120),
        Situation(signal=0.0),
        Situation(coverage=0.8),
        Situation(centre_shift=0.5),
        Situation(head="gated"),
    ],
    ids=["usual", "few patients", "many patients", "no signal", "0.8", "centres", "gated"],
)
def test_whole_trainings_cover_what_they_aim_at_in_every_situation(situation: Situation) -> None:
    check_coverage(situation, n_cohorts=60)


def test_sets_are_those_of_the_heads_that_a_patient_was_kept_from() -> None:
    bags, cohort = noise_cohort(36, 2, shift=0.3)
    folds = patient_folds(cohort, n_folds=3, n_repeats=2, seed=0)
    oof = cross_validate(bags, cohort, folds, config=FAST, seed=0)
    sets = fit_sets(oof)
    assert [states(heads) for heads in sets.heads] == [states(oof.heads[0, k]) for k in range(3)]
    for index, name in enumerate(oof.patient_ids):
        heads = sets.heads[oof.fold[0, index]]
        np.testing.assert_allclose(
            predict_members(heads, bags.features[name])[0].mean(axis=0), oof.logits[0, index],
            atol=1e-6,
        )  # fmt: skip
    assert sets.conformal.counts.tolist() == [24, 12]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags, a run, and a table of new patients, a known one and one without slides."""
    folder = tmp_path_factory.mktemp("world")
    cohort = read_cohort(write_cohort(folder, n_patients=45, shift=0.5), labelled=True)
    bags = load_patient_bags(cohort, find_bags(folder / "bags"))
    train_run(
        cohort, bags, folder / "run", n_folds=3, n_repeats=1, seed=0, config=FAST,
        on_head=lambda done, total: None,
    )  # fmt: skip
    rows = ["image_id,patient_id", "001_0,001", "gone_0,gone"]
    for number in range(12):
        name = f"new{number}"
        write_bag(folder / "bags" / f"{name}.h5", make_bag(name, dim=16, shift=0.5 * (number % 2)))
        rows.append(f"{name},{name}")
    (folder / "test.csv").write_text("\n".join(rows) + "\n")
    return folder


def details(
    world: Path, run: ModelBundle, out: Path, *, coverage: float = 0.9, abstain: bool = False
):
    cohort = read_cohort(world / "test.csv", labelled=False)
    predictions = predict(
        run, cohort, world / "bags", prior=balanced(run.classes), coverage=coverage
    )
    write_details(out, predictions, classes=run.classes, abstain=abstain)
    return predictions, pd.read_csv(out, dtype=str, keep_default_na=False)


def test_details_give_the_classes_that_cannot_be_ruled_out(world: Path, tmp_path: Path) -> None:
    run = load_bundle(world / "run")
    run = replace(run, typicality=None)  # whoever is unlike the training patients has all classes
    predictions, table = details(world, run, tmp_path / "d.csv", coverage=0.6)
    assert "look_at" not in table
    assert table["set"].tolist()[:2] == ["CE|LAA", "CE|LAA"]  # seen in training, and no slide
    assert {"CE", "LAA"} <= set(table["set"])
    for prediction, cell in zip(predictions[2:], table["set"][2:], strict=True):
        tiles = load_patient_bags(
            read_cohort(world / "test.csv", labelled=False), find_bags(world / "bags")
        ).features[prediction.patient_id]
        left = run.sets.predict_set(run.sets.fold_logits(tiles), coverage=0.6)
        names = [name for name, is_left in zip(run.classes, left, strict=True) if is_left]
        assert cell == ("|".join(names) or "(none)")


def test_details_count_the_tiles_of_large_slides_in_full(world: Path, tmp_path: Path) -> None:
    run = load_bundle(world / "run")
    cohort = read_cohort(world / "test.csv", labelled=False)
    predicted = predict(run, cohort, world / "bags", prior=balanced(run.classes))
    large = replace(predicted[0], n_tiles={"a": 12_345, "b": 1_000_000})
    write_details(tmp_path / "d.csv", [large], classes=run.classes)
    assert pd.read_csv(tmp_path / "d.csv")["tiles_by_slide"].tolist() == ["a=12345 b=1000000"]


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.05, 0.95]])
def test_patients_below_the_chosen_confidence_are_marked_at_any_prior(
    world: Path, tmp_path: Path, prior: list[float]
) -> None:
    run = replace(load_bundle(world / "run"), typicality=None)
    cohort = read_cohort(world / "test.csv", labelled=False)
    plain = predict(run, cohort, world / "bags", prior=balanced(run.classes))
    confidence = [patient.probabilities.max() for patient in plain]
    threshold = float(np.median(confidence[2:]))  # after one of training and one without a slide
    point = AbstentionPoint(threshold=threshold, coverage=0.5, risk=0.1, risk_of_all=0.2)
    run = replace(run, abstention=point)
    marked = predict(run, cohort, world / "bags", prior=np.array(prior))
    write_details(tmp_path / "d.csv", marked, classes=run.classes, abstain=True)
    table = pd.read_csv(tmp_path / "d.csv", dtype=str, keep_default_na=False)
    expected = [value < threshold for value in confidence]
    expected[:2] = [True, True]
    assert table["look_at"].tolist() == [str(value).lower() for value in expected]
    assert len(set(expected[2:])) == 2


def test_patients_with_not_exactly_one_class_are_marked_and_keep_their_probabilities(
    world: Path, tmp_path: Path
) -> None:
    run = replace(load_bundle(world / "run"), abstention=None)
    marked, table = details(world, run, tmp_path / "a.csv", abstain=True)
    plain, _ = details(world, run, tmp_path / "b.csv")
    assert table["look_at"].tolist() == [
        str(cell not in ("CE", "LAA")).lower() for cell in table["set"]
    ]
    for one, other in zip(marked, plain, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_folds_by_centre_guarantee_nothing(world: Path) -> None:
    run = load_bundle(world / "run")
    assert run.guaranteed_coverage(0.9) is not None
    assert run.coverage_of_most_cohorts(0.9) is not None
    by_centre = replace(run, settings={**run.settings, "by": "centre"})
    assert by_centre.guaranteed_coverage(0.9) is None
    assert by_centre.coverage_of_most_cohorts(0.9) is None


@pytest.mark.parametrize("damage", ["absent", "no sets", "half", "numbers", "classes"])
def test_damaged_sets_are_a_damaged_run(world: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    heads = run / "fold_heads.safetensors"
    if damage == "absent":
        heads.unlink()
    elif damage == "no sets":
        (run / "sets.json").unlink()
    elif damage == "half":
        heads.write_bytes(heads.read_bytes()[:1000])
    elif damage == "numbers":
        tensors = load_file(heads)
        tensors["0.whitening.mean"][0] = float("nan")
        save_file(tensors, heads)
    else:
        (run / "sets.json").write_text('{"strangeness": {"CE": [[1.0]]}}')
    with pytest.raises(RunError, match="damaged"):
        load_bundle(run)
