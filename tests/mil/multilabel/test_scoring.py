from __future__ import annotations

import numpy as np
import pytest

from features.errors import MilError
from mil.evaluation.scoring import ScoreSettings
from mil.multilabel.metrics import shift_labels
from mil.multilabel.scoring import LabelScores, average_labels, score_labels
from mil.multilabel.table import LabelTable, parse_label_prior
from tests.mil.multilabel.test_splits import table_of

RNG = np.random.default_rng(0)
TRUTH = (RNG.random((150, 2)) < [0.5, 0.2]).astype(np.int64)
SHARES = TRUTH.mean(axis=0)
CALIBRATED = shift_labels(
    1 / (1 + np.exp(-2 * RNG.normal(2.0 * TRUTH - 1, 1))), old=np.full(2, 0.5), new=SHARES
)


def score(proba: np.ndarray, *, calibrator: str | None, file_prior: np.ndarray) -> LabelScores:
    table: LabelTable = table_of(TRUTH)
    settings = ScoreSettings(
        file_prior=np.full(2, 0.5), prior=np.full(2, 0.5), calibrator=calibrator, n_folds=5,
        n_repeats=3, reliability=False, n_resamples=100, seed=0,
    )  # fmt: skip
    return score_labels(proba, table, settings, file_prior=file_prior, prior=SHARES)


def test_calibration_mends_each_label_that_is_too_sure_of_itself() -> None:
    odds = (CALIBRATED / (1 - CALIBRATED)) ** 5
    scores = score(odds / (1 + odds), calibrator="platt", file_prior=SHARES)
    assert scores.losses["calibrated"].value < 0.75 * scores.losses["raw"].value
    for of_label in scores.labels.values():
        raw, calibrated = of_label.scores["raw"], of_label.scores["calibrated"]
        assert calibrated["weighted_log_loss"].value < raw["weighted_log_loss"].value
        assert raw["calibration_slope"].value < 0.5 < calibrated["calibration_slope"].value < 2
    plain = scores.as_dict()["labels"]["label0"]  # type: ignore[index]
    assert plain["calibrators"] == {"shrunken_platt": 15}


def test_without_calibration_the_file_is_scored_as_it_stands() -> None:
    scores = score(CALIBRATED, calibrator=None, file_prior=SHARES)
    assert list(scores.losses) == ["raw", "cohort prior"]
    assert list(scores.labels["label1"].scores) == ["raw"]


def test_a_file_for_other_shares_is_shifted_to_those_of_the_patients() -> None:
    even = np.full(2, 0.5)
    moved = shift_labels(CALIBRATED, old=SHARES, new=even)
    one = score(CALIBRATED, calibrator=None, file_prior=SHARES).losses["raw"]
    other = score(moved, calibrator=None, file_prior=even).losses["raw"]
    assert other.value == pytest.approx(one.value)


def test_several_files_are_averaged_a_label() -> None:
    proba = [np.array([[0.2, 0.9]]), np.array([[0.4, 0.1]])]
    np.testing.assert_allclose(average_labels(proba, how="probability"), [[0.3, 0.5]])
    odds = np.sqrt(np.array([0.25 * 2 / 3, 1.0]))
    np.testing.assert_allclose(average_labels(proba, how="logit"), [odds / (1 + odds)])


def test_shares_are_named_or_given() -> None:
    assert parse_label_prior("cohort", ["a", "b"], cohort=SHARES) is SHARES
    given = parse_label_prior("b=0.1, a=0.3", ["a", "b"], cohort=SHARES)
    np.testing.assert_allclose(given, [0.3, 0.1])
    with pytest.raises(MilError, match="no shares of all labels"):
        parse_label_prior("a=0.3", ["a", "b"], cohort=SHARES)
