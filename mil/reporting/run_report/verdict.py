"""Verdict on a run: one sentence with its level, from the scores of patients held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mil.arrays import Floats
from mil.evaluation.baseline_models import BASELINE_MODELS
from mil.evaluation.baselines import SHORTCUT, compare_with_baselines
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.metrics import Interval, auroc
from mil.reporting.run_report.data import ReportData
from mil.reporting.run_report.scores import Reliability

__all__ = [
    "MIN_PATIENTS",
    "Verdict",
    "labels_verdict",
    "run_verdict",
    "score_classes",
    "two_decimals",
]

MIN_PATIENTS = 10
"""Patients of the smallest class below which no verdict is given: intervals are then too short."""
_GUESSING = 0.5
_MAX_CHANCE_ERROR = 0.12
_MIN_SPREAD = 0.05
_MAX_NAMED = 3
_MIN_LABELS_TO_COUNT = 10

Level = Literal["good", "warning", "error"]
_Scores = Mapping[str, Mapping[str, Interval]]


@dataclass(frozen=True)
class Verdict:
    """Sentence on a whole run.

    Its level is ``good``; ``warning``, where something is missing or cannot be told; or ``error``,
    where patients are not shown to be ranked better than by guessing.
    """

    level: Level
    text: str


def run_verdict(
    data: ReportData,
    scores: _Scores,
    gains: _Scores,
    reliability: Reliability,
    *,
    by: str,
    of_classes: Mapping[str, Interval],
) -> Verdict:
    """Return the verdict on a run, from its scores and gains over baselines with 95 % intervals.

    Parameters
    ----------
    data
        Labels and probabilities of the patients, shape (repeats, patients, classes).
    scores, gains
        Those of ``scores.json``, by kind of prediction or baseline, and metric.
    reliability
        Reliability of the calibrated probabilities.
    by
        How folds were made, ``patient`` or ``center``.
    of_classes
        AUROC of each class against the rest, see :func:`score_classes`.
    """
    counts = np.bincount(data.labels, minlength=len(data.classes))
    area = scores["calibrated"]["auroc"]
    words = f"AUROC {two_decimals(area, beside=_GUESSING)}"
    if len(data.classes) > 2:
        words = f"mean {words}"
    if counts.min() < MIN_PATIENTS:
        rarest = data.classes[int(counts.argmin())]
        n = "1 patient" if counts.min() == 1 else f"{counts.min()} patients"
        return Verdict(
            "warning", f"Too few patients for a verdict: only {n} of {rarest} ({words})."
        )
    which = "patients" if by == "patient" else "patients of centres it was not trained on"
    if area.low <= _GUESSING:
        rest = _baseline_without_signal(scores)
        if area.high < _GUESSING:
            return Verdict("error", f"Ranks {which} worse than guessing: {words}; {rest}.")
        return Verdict("error", f"Not shown to rank {which} better than guessing: {words}; {rest}.")
    unseen = [name for name, own in of_classes.items() if own.low <= _GUESSING]
    parts: list[tuple[Level, str]] = [
        ("warning" if unseen else "good", f"Ranks {which} better than guessing: {words}")
    ]
    if unseen:
        parts[0] = ("warning", f"{parts[0][1]}, but not shown for {_names(unseen)}")
    parts.append(_probabilities(data, gains, reliability))
    parts.append(_baseline(gains))
    shortcut = min(
        (of["auroc"] for name, of in gains.items() if name.startswith(SHORTCUT)),
        key=lambda gain: gain.low, default=None,
    )  # fmt: skip
    if shortcut is not None and shortcut.low <= 0:
        parts.append(("warning", "not shown to beat shortcuts without tissue"))
    levels = [level for level, _ in parts]
    return Verdict(
        "good" if all(level == "good" for level in levels) else "warning",
        "; ".join(text for _, text in parts) + ".",
    )


def labels_verdict(
    areas: Mapping[str, Interval], n_rarer: Mapping[str, int], n_worse: int
) -> Verdict:
    """Return the verdict on a run of several labels.

    Parameters
    ----------
    areas
        AUROC of each label.
    n_rarer
        Patients of the rarer answer of each label.
    n_worse
        Number of labels for which a simple baseline is better.
    """
    few = [name for name in areas if n_rarer[name] < MIN_PATIENTS]
    tested = [name for name in areas if name not in few]
    ranked = [name for name in tested if areas[name].low > _GUESSING]
    if not tested:
        return Verdict(
            "warning", f"Too few patients for a verdict: every label has fewer than {MIN_PATIENTS} "
            "patients with it, or without it.",
        )  # fmt: skip
    text = f"Ranks patients better than guessing for {len(ranked)} of {len(tested)} labels"
    if ranked and len(ranked) < len(tested):
        text += f" ({_names(ranked)})"
    if len(tested) >= _MIN_LABELS_TO_COUNT:
        text += f"; chance alone would give about {max(1, round(0.025 * len(tested)))}"
    if few:
        text += f"; too few patients to tell for {_names(few)}"
    if n_worse:
        text += f"; worse than a simple baseline for {n_worse}"
    if not ranked:
        return Verdict("error", f"{text}.")
    is_good = len(ranked) == len(areas) and not n_worse
    return Verdict("good" if is_good else "warning", f"{text}.")


def score_classes(data: ReportData, *, n_resamples: int, seed: int) -> dict[str, Interval]:
    """Return the AUROC of each class against the rest, by name; empty with two classes.

    The probabilities have shape (repeats, patients, classes), and patients are resampled.
    """
    if len(data.classes) == 2:
        return {}
    proba = data.proba["calibrated"]
    intervals = {}
    for index, name in enumerate(data.classes):
        own: Floats = np.stack([1 - proba[..., index], proba[..., index]], axis=-1)
        of_class = (data.labels == index).astype(np.int64)
        intervals[name] = stratified_bootstrap(
            {"auroc": auroc}, own, of_class, n_resamples=n_resamples, seed=seed
        )["auroc"]
    return intervals


def two_decimals(score: Interval, *, beside: float | None = None) -> str:
    """Return a score and its interval with two decimals.

    A limit that would be rounded to ``beside``, though it is not equal to it, keeps the decimals
    that tell on which side it is.

    Examples
    --------
    >>> two_decimals(Interval(value=0.62, low=0.5004, high=0.731), beside=0.5)
    '0.62 [0.5004, 0.73]'
    """
    value, low, high = (_decimals(x, beside) for x in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}]" if np.isfinite(score.low) else value


def _decimals(value: float, beside: float | None) -> str:
    for digits in (2, 3, 4):
        text = f"{value:.{digits}f}"
        if beside is None or value == beside or float(text) != beside:
            break
    return text.replace("-", "−")


def _probabilities(data: ReportData, gains: _Scores, reliability: Reliability) -> tuple[Level, str]:
    """Return whether the calibrated probabilities are reliable."""
    error, gain = reliability.error, gains["constant"]["weighted_log_loss"]
    if gain.high < 0:
        return "warning", "probabilities are worse than equal ones for everybody"
    if error.value > error.if_perfect_high:
        return "warning", (
            f"probabilities are off by {error.value:.2f} on average, more than chance explains"
        )
    if error.if_perfect_high > _MAX_CHANCE_ERROR:
        return "warning", "too few patients to tell whether probabilities are reliable"
    if data.first["calibrated"].std(axis=0).max() < _MIN_SPREAD:
        return "warning", "probabilities are reliable but nearly the same for everybody"
    if gain.low <= 0:
        return "warning", "probabilities are not shown to be better than equal ones"
    return "good", "probabilities are reliable"


def _baseline(gains: _Scores) -> tuple[Level, str]:
    """Compare a run that ranks patients with the simple baseline that is hardest to beat."""
    loss, area = (compare_with_baselines(gains, name) for name in ("weighted_log_loss", "auroc"))
    for one, metric in ((loss, "log loss"), (area, "AUROC")):
        if one.verdict == "worse":
            return "warning", f"worse than a simple baseline by {metric} ({one.baseline})"
    if loss.verdict == area.verdict == "better":
        return "good", "better than the best simple baseline"
    for one, metric in ((loss, "log loss"), (area, "AUROC")):
        if one.verdict == "better":
            return "good", f"better than the best simple baseline by {metric} only"
    return "good", "not shown to be better than a simple baseline"


def _baseline_without_signal(scores: _Scores) -> str:
    """Say whether a simple baseline ranks patients where the run does not."""
    areas = {name: scores[name]["auroc"] for name in BASELINE_MODELS if name in scores}
    name = max(areas, key=lambda name: areas[name].low)
    if areas[name].low > _GUESSING:
        return (
            "a simple baseline ranks them better than guessing "
            f"({name}, {two_decimals(areas[name], beside=_GUESSING)})"
        )
    return "no simple baseline is shown to rank them better than guessing"


def _names(names: Sequence[str]) -> str:
    """Return the first names of a list in words."""
    shown = list(names[:_MAX_NAMED])
    if len(names) > _MAX_NAMED:
        shown[-1:] = [f"{len(names) - _MAX_NAMED + 1} others"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
