"""The suite of learners keeps its promises, on next to nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mil.evaluation.metrics import weighted_log_loss
from mil.inference.bundle import load_bundle
from mil.inference.predict import predict
from mil.training.config import TrainConfig
from mil.training_run import train_run
from tests.benchmarks import learner_suite
from tests.benchmarks.learner_suite import (
    KINDS,
    METHODS,
    Score,
    main,
    make_world,
    measure,
    measure_repeatedly,
)
from tests.benchmarks.test_mil_tables import write_table

SMALL = partial(make_world, n_new=12)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_suite, "make_world", SMALL)
    monkeypatch.setattr(
        learner_suite, "TrainConfig", partial(TrainConfig, n_members=1, fixed_steps=3)
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "weak"])
def test_new_patients_are_none_of_those_trained_on(kind: str) -> None:
    world = SMALL(kind, 1)
    assert world.new is not None
    assert len(world.new.patients) == 12
    assert not set(world.new.patient_ids) & set(world.train.patient_ids)
    assert set(world.features) == {*world.new.patient_ids, *world.train.patient_ids}
    if kind.isdigit():
        assert len(world.train.patients) == int(kind)


def test_larger_cohorts_of_a_seed_contain_the_smaller_and_share_the_new_patients() -> None:
    small, large = SMALL("30", 1), SMALL("120", 1)
    assert large.train.patients[:30] == small.train.patients
    assert large.new is not None
    assert small.new is not None
    assert large.new.patients == small.new.patients
    for name, tiles in small.features.items():
        np.testing.assert_array_equal(tiles, large.features[name])


@pytest.mark.parametrize(("kind", "share"), [("dense", 1.0), ("20%", 0.2), ("5%", 0.05)])
def test_the_kind_says_which_tiles_of_the_second_class_differ(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = SMALL(kind, 3)
    generate = learner_suite.generate
    monkeypatch.setattr(
        learner_suite, "generate", lambda **given: generate(**{**given, "signal": 0.0})
    )
    plain = SMALL(kind, 3)
    for name, label in zip(world.train.patient_ids, world.train.labels.tolist(), strict=True):
        tiles = world.features[name]
        n_moved = int((tiles != plain.features[name]).any(axis=1).sum())
        assert n_moved == (max(1, round(share * len(tiles))) if label else 0)


def test_kinds_of_one_seed_have_no_tiles_in_common() -> None:
    tiles = [SMALL(kind, 1).features["0000"][:5, :5] for kind in ("dense", "20%", "none", "30")]
    for index, own in enumerate(tiles):
        assert all(not np.isin(own, other).all() for other in tiles[:index])


def test_scores_are_those_of_a_run_and_of_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite computes baselines by itself, to deploy them; they are those of the report."""
    runs = []

    def keep_run(*arguments: object, **options: object) -> object:
        runs.append(train_run(*arguments, **options))  # type: ignore[arg-type]
        return runs[-1]

    monkeypatch.setattr(learner_suite, "train_run", keep_run)
    config = TrainConfig(n_members=1, fixed_steps=3)
    scores = {score.method: score for score in measure(SMALL("30", 1), config=config)}
    assert tuple(scores) == METHODS
    assert [run.head for run in runs] == [config.head]
    for method in METHODS[2:]:
        expected = runs[0].scores[method]
        assert scores[method].weighted_log_loss == pytest.approx(
            expected["weighted_log_loss"].value, abs=1e-6
        )
        assert scores[method].auroc == pytest.approx(expected["auroc"].value)
    assert scores["default"].auroc == runs[0].scores["calibrated"]["auroc"].value


def test_the_attention_of_the_stack_is_a_run_with_gated_heads(tmp_path: Path) -> None:
    """No second training is needed for the row ``gated``: seeds, folds and heads are the same."""
    config = TrainConfig(n_members=2, fixed_steps=3)
    world = SMALL("30", 4)
    assert world.new is not None
    (score,) = measure(world, methods=("gated",), config=config)
    learner_suite._write_bags(world, tmp_path / "bags")
    run = train_run(
        world.train, tmp_path / "bags", tmp_path / "run", config=replace(config, head="gated"),
        n_resamples=2, report=False,
    )  # fmt: skip
    expected = run.scores["calibrated"]["weighted_log_loss"].value
    assert score.weighted_log_loss == pytest.approx(expected, abs=1e-6)
    predicted = predict(load_bundle(tmp_path / "run"), world.new, tmp_path / "bags")
    proba = np.stack([patient.probabilities for patient in predicted])
    expected = weighted_log_loss(proba, world.new.labels)
    assert score.new_patients_log_loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("_quick")
def test_json_is_a_list_of_rows_of_cohorts_and_methods(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "musk1.npz")
    assert main([str(table), "--kinds", "30", "--seeds", "5-6", "--repeats", "1", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [(row["cohort"], row["kind"], row["method"]) for row in rows] == [
        (cohort, kind, method)
        for cohort, kind in (("30-5", "30"), ("30-6", "30"), ("musk1", "table"))
        for method in METHODS
    ]
    assert all(set(row) == set(Score.__dataclass_fields__) for row in rows)
    assert all(0 < row["weighted_log_loss"] < 2 for row in rows)
    assert all((row["new_patients_log_loss"] is None) == (row["kind"] == "table") for row in rows)
    assert "1 of 3: 30-5" in captured.err


def test_a_score_is_the_mean_over_divisions_into_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SMALL("30", 5)
    methods = ("mean + logistic", "min-max logistic")
    monkeypatch.setattr(learner_suite, "measure", partial(measure, methods=methods))
    one, other = (measure(world, methods=methods, seed=seed) for seed in (0, 1))
    assert one != other
    for mean, a, b in zip(measure_repeatedly(world, n_repeats=2), one, other, strict=True):
        assert mean.method == a.method == b.method
        for name in ("weighted_log_loss", "auroc", "new_patients_log_loss"):
            expected = (getattr(a, name) + getattr(b, name)) / 2
            assert getattr(mean, name) == pytest.approx(expected)


def test_differences_are_paired_by_cohort_and_taken_to_the_best_of_each() -> None:
    losses = {"default": (0.5, 0.6), "gated": (0.4, 0.9), "mean + logistic": (0.7, 0.5)}
    scores = [
        Score(cohort=str(cohort), kind="30", method=method, weighted_log_loss=loss, auroc=0.5,
              new_patients_log_loss=None)
        for method, of_cohorts in {**losses, "min-max logistic": (0.8, 0.8)}.items()
        for cohort, loss in enumerate(of_cohorts)
    ]  # fmt: skip
    text = learner_suite.format_scores(scores)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    assert "oracle +0.100 ± 0.000 (+0.100)" in lines
    assert "best baseline -0.050 ± 0.150 (+0.100)" in lines
    assert "gated -0.100 ± 0.200 (+0.100)" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kinds", "dens"], "'dens' is none of dense, 20%, 5%"),
        (["--seeds", "9-5"], "'9-5' is not FIRST-LAST"),
        (["--seeds", "x"], "'x' is not FIRST-LAST"),
        (["--repeats", "0"], "--repeats 0: expected 1 or more"),
    ],
)
def test_wrong_usage_is_told(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err


def test_a_deployed_default_is_measured_on_new_patients_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def keep_predictions(*arguments: object, **options: object) -> object:
        asked.append(predict(*arguments, **options))  # type: ignore[arg-type]
        return asked[-1]

    monkeypatch.setattr(learner_suite, "predict", keep_predictions)
    world = SMALL("30", 2)
    (score,) = measure(world, methods=("default",), config=TrainConfig(n_members=1, fixed_steps=3))
    assert world.new is not None
    assert [patient.patient_id for patient in asked[0]] == list(world.new.patient_ids)
    assert not any(patient.matched_training_patient for patient in asked[0])
    proba = np.stack([patient.probabilities for patient in asked[0]])
    assert score.new_patients_log_loss == weighted_log_loss(proba, world.new.labels)
