from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

from mil.evaluation.baselines import SHORTCUT
from mil.evaluation.bootstrap import paired_differences, stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc, weighted_log_loss
from mil.reporting.run_report.data import ReportData
from mil.reporting.run_report.scores import measure_reliability
from mil.reporting.run_report.verdict import (
    Verdict,
    labels_verdict,
    run_verdict,
    score_classes,
    two_decimals,
)

Floats = np.ndarray
RIDGE, TILES = "mean + ridge", f"{SHORTCUT}tiles"


def draw(
    n: int, *, signal: float = 1.0, sharp: float = 1.0, n_classes: int = 2, seed: int = 0
) -> tuple[Floats, Floats]:
    """Calibrated probabilities of a signal, made more extreme by ``sharp``, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    z = rng.normal(size=(n, n_classes))
    z[np.arange(n), labels] += signal
    proba = np.exp(sharp * signal * z)
    return proba / proba.sum(axis=1, keepdims=True), labels


def verdict_on(
    proba: Floats,
    labels: Floats,
    *,
    baseline: Floats | None = None,
    shortcut: Floats | None = None,
    by: str = "patient",
) -> Verdict:
    n, n_classes = proba.shape
    equal = np.full_like(proba, 1 / n_classes)
    others = {
        RIDGE: equal if baseline is None else baseline,
        TILES: equal if shortcut is None else shortcut,
        "constant": equal,
    }
    data = ReportData(
        classes=tuple("ABCD"[:n_classes]), patient_ids=tuple(map(str, range(n))),
        labels=labels.astype(np.int64), centres=("",) * n, n_slides=np.ones(n, np.int64),
        n_tiles=np.ones(n, np.int64), fold=(np.arange(n) % 3)[None],
        proba={"calibrated": proba[None]}, notes=(), incomplete_slides=(),
        patients_without_tiles=(),
    )  # fmt: skip
    metrics = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}
    scores: Mapping[str, Mapping[str, Interval]] = {
        name: stratified_bootstrap(metrics, values[None], data.labels, n_resamples=200, seed=0)
        for name, values in {"calibrated": proba, **others}.items()
    }
    gains = paired_differences(
        proba[None], {name: values[None] for name, values in others.items()}, data.labels,
        n_resamples=200, seed=0,
    )  # fmt: skip
    return run_verdict(
        data, scores, gains, measure_reliability(data, "calibrated", seed=0), by=by,
        of_classes=score_classes(data, n_resamples=200, seed=0),
    )  # fmt: skip


def test_a_run_with_signal_is_good() -> None:
    verdict = verdict_on(*draw(300))
    assert verdict.level == "good"
    assert verdict.text.startswith("Ranks patients better than guessing: AUROC 0.8")
    assert verdict.text.endswith(
        "; probabilities are reliable; better than the best simple baseline."
    )


@pytest.mark.parametrize("n_classes", [2, 3])
def test_chance_is_never_called_good(n_classes: int) -> None:
    levels = []
    for seed in range(20):
        proba, labels = draw(120, n_classes=n_classes, seed=seed)
        mixed = np.random.default_rng(seed).permutation(labels)
        levels.append(verdict_on(proba, mixed).level)
    assert "good" not in levels
    assert levels.count("error") >= 18


def test_a_run_without_signal_says_so_and_whether_a_baseline_has_one() -> None:
    proba, labels = draw(200, signal=0.02)
    alone = verdict_on(proba, labels)
    assert alone.level == "error"
    assert alone.text.startswith("Not shown to rank patients better than guessing: AUROC 0.")
    assert alone.text.endswith("]; no simple baseline is shown to rank them better than guessing.")
    beaten = verdict_on(proba, labels, baseline=draw(200)[0])
    assert "; a simple baseline ranks them better than guessing (mean + ridge, 0.8" in beaten.text


def test_ranking_the_wrong_way_round_is_an_error() -> None:
    proba, labels = draw(200)
    verdict = verdict_on(proba[:, ::-1].copy(), labels)
    assert verdict.level == "error"
    assert verdict.text.startswith("Ranks patients worse than guessing: AUROC 0.1")


@pytest.mark.parametrize("n", [4, 10, 18])
def test_tiny_cohorts_get_no_verdict_however_good_their_scores(n: int) -> None:
    proba, labels = draw(n, signal=9)
    verdict = verdict_on(proba, labels)
    assert verdict.level == "warning"
    assert verdict.text == (
        f"Too few patients for a verdict: only {n // 2} patients of A (AUROC 1.00 [1.00, 1.00])."
    )


def test_a_class_of_one_patient_among_many_is_too_few() -> None:
    proba, labels = draw(100)
    labels = np.where(np.arange(100) == 1, 1, 0)
    assert "only 1 patient of B" in verdict_on(proba, labels).text


@pytest.mark.parametrize(
    ("n", "sharp", "words"),
    [
        (300, 4.0, r"probabilities are (off by 0\.\d\d on average|worse than equal ones)"),
        (24, 1.0, "too few patients to tell whether probabilities are reliable"),
        (900, 0.02, "probabilities are off by|nearly the same for everybody"),
    ],
)
def test_probabilities_are_called_reliable_only_where_they_are(
    n: int, sharp: float, words: str
) -> None:
    verdict = verdict_on(*draw(n, sharp=sharp))
    assert verdict.level == "warning"
    assert re.search(words, verdict.text)
    assert "; probabilities are reliable;" not in verdict.text


def test_a_better_baseline_is_named() -> None:
    proba, labels = draw(300, signal=0.8)
    verdict = verdict_on(proba, labels, baseline=draw(300, signal=2.5)[0])
    assert verdict.level == "warning"
    assert "worse than a simple baseline by log loss (mean + ridge)" in verdict.text


def test_an_equal_baseline_is_not_called_beaten() -> None:
    proba, labels = draw(300)
    verdict = verdict_on(proba, labels, baseline=proba)
    assert verdict.level == "good"
    assert verdict.text.endswith("not shown to be better than a simple baseline.")


def test_shortcuts_as_good_as_the_run_are_told() -> None:
    proba, labels = draw(300)
    verdict = verdict_on(proba, labels, shortcut=proba)
    assert verdict.level == "warning"
    assert verdict.text.endswith("not shown to beat shortcuts without tissue.")


def test_folds_by_centre_speak_of_other_centres() -> None:
    start = "Ranks patients of centres it was not trained on better than guessing"
    assert verdict_on(*draw(300), by="center").text.startswith(start)
    without = verdict_on(*draw(200, signal=0.02), by="center").text
    assert without.startswith("Not shown to rank patients of centres it was not trained on better")


def test_a_class_that_is_not_ranked_is_named() -> None:
    proba, labels = draw(300, n_classes=3)
    rng = np.random.default_rng(1)
    share = rng.uniform(0.2, 0.45, size=300)
    proba[:, :2] *= ((1 - share) / proba[:, :2].sum(axis=1))[:, None]
    proba[:, 2] = share
    verdict = verdict_on(proba, labels)
    assert verdict.level == "warning"
    assert "mean AUROC 0." in verdict.text
    assert ", but not shown for C;" in verdict.text


def test_several_labels() -> None:
    high, none = (Interval(value=v, low=v - 0.1, high=v + 0.1) for v in (0.8, 0.55))
    many = {str(n): high if n < 6 else none for n in range(40)}
    enough = dict.fromkeys(many, 50)
    assert labels_verdict({"a": high, "b": high}, {"a": 50, "b": 50}, 0) == Verdict(
        "good", "Ranks patients better than guessing for 2 of 2 labels."
    )
    assert labels_verdict(many, enough, 2) == Verdict(
        "warning",
        "Ranks patients better than guessing for 6 of 40 labels (0, 1 and 4 others); chance alone "
        "would give about 1; worse than a simple baseline for 2.",
    )
    assert labels_verdict({"a": none}, {"a": 50}, 0).level == "error"
    few = labels_verdict({"a": high, "b": high}, {"a": 50, "b": 3}, 0)
    assert few.text.endswith("for 1 of 1 labels; too few patients to tell for b.")
    assert labels_verdict({"a": high}, {"a": 3}, 0).text.startswith("Too few patients")


def test_two_decimals_never_hide_on_which_side_of_guessing_a_limit_is() -> None:
    score = Interval(value=0.62, low=0.5049, high=0.731)
    assert two_decimals(score) == "0.62 [0.50, 0.73]"
    assert two_decimals(score, beside=0.5) == "0.62 [0.505, 0.73]"
    assert two_decimals(Interval(value=0.5, low=0.5, high=0.5), beside=0.5) == "0.50 [0.50, 0.50]"
