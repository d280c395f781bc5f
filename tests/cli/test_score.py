from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from tests.cli.running import mil
from tests.fakes import real_data


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Labels, and overconfident predictions of slides; every fourth patient has two slides."""
    rng = np.random.default_rng(0)
    labels, predictions = ["image_id,patient_id,label"], ["image_id,p"]
    for patient in range(60):
        label = patient % 3 // 2
        for slide in range(1 + (patient % 4 == 0)):
            logit = 4 * (rng.normal() + label - 0.5)
            labels.append(f"{patient}_{slide},p{patient},{('CE', 'LAA')[label]}")
            predictions.append(f"{patient}_{slide},{1 / (1 + np.exp(-logit)):.6f}")
    for name, rows in (("labels.csv", labels), ("p.csv", predictions)):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    return tmp_path / "p.csv", tmp_path / "labels.csv"


def score(tables: tuple[Path, Path], *more: object) -> Result:
    predictions, labels = tables
    return mil(
        "score", predictions, "--class", "LAA", "--cohort", labels, "--resamples", 100, *more
    )


def test_json_holds_calibrated_and_raw_scores(tables: tuple[Path, Path]) -> None:
    data = json.loads(score(tables, "--calibrate", "--repeats", 4, "--json").stdout)
    assert data["calibration"]["kind"] == "cross-fitted"
    assert (data["calibration"]["repeats"], data["calibration"]["folds"]) == (4, 5)
    assert "was fitted on other patients" in data["calibration"]["note"]
    (file,) = data["files"]
    assert file["calibrators"] == {"shrunken_platt": 20}
    raw, calibrated = (file[kind]["weighted_log_loss"] for kind in ("raw", "calibrated"))
    assert calibrated["value"] < raw["value"]
    assert calibrated["interval"][0] < calibrated["value"] < calibrated["interval"][1]
    assert file["calibrated"].keys() == file["raw"].keys()


def test_nothing_is_calibrated_unasked(tables: tuple[Path, Path]) -> None:
    data = json.loads(score(tables, "--json").stdout)
    assert "calibration" not in data
    assert set(data["files"][0]) == {"name", "raw"}


def test_tables_state_that_scores_are_cross_fitted(tables: tuple[Path, Path]) -> None:
    result = score(
        tables, "--calibrate", "--calibrator", "temperature", "--repeats", 1, "--folds", 3
    )
    assert result.exit_code == 0, result.output
    for words in ("calibrated", "Calibrated by temperature", "scores are cross-fitted", "slope"):
        assert words in result.output


def test_reliability_is_printed_and_given_as_json(tables: tuple[Path, Path]) -> None:
    printed = score(tables, "--reliability").output
    for words in ("reliability of LAA", "promised", "biased upwards", "Brier of LAA"):
        assert words in printed
    data = json.loads(score(tables, "--reliability", "--calibrate", "--json").stdout)
    described = data["files"][0]["reliability"]
    assert set(described) == {"raw", "calibrated"}
    assert sum(row["n_patients"] for row in described["raw"]["classes"]["LAA"]["bins"]) == 60
    parts = described["calibrated"]["classes"]["LAA"]["brier"]
    assert parts["brier"] == pytest.approx(
        parts["reliability"] - parts["resolution"] + parts["uncertainty"] + parts["within_bins"]
    )


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--calibrator", "beta"], 2, "needs --calibrate"),
        (["--calibrate", "--calibrator", "isotonic"], 1, "calibrator 'isotonic': unknown"),
        (["--calibrate", "--calibrator", "dirichlet"], 1, "moved to"),
        (["--calibrate", "--folds", "1"], 2, "--folds"),
    ],
)
def test_faulty_options_of_calibration_are_refused(
    tables: tuple[Path, Path], more: list[str], code: int, message: str
) -> None:
    result = score(tables, *more)
    assert result.exit_code == code
    assert message in result.output


@real_data
def test_published_predictions_are_calibrated_by_one_command(mil_data: Path) -> None:
    strip = mil_data / "strip"
    result = mil(
        "score", *sorted((strip / "oof").glob("*.csv")), "--class", "LAA", "--cohort",
        strip / "train.csv", "--calibrate", "--json", "--resamples", 100,
    )  # fmt: skip
    data = json.loads(result.stdout)
    *models, mean = (file["calibrated"]["weighted_log_loss"]["value"] for file in data["files"])
    assert len(models) == 5
    assert max(models) <= 0.673
    assert mean <= 0.658
