from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from features.bags.h5 import find_bags, write_bag
from mil.data.bags import PatientBags, SlideRecord, load_patient_bags
from mil.data.cohort import Patient, read_cohort
from mil.errors import RunError
from mil.evaluation.abstention import AbstentionPoint
from mil.evaluation.baselines import shortcut_probabilities
from mil.evaluation.bootstrap import paired_differences, stratified_bootstrap
from mil.evaluation.curves import net_benefit_curve, precision_recall_curve, roc_curve, treat_all
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss
from mil.inference.bundle import load_bundle, save_bundle
from mil.reporting.figures import EmbeddedImage, render_figure
from mil.reporting.run_report import write_report
from mil.reporting.run_report.data import ReportData, read_report_data
from mil.reporting.run_report.scores import (
    measure_reliability,
    score_centres,
    score_folds,
    score_repeats,
)
from mil.reporting.run_report.tables import (
    calibration_table,
    classification_table,
    confusion_table,
    findings,
)
from mil.reporting.run_report.verdict import Level, Verdict
from mil.training.config import TrainConfig
from mil.training.cross_validation import OutOfFoldPredictions
from mil.training_run import train_run
from tests.browser import needs_browser, open_tab
from tests.fakes import FINGERPRINT, make_bag, write_cohort

pytestmark = pytest.mark.usefixtures("drawn_figures")

FAST = TrainConfig(n_members=2, n_components=8, fixed_steps=8, max_epochs=3)
CLASSES = ("<b>A</b>", 'B & "C"', "$D$")
CLASSES_SORTED = tuple(sorted(CLASSES))
CENTRE = "</td><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Figures, links, targets and table cells of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.figures: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        if tag == "img":
            self.figures.append(named)
        if tag == "a":
            self.links.append(str(named["href"]))
        if "id" in named:
            self.ids.append(str(named["id"]))

    def handle_data(self, data: str) -> None:
        self.text.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two classes, no centres, two repeats."""
    folder = tmp_path_factory.mktemp("two")
    return train(write_cohort(folder, n_patients=30, shift=0.7), n_repeats=2)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three classes with nested scores, hostile names, and gaps in the cohort."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "bags").mkdir()
    rows = ["image_id,patient_id,label,center_id"]
    for number in range(27):
        label = number % 3
        bag = make_bag(f"s{number}", n_tiles=6, dim=8)
        bag.features[:] += np.float16(label)
        bag.meta.__dict__.update(n_failed=2 * (number == 3))
        write_bag(folder / "bags" / f"s{number}.h5", bag)
        quoted = CLASSES[label].replace('"', '""')
        rows.append(f's{number},<script>{number},"{quoted}",{CENTRE if number % 2 else "1"}')
    write_bag(folder / "bags" / "bare.h5", make_bag("bare", n_tiles=0, empty_reason="none"))
    rows += ["bare,bare patient,$D$,1", "gone&,<script>0,<b>A</b>,1"]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return train(folder / "train.csv", nested=True)


def train(table: Path, *, n_repeats: int = 1, nested: bool = False) -> Path:
    cohort = read_cohort(table, labelled=True)
    bags = load_patient_bags(cohort, find_bags(table.parent / "bags"))
    train_run(
        cohort, bags, table.parent / "run", n_folds=3, n_repeats=n_repeats, seed=0, config=FAST,
        on_head=lambda done, total: None, nested=nested,
        failures={"gone&": "cannot be <opened>", "s1": "was embedded again since"},
    )  # fmt: skip
    return table.parent / "run"


def page_of(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


def report_data(
    labels: np.ndarray, proba: np.ndarray, *, centres: tuple[str, ...] = (), n_folds: int = 3
) -> ReportData:
    """One repeat of predictions."""
    n = len(labels)
    return ReportData(
        classes=tuple("ABCD"[: proba.shape[1]]),
        patient_ids=tuple(map(str, range(n))),
        labels=labels.astype(np.int64),
        centres=centres or ("",) * n,
        n_slides=np.ones(n, np.int64),
        n_tiles=np.ones(n, np.int64),
        fold=(np.arange(n) % n_folds)[None],
        proba=dict.fromkeys(("calibrated", "raw", "mean + logistic"), proba[None]),
        notes=(),
        incomplete_slides=(),
        patients_without_tiles=(),
    )


def sample_predictions(
    n: int = 80, *, seed: int = 0, signal: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of two classes, with ties, and the truth."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 // 2
    p = np.round(1 / (1 + np.exp(-rng.normal(size=n) - signal * (labels - 0.5))), 1)
    p = p.clip(0.05, 0.95)
    return np.stack([1 - p, p], axis=1), labels


def test_the_numbers_on_the_page_are_those_of_scores_json(two: Path) -> None:
    scores = json.loads((two / "scores.json").read_text())
    text = " ".join(page_of(two).text).replace("−", "-")
    learned = ("mean + logistic", "min-max logistic", "mean + ridge")
    kinds = ("calibrated", "raw", *learned, "cohort prior", "constant")
    shortcuts = ("shortcut: slides", "shortcut: tiles", "shortcut: all")
    baselines = (*learned, "cohort prior", "constant", *shortcuts)
    expected = [scores[kind] for kind in kinds] + [scores["gains"][name] for name in baselines]
    for of_kind in expected:
        for metric in ("weighted_log_loss", "auroc"):
            low, high = of_kind[metric]["interval"]
            interval = Interval(value=of_kind[metric]["value"], low=low, high=high)
            assert str(interval) in text
    area = scores["calibrated"]["auroc"]["value"]
    assert re.search(r"Weighted log loss (\d\.\d\d) ", text)
    assert f"AUROC {area:.2f} [" in text


def test_scores_follow_from_the_predictions_in_the_run(two: Path) -> None:
    scores = json.loads((two / "scores.json").read_text())
    data = read_report_data(two, classes=("CE", "LAA"))
    assert data.fold.shape == (2, 30)
    for kind, values in data.proba.items():
        for name, metric in (("auroc", auroc), ("weighted_log_loss", weighted_log_loss)):
            of_repeats = [metric(repeat, data.labels) for repeat in values]
            assert scores[kind][name]["value"] == pytest.approx(np.mean(of_repeats))
    table = pd.read_csv(two / "out_of_fold.csv")
    np.testing.assert_allclose(table[["CE", "LAA"]], data.mean["calibrated"])
    assert scores["gains"]["constant"]["auroc"]["value"] == pytest.approx(
        scores["calibrated"]["auroc"]["value"] - 0.5
    )
    shortcuts = {"shortcut: slides", "shortcut: tiles", "shortcut: all"}
    assert {name for name in scores if name.startswith("shortcut")} == shortcuts
    assert shortcuts < set(scores["gains"])


def test_the_kind_of_score_is_explained(two: Path) -> None:
    text = " ".join(page_of(two).text)
    assert (
        "All scores are cross-fitted : the learners that predict a patient were not trained on it"
        in text
    )
    assert "They are not nested" in text
    assert "Scores are means over 2 cross-validations with different folds" in text


def test_nested_scores_are_named_and_shown_with_the_cross_fitted_ones(three: Path) -> None:
    scores = json.loads((three / "scores.json").read_text())
    text = " ".join(page_of(three).text)
    assert "Scores of the calibrated run are nested : neither the learners" in text
    assert "All scores are" not in text
    data = read_report_data(three, classes=CLASSES_SORTED)
    for kind in ("calibrated", "cross-fitted"):
        score = scores[kind]["auroc"]
        assert score["value"] == pytest.approx(auroc(data.mean[kind], data.labels))
        assert f"{score['value']:.4f} [{score['interval'][0]:.4f}" in text


def test_written_again_from_the_files_the_page_has_the_same_bytes(two: Path) -> None:
    before = (two / "report.html").read_bytes()
    assert write_report(two) == two / "report.html"
    assert (two / "report.html").read_bytes() == before


@pytest.mark.parametrize("level", ["good", "error"])
def test_a_point_of_abstention_states_its_limit_and_may_be_luck_without_a_signal(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(two, copy)
    point = AbstentionPoint(
        threshold=0.7, coverage=0.5, risk=0.1, risk_of_all=0.2, risk_at_most=0.31, confidence=0.99
    )
    save_bundle(replace(load_bundle(copy), abstention=point))
    verdict = Verdict(level, "so or so")
    monkeypatch.setattr("mil.reporting.run_report.page.run_verdict", lambda *_, **__: verdict)
    write_report(copy)
    text = " ".join(" ".join(page_of(copy).text).split())
    assert "at most 31 % , the exact 99 % limit: plan with this" in text
    assert ("a point may be luck" in text) == (level == "error")


@pytest.mark.parametrize(("fixture", "n_figures"), [("two", 13), ("three", 22)])
def test_every_figure_has_a_description(
    fixture: str, n_figures: int, request: pytest.FixtureRequest
) -> None:
    page = page_of(request.getfixturevalue(fixture))
    assert len(page.figures) == n_figures
    for figure in page.figures:
        assert str(figure["src"]).startswith("data:image/")
        assert len(str(figure["alt"])) > 30
    assert all(link[1:] in page.ids for link in page.links)
    assert page.links


@pytest.mark.ci
def test_entries_of_a_legend_differ_without_colour(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def keep(paint: Callable[[Figure], None], **how: Any) -> EmbeddedImage:
        figures.append(Figure())
        paint(figures[-1])
        return render_figure(paint, **how)

    for module in ("run_report.figures", "score_figures"):
        monkeypatch.setattr(f"mil.reporting.{module}.render_figure", keep)
    write_report(three)
    legends = [
        legend
        for figure in figures
        for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes))
        if legend is not None
    ]
    assert len(legends) > 8
    for legend in legends:
        styles = [_grey_style(handle) for handle in legend.legend_handles]
        for one, other in combinations(styles, 2):
            assert one[1:] != other[1:] or abs(one[0] - other[0]) > 0.2, legend.get_texts()


def _grey_style(handle: Any) -> tuple[object, ...]:
    """Return lightness, line, marker and fill of a legend entry."""
    if not isinstance(handle, Line2D):  # bars of error around a line, which nothing else has
        return (0.0, type(handle))
    grey = float(np.dot(to_rgb(handle.get_color()), (0.299, 0.587, 0.114)))
    opacity = 1.0 if handle.get_alpha() is None else float(handle.get_alpha())
    return (
        1 - opacity * (1 - grey), handle.get_linestyle(), handle.get_marker(),
        handle.get_fillstyle(),
    )  # fmt: skip


def test_hostile_names_stay_names(three: Path) -> None:
    html = (three / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert "b" in page.tags
    assert "<b>A" not in html
    assert "onerror" not in {key for figure in page.figures for key in figure}
    for name in ("<script>7", *CLASSES, CENTRE):
        assert escape(name, quote=False) in html.replace("&#34;", '"')


def test_patients_without_predictions_are_named(three: Path) -> None:
    text = " ".join(page_of(three).text)
    assert "Slides without a bag: 1, gone&." in text
    assert "Patients without a tile, not in any score: bare patient." in text
    html = (three / "report.html").read_text(encoding="utf-8")
    part = html[html.index("Incomplete slides") : html.index('id="learning"')]
    assert [unescape(" | ".join(row)) for row in _rows_of(part)] == [
        "<script>0 | no bag: cannot be <opened>",
        "<script>3 | 2 of 6 tiles could not be decoded",
        "bare patient | no tile: none",
    ]


def test_all_patients_are_on_the_page_worst_first(three: Path) -> None:
    html = (three / "report.html").read_text(encoding="utf-8")
    part = html[html.index('id="patients"') : html.index('id="cohort"')]
    ids = re.findall(r'<th scope="row">&lt;script&gt;(\d+)</th>', part)
    assert sorted(ids, key=int) == [str(number) for number in range(27)]
    losses = [float(row[-4]) for row in _rows_of(part)]
    assert losses == sorted(losses, reverse=True)


def _rows_of(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [cells for row in rows if (cells := re.findall(r"<td[^>]*>(.*?)</td>", row))]


def test_a_gain_is_positive_where_the_run_is_better_and_nothing_against_itself() -> None:
    proba, labels = sample_predictions(300, signal=2.0)
    worse = np.full_like(proba, 0.5)
    gains = paired_differences(
        proba[None], {"worse": worse[None], "same": proba[None]}, labels, n_resamples=200, seed=0
    )
    for metric in ("weighted_log_loss", "auroc"):
        assert gains["worse"][metric].low > 0
        assert gains["same"][metric] == Interval(value=0, low=0, high=0)
    turned = paired_differences(
        worse[None], {"better": proba[None]}, labels, n_resamples=200, seed=0
    )
    assert turned["better"]["auroc"].high < 0
    assert turned["better"]["weighted_log_loss"].value == pytest.approx(
        -gains["worse"]["weighted_log_loss"].value
    )


def test_of_several_repeats_the_mean_gain_counts_and_not_the_gain_of_the_mean() -> None:
    repeats = [sample_predictions(120, seed=seed)[0] for seed in (1, 2)]
    labels = sample_predictions(120)[1]
    constant = np.full((2, 120, 2), 0.5)
    gains = paired_differences(
        np.stack(repeats), {"constant": constant}, labels, n_resamples=2, seed=0
    )
    expected = np.mean([auroc(one, labels) for one in repeats]) - 0.5
    assert gains["constant"]["auroc"].value == pytest.approx(expected)


def test_pairing_shows_a_small_steady_gain_that_two_intervals_hide() -> None:
    proba, labels = sample_predictions(200, signal=2.0)
    truth = np.eye(2)[labels]
    better = 0.97 * proba + 0.03 * truth
    metrics = {"loss": weighted_log_loss}
    one, other = (
        stratified_bootstrap(metrics, values, labels, n_resamples=200, seed=0)["loss"]
        for values in (better, proba)
    )
    assert one.high > other.low
    gain = paired_differences(
        better[None], {"proba": proba[None]}, labels, n_resamples=200, seed=0
    )["proba"]
    assert gain["weighted_log_loss"].low > 0


@pytest.mark.parametrize(
    ("against_constant", "against_regression", "level", "sentence"),
    [
        (0.1, 0.1, "good", "better than a constant prediction and better than the best"),
        (0.1, 0.0, "good", "not shown to differ from the best baseline, mean"),
        (0.1, -0.1, "warning", "better than a constant prediction and worse than the baseline"),
        (0.0, 0.1, "warning", "not shown to differ from a constant prediction"),
    ],
)
def test_the_verdict_depends_on_whether_the_interval_excludes_0(
    against_constant: float, against_regression: float, level: str, sentence: str
) -> None:
    def interval(middle: float) -> dict[str, Interval]:
        gain = Interval(value=middle, low=middle - 0.05, high=middle + 0.05)
        return {"weighted_log_loss": gain, "auroc": gain}

    for shown, text in findings({
        "constant": interval(against_constant), "mean + logistic": interval(against_regression)
    }):  # fmt: skip
        assert shown == level
        assert sentence in text


def test_the_best_shortcut_is_the_one_to_beat() -> None:
    def gain(low: float) -> dict[str, Interval]:
        interval = Interval(value=low + 0.1, low=low, high=low + 0.2)
        return {"weighted_log_loss": interval, "auroc": interval}

    baselines = {"constant": gain(0.3), "mean + logistic": gain(0.1), "shortcut: slides": gain(0.2)}
    words = (
        "better than a constant prediction, {} shortcuts without tissue and better than the best"
    )
    assert {level for level, _ in findings(baselines)} == {"good"}
    assert words.format("better than") in findings(baselines)[0][1]
    beaten = findings({**baselines, "shortcut: centre": gain(-0.1)})
    assert {level for level, _ in beaten} == {"warning"}
    assert words.format("not shown to differ from") in beaten[0][1]


def test_a_shortcut_is_found_where_there_is_one_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    names = [f"{number}" for number in range(80)]
    patients = [
        Patient(patient_id=name, slide_ids=(name,), label=str(label), center_id=f"{label}")
        for name, label in zip(names, labels, strict=True)
    ]
    n_tiles = rng.integers(1, 100, 80)
    bags = PatientBags(
        features={}, fingerprint=FINGERPRINT,
        slides=tuple(
            SlideRecord(slide_id=name, patient_id=name, n_tiles=int(n), content_id="",
                      features_sha256="")
            for name, n in zip(names, n_tiles, strict=True)
        ),
    )  # fmt: skip
    oof = OutOfFoldPredictions(
        patient_ids=tuple(names), labels=labels, logits=np.zeros((2, 80, 2)), history={}, heads={},
        fold=rng.integers(0, 4, (2, 80)),
    )  # fmt: skip
    proba = shortcut_probabilities(patients, bags, oof, calibrator="platt")
    assert list(proba) == ["shortcut: centre", "shortcut: tiles", "shortcut: all"]
    area = {name: np.mean([auroc(one, labels) for one in of]) for name, of in proba.items()}
    assert area["shortcut: centre"] == area["shortcut: all"] == 1
    assert area["shortcut: tiles"] < 0.65
    few = [replace(patient, center_id="1") for patient in patients]
    alone = shortcut_probabilities(few, bags, oof, calibrator="platt")
    assert list(alone) == ["shortcut: tiles"]


@given(st.integers(0, 99), st.integers(6, 60))
def test_the_roc_curve_is_the_one_scikit_learn_draws(seed: int, n: int) -> None:
    proba, labels = sample_predictions(n, seed=seed)
    curve = roc_curve(proba[:, 1], labels == 1, seed=0)
    false, true, _ = sklearn_roc_curve(labels, proba[:, 1])
    np.testing.assert_allclose(curve.y[1:], np.interp(curve.x, false, true)[1:], atol=1e-9)
    assert (curve.low <= curve.high).all()
    area = np.trapezoid(curve.y, curve.x)
    assert area == pytest.approx(roc_auc_score(labels, proba[:, 1]), abs=0.05)


def test_precision_is_that_of_the_first_threshold_that_finds_enough() -> None:
    values = np.array([0.9, 0.8, 0.8, 0.6, 0.2, 0.1])
    positive = np.array([True, True, False, False, True, False])
    curve = precision_recall_curve(values, positive, seed=0)
    read = {recall: curve.y[round(recall * 100) - 1] for recall in (0.33, 0.34, 0.66, 0.67, 1.0)}
    assert read == pytest.approx({0.33: 1, 0.34: 2 / 3, 0.66: 2 / 3, 0.67: 3 / 5, 1.0: 3 / 5})
    proba, labels = sample_predictions(400)
    smooth = precision_recall_curve(proba[:, 1], labels == 1, seed=0)
    assert smooth.y.mean() == pytest.approx(average_precision_score(labels, proba[:, 1]), abs=0.01)


def test_net_benefit_is_true_positives_less_weighted_false_positives() -> None:
    values, positive = np.array([0.9, 0.6, 0.5, 0.1]), np.array([True, False, True, False])
    curve = net_benefit_curve(values, positive, seed=0)
    at = dict(zip(curve.x.round(2).tolist(), curve.y.tolist(), strict=True))
    assert at[0.5] == pytest.approx((2 - 1 * 1) / 4)
    assert at[0.8] == pytest.approx(1 / 4)
    assert at[0.05] == pytest.approx(treat_all(np.array([0.05]), 0.5)[0])
    assert at[0.95] == 0


def test_bands_hold_the_curve_and_narrow_with_more_patients() -> None:
    widths = []
    for n in (60, 960):
        proba, labels = sample_predictions(n)
        curve = roc_curve(proba[:, 1], labels == 1, seed=0)
        assert ((curve.low <= curve.y + 1e-9) & (curve.y <= curve.high + 1e-9)).mean() > 0.9
        widths.append((curve.high - curve.low).mean())
    assert widths[1] < widths[0] / 2.5


def test_a_group_without_a_class_has_counts_and_no_score() -> None:
    proba, labels = sample_predictions(60)
    centres = tuple("one-sided" if label == 0 and i < 30 else "mixed"
                    for i, label in enumerate(labels))  # fmt: skip
    data = report_data(labels, proba, centres=centres)
    mixed, one_sided = score_centres(data, n_resamples=300, seed=0)
    assert (one_sided.name, one_sided.counts, one_sided.scores) == ("one-sided", (20, 0), {})
    assert mixed.scores["auroc"].low < mixed.scores["auroc"].value < mixed.scores["auroc"].high
    (repeat,) = score_repeats(data)
    assert repeat.scores["auroc"].value == pytest.approx(auroc(proba, labels))
    assert sum(sum(fold.counts) for fold in score_folds(data)[0]) == 60
    assert score_centres(report_data(labels, proba), n_resamples=300, seed=0) == ()


def test_the_confusion_matrix_counts_and_shares_by_true_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2])
    proba = np.eye(3)[[0, 0, 0, 1, 2, 2]]
    table = confusion_table(report_data(labels, proba))
    assert table.rows == [
        ("A", "3 (75 %)", "1 (25 %)", "0 (0 %)", "4"),
        ("B", "0 (0 %)", "0 (0 %)", "1 (100 %)", "1"),
        ("C", "0 (0 %)", "0 (0 %)", "1 (100 %)", "1"),
    ]


def test_precision_recall_and_f1_follow_from_the_confusion_matrix() -> None:
    labels = np.array([0] * 6 + [1] * 2)
    top = np.array([0.8, 0.8, 0.8, 0.8, 0.1, 0.1, 0.1, 0.8])
    proba = np.stack([top, 1 - top], axis=1)
    table = classification_table(report_data(labels, proba), n_resamples=50, seed=0)
    first, second, macro, weighted = table.rows
    assert [row[1:3] for row in (first, second)] == [("6", "5"), ("2", "3")]
    values = [[float(cell.split(" [")[0]) for cell in row[3:]] for row in table.rows]
    np.testing.assert_allclose(values[0], [4 / 5, 4 / 6, 8 / 11], atol=1e-4)
    np.testing.assert_allclose(values[1], [1 / 3, 1 / 2, 2 / 5], atol=1e-4)
    np.testing.assert_allclose(values[2], np.mean(values[:2], axis=0), atol=1e-4)
    np.testing.assert_allclose(values[3], np.average(values[:2], axis=0, weights=[6, 2]), atol=1e-4)
    assert (macro[0], weighted[0]) == ("macro average", "weighted average")


def test_overconfident_probabilities_show_in_slope_and_error() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=600)
    labels = (rng.random(600) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    p = 1 / (1 + np.exp(-3 * logits))
    reliability = measure_reliability(report_data(labels, np.stack([1 - p, p], 1)), "raw", seed=0)
    assert reliability.slope == pytest.approx(1 / 3, abs=0.1)
    assert reliability.intercept == pytest.approx(0, abs=0.2)
    assert reliability.error.value > reliability.error.if_perfect_high
    assert len(reliability.bins[1]) == 10


def test_probabilities_biased_to_a_class_show_in_the_intercept() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=600)
    labels = (rng.random(600) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    p = 1 / (1 + np.exp(-logits - 1))
    reliability = measure_reliability(report_data(labels, np.stack([1 - p, p], 1)), "raw", seed=0)
    assert reliability.intercept == pytest.approx(-1, abs=0.2)
    table = calibration_table({"raw": reliability})
    shown = dict(zip(table.columns, table.rows[0], strict=True))
    assert shown["slope (ideal: 1)"] == f"{reliability.slope:.2f}"
    assert shown["intercept (ideal: 0)"] == f"−{-reliability.intercept:.2f}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("judged.csv", None, "judged.csv is missing.*Copy the run again"),
        ("judged.csv", "repeat,fold\n0,0\n", "judged.csv was changed afterwards"),
        ("notes.json", None, "notes.json is missing"),
        ("notes.json", "{", "notes.json was changed"),
        ("scores.json", "{}", "scores.json was changed afterwards"),
        ("scores.json", "[]", "scores.json was changed afterwards"),
        ("history.csv", None, "history.csv is missing"),
        ("history.csv", "repeat\n0\n", "history.csv was changed"),
    ],
)
def test_a_run_without_its_files_is_refused(
    two: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(two, copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    before = (copy / "report.html").read_bytes()
    with pytest.raises(RunError, match=message):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == before


def test_predictions_that_lack_a_row_are_refused(two: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(two, copy)
    lines = (copy / "judged.csv").read_text().splitlines(keepends=True)
    (copy / "judged.csv").write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=r"judged\.csv was changed"):
        write_report(copy)
    with pytest.raises(RunError, match=r"cannot be read .*judged\.csv"):
        read_report_data(copy, classes=("CE", "LAA"))


@needs_browser
@pytest.mark.parametrize("width_px", [1200, 500])
def test_a_browser_shows_all_figures_without_errors_or_sideways_scrolling(
    three: Path, tmp_path: Path, width_px: int
) -> None:
    with open_tab(tmp_path / "profile") as tab:
        tab.resize(width_px, 900)
        tab.open((three / "report.html").as_uri())
        assert tab.evaluate("document.images.length") == 22
        assert tab.evaluate("[...document.images].every((i) => i.naturalWidth > 0)")
        assert tab.evaluate("window.innerWidth") == width_px
        assert tab.evaluate("document.documentElement.scrollWidth") <= width_px
        assert tab.errors == []
