from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from tests.cli.running import mil, mil_ok
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


def test_the_file_of_a_run_leads_to_its_report_and_others_to_new_patients(
    tables: tuple[Path, Path],
) -> None:
    page = tables[0].parent / "report.html"
    page.touch()
    assert f"Next: mil evaluate RUN --cohort {tables[1]}" in score(tables).output
    of_run = tables[0].rename(tables[0].parent / "out_of_fold.csv")
    assert f"Next: open {page}" in score((of_run, tables[1])).output


def test_no_command_is_proposed_that_refuses_so_few_patients(tmp_path: Path) -> None:
    cohort, *predictions = (tmp_path / f"{name}.csv" for name in ("labels", "first", "second"))
    rows = [(f"p{number}", ("CE", "LAA")[number % 2]) for number in range(9)]
    cohort.write_text("case,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    for path in predictions:
        path.write_text("patient_id,CE,LAA\n" + "".join(f"{name},.6,.4\n" for name, _ in rows))
    columns = ["--column", "patient=case", "--column", "slide=case"]
    for n_files in (1, 2):
        result = mil_ok("score", *predictions[:n_files], "--cohort", cohort, *columns)
        proposed = result.stderr.split("Next: ")[1].split()
        assert proposed[:2] == ["mil", "describe"]
        mil_ok(*proposed[1:], "--out", tmp_path / "page.html")


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


@pytest.fixture
def three_classes(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions of A, B and C for patients of all three, with C in its own centre."""
    rng = np.random.default_rng(1)
    labels, predictions = ["image_id,patient_id,label"], ["patient_id,A,B,C"]
    for patient in range(30):
        label = patient % 3
        p = rng.dirichlet(np.ones(3) + 2 * np.eye(3)[label])
        labels.append(f"s{patient},p{patient},{'ABC'[label]}")
        predictions.append(f"p{patient},{p[0]:.6f},{p[1]:.6f},{p[2]:.6f}")
    (tmp_path / "labels.csv").write_text("\n".join(labels) + "\n")
    (tmp_path / "p.csv").write_text("\n".join(predictions) + "\n")
    return tmp_path / "p.csv", tmp_path / "labels.csv"


@pytest.mark.parametrize("column", ["patient_id", "image_id", "slide_id"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_part_without_a_class_is_scored_with_that_class_in_the_sums(
    three_classes: tuple[Path, Path], tmp_path: Path, column: str, cut: bool
) -> None:
    predictions, labels = three_classes
    of = {"patient_id": "p{}", "image_id": "s{}.tif", "slide_id": "s{}"}[column]
    part = [number for number in range(30) if number % 3 < 2]
    rows = [column, *(of.format(number) for number in part)]
    (tmp_path / "part.csv").write_text("\n".join(rows))
    if cut:  # to predictions of these patients only
        header, *lines = predictions.read_text().splitlines()
        predictions.write_text("\n".join([header, *(lines[number] for number in part)]))
    result = mil(
        "score", predictions, "--cohort", labels, "--patients", tmp_path / "part.csv",
        "--resamples", 100, "--json",
    )  # fmt: skip
    assert "p.csv predicts C, which no scored patient has" in result.stderr
    data = json.loads(result.stdout)
    assert (data["n_patients"], data["n_patients_left_out"]) == (20, 10)
    assert data["class_counts"] == {"A": 10, "B": 10}
    table = pd.read_csv(predictions).set_index("patient_id")
    losses = [-np.log(table.loc[f"p{n}", "ABC"[n % 3]]) for n in part]
    expected = (np.mean(losses[::2]) + np.mean(losses[1::2])) / 2
    assert data["files"][0]["raw"]["weighted_log_loss"]["value"] == pytest.approx(expected)
    # Labels that never name the class lead to the same scores.
    two = [line for line in labels.read_text().splitlines() if not line.endswith("C")]
    labels.write_text("\n".join(two))
    if cut:
        again = mil("score", predictions, "--cohort", labels, "--resamples", 100, "--json")
        assert json.loads(again.stdout)["files"] == data["files"]


def test_predicted_classes_written_as_numbers_are_called_that(tables: tuple[Path, Path]) -> None:
    words = "every probability is 0 or 1, as of predicted classes"
    assert words not in " ".join(score(tables).stderr.split())
    rows = pd.read_csv(tables[1], dtype=str).drop_duplicates("patient_id")
    rows.assign(p=1 * (rows["label"] == "LAA"))[["patient_id", "p"]].to_csv(tables[0], index=False)
    result = score(tables)
    assert result.exit_code == 0
    assert words in " ".join(result.stderr.split())


def test_rows_that_do_not_sum_to_one_are_told_and_scored_as_rescaled(
    three_classes: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, labels = three_classes
    command = ["score", tmp_path / "q.csv", "--cohort", labels, "--resamples", 100, "--json"]
    table = pd.read_csv(predictions).set_index("patient_id")
    table.to_csv(tmp_path / "q.csv")
    whole = mil(*command)
    assert whole.exit_code == 0
    assert "sum to 1" not in whole.stderr
    table.iloc[:3] *= 0.9
    table.to_csv(tmp_path / "q.csv")
    told = mil(*command)
    assert told.exit_code == 0
    assert "3 rows whose probabilities do not sum to 1 (all rows: 0.9 to 1)" in " ".join(
        told.stderr.split()
    )
    first, second = (
        json.loads(result.stdout)["files"][0]["raw"]["weighted_log_loss"]["value"]
        for result in (whole, told)
    )
    assert first == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda table: table * 100, "Divide percentages by 100."),
        (lambda table: table.map("{:.0%}".format), "Divide percentages by 100."),
        (lambda table: table.map("{:.3f}".format).map(lambda x: x.replace(".", ",")),
         "Write it with a decimal point"),
        (lambda table: table.rename(index="x{}".format),
         "No id is in both: name them as the labels do, such as p0, p1, p10"),
    ],
)  # fmt: skip
def test_what_to_do_about_odd_predictions_is_said(
    change: Callable[[pd.DataFrame], pd.DataFrame], advice: str,
    three_classes: tuple[Path, Path], tmp_path: Path,
) -> None:  # fmt: skip
    predictions, labels = three_classes
    change(pd.read_csv(predictions).set_index("patient_id")).to_csv(tmp_path / "q.csv")
    result = mil("score", tmp_path / "q.csv", "--cohort", labels)
    assert result.exit_code == 1
    assert advice in " ".join(result.stderr.split())


def test_a_part_of_one_class_or_of_strangers_is_refused(
    three_classes: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, labels = three_classes
    for rows, message in (
        ("patient_id\np0\np3", "2 patients, all of class 'A'"),
        ("patient_id\np0\np99", "1 of its ids are not in"),
        ("id\np0", "patients or slides"),
    ):
        (tmp_path / "part.csv").write_text(rows)
        result = mil("score", predictions, "--cohort", labels, "--patients", tmp_path / "part.csv")
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1


def test_files_that_lack_patients_lead_to_the_option_that_scores_a_part(
    three_classes: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, labels = three_classes
    predictions.write_text("\n".join(predictions.read_text().splitlines()[:20]))
    assert "with --patients" in mil("score", predictions, "--cohort", labels).output
    # The file itself is such a table.
    result = mil("score", predictions, "--cohort", labels, "--patients", predictions)
    assert result.exit_code == 0, result.output


def test_precision_recall_and_f1_are_printed_and_given_as_json(
    tables: tuple[Path, Path],
) -> None:
    printed = score(tables).output
    for words in ("most likely class", "precision", "recall", "F1", "macro", "weighted"):
        assert words in printed
    raw = json.loads(score(tables, "--json").stdout)["files"][0]["raw"]
    classes = raw["classes"]
    assert set(classes) == {"CE", "LAA"}
    assert {name: of["n_patients"] for name, of in classes.items()} == {"CE": 40, "LAA": 20}
    assert raw["f1_macro"]["value"] == pytest.approx(
        np.mean([of["f1"]["value"] for of in classes.values()])
    )
    low, high = raw["recall_weighted"]["interval"]
    recall = raw["recall_weighted"]["value"]
    assert recall == pytest.approx(raw["accuracy"]["value"])
    assert low < recall < high


def test_a_single_kind_of_scores_is_not_called_raw(tables: tuple[Path, Path]) -> None:
    assert "raw" not in score(tables).output
    both = score(tables, "--calibrate", "--repeats", 1).output
    assert "as in the file" in both


def test_a_part_is_scored_with_several_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (24, 2))
    labels = [f"s{n},p{n},{a},{b}" for n, (a, b) in enumerate(truth)]
    rows = [f"p{n},{p[0]:.4f},{p[1]:.4f}" for n, p in enumerate(rng.uniform(size=(24, 2)))]
    for name, header, lines in (
        ("labels.csv", "image_id,patient_id,x,y", labels),
        ("p.csv", "patient_id,x,y", rows),
        ("part.csv", "patient_id,x,y", rows[:16]),
    ):
        (tmp_path / name).write_text("\n".join([header, *lines]))
    command = ["score", tmp_path / "p.csv", "--cohort", tmp_path / "labels.csv", "--labels", "x,y"]
    part = [*command, "--patients", tmp_path / "part.csv", "--resamples", 100]
    data = json.loads(mil(*part, "--json").stdout)
    assert (data["n_patients"], data["n_patients_left_out"]) == (16, 8)
    assert data["label_counts"]["x"] == truth[:16, 0].sum()
    assert "having the label" in mil(*part).output


def test_exchanged_columns_of_classes_are_warned_of(tmp_path: Path) -> None:
    rows = [f"p{number},{'ab'[number % 2]}" for number in range(20)]
    labels, predicted = tmp_path / "labels.csv", tmp_path / "p.csv"
    labels.write_text("\n".join(["patient_id,label", *rows]))
    for header, is_exchanged in (("patient_id,a,b", False), ("patient_id,b,a", True)):
        values = [f"p{n},{0.8 - 0.6 * (n % 2):.2f},{0.2 + 0.6 * (n % 2):.2f}" for n in range(20)]
        predicted.write_text("\n".join([header, *values]))
        told = mil_ok("score", predicted, "--cohort", labels, "--column", "slide=patient_id")
        assert ("ranks patients worse than chance" in told.stderr) == is_exchanged


@pytest.mark.parametrize("options", [[], ["--json"], ["--labels", "x,y"]])
def test_exchanged_columns_are_warned_of_once_a_file_with_every_option(
    tmp_path: Path, options: list[str]
) -> None:
    rows = [f"p{n},{'ab'[n % 2]},{n % 2},{n // 2 % 2}" for n in range(24)]
    (tmp_path / "labels.csv").write_text("\n".join(["patient_id,label,x,y", *rows]))
    values = [f"p{n},{0.2 + 0.6 * (n % 2):.2f},{0.8 - 0.6 * (n % 2):.2f},0.4" for n in range(24)]
    names = ["p.csv", "q.csv"]
    for name in names:
        header = "patient_id,b,x,y" if "--labels" in options else "patient_id,a,b,y"
        (tmp_path / name).write_text("\n".join([header, *values]))
    files = [tmp_path / name for name in names]
    told = mil_ok(
        "score", *files, "--cohort", tmp_path / "labels.csv", "--column", "slide=patient_id",
        *options,
    )  # fmt: skip
    assert told.stderr.count("ranks patients worse than chance") == 2
    assert "mean" not in told.stderr


@pytest.mark.parametrize(
    ("n_patients", "p_of_own"),
    [(20, 9 / 19), (200, 99 / 199), (4, 0.2)],
    ids=["left-one-out shares", "of many", "few patients"],
)
def test_a_model_without_signal_and_few_patients_are_not_called_exchanged(
    tmp_path: Path, n_patients: int, p_of_own: float
) -> None:
    labels, predicted = tmp_path / "labels.csv", tmp_path / "p.csv"
    of_a = [p_of_own if n % 2 == 0 else 1 - p_of_own for n in range(n_patients)]
    rows = [f"p{n},{'ab'[n % 2]}" for n in range(n_patients)]
    values = [f"p{n},{p:.6f},{1 - p:.6f}" for n, p in enumerate(of_a)]
    labels.write_text("\n".join(["patient_id,label", *rows]))
    predicted.write_text("\n".join(["patient_id,a,b", *values]))
    told = mil_ok("score", predicted, "--cohort", labels, "--column", "slide=patient_id")
    assert "AUROC" in told.stdout
    assert "worse than chance" not in told.stderr
