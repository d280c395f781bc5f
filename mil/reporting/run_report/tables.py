"""Tables of the report, formatted as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from features.utils.text import percent
from mil.arrays import Floats
from mil.evaluation.baselines import (
    COVARIATES_ALONE,
    SHORTCUT,
    SLIDES_ALONE,
    compare_with_baselines,
)
from mil.evaluation.classification import ClassScores, score_classification
from mil.evaluation.metrics import Interval
from mil.evaluation.shortcut_model import ALL_SHORTCUTS
from mil.inference.bundle import ModelBundle
from mil.inference.conformal import cross_fitted_sets
from mil.reporting.html import Table
from mil.reporting.run_report.data import ReportData
from mil.reporting.run_report.scores import Reliability, SubgroupScore

__all__ = [
    "calibration_table",
    "classification_table",
    "cohort_table",
    "confusion_table",
    "covariate_sentences",
    "facts_table",
    "findings",
    "gains_table",
    "group_table",
    "incomplete_table",
    "patients_table",
    "scores_table",
    "sets_table",
]

_NONE = "–"
_KIND_NAMES = {
    "calibrated": "this run, calibrated",
    "cross-fitted": "this run, calibrated, cross-fitted",
    "raw": "this run, before calibration",
    "mean + logistic": "mean embedding + logistic regression",
    "min-max logistic": "smallest and largest values + logistic regression",
    "mean + ridge": "mean embedding + ridge regression",
    "cohort prior": "class shares of the cohort",
    "constant": "constant: equal probabilities",
    f"{SHORTCUT}centre": "shortcut: the centre alone",
    f"{SHORTCUT}slides": "shortcut: the number of slides alone",
    f"{SHORTCUT}tiles": "shortcut: the number of tiles alone",
    f"{SHORTCUT}{ALL_SHORTCUTS}": "shortcut: all of them together",
    COVARIATES_ALONE: "clinical covariates alone",
    SLIDES_ALONE: "slides alone, without the covariates",
}
_BASELINE_WORDS = {
    "constant": "a constant prediction",
    "shortcuts": "shortcuts without tissue",
}
_VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "no difference shown": "not shown to differ from",
}


def scores_table(scores: Mapping[str, Mapping[str, Interval]]) -> Table:
    """Return the scores of the run, its baselines and shortcuts."""
    rows = [
        (words, *(_interval(scores[kind][metric]) for metric in ("weighted_log_loss", "auroc")))
        for kind, words in _KIND_NAMES.items()
        if kind in scores
    ]
    return Table(
        "Scores with 95 % intervals", ["", "weighted log loss (lower is better)", "AUROC"], rows
    )


def gains_table(gains: Mapping[str, Mapping[str, Interval]]) -> Table:
    """Return the paired differences between the run and each baseline."""
    rows = [
        (
            _KIND_NAMES[name],
            _interval(of["weighted_log_loss"]),
            _verdict(of["weighted_log_loss"]),
            _interval(of["auroc"]),
            _verdict(of["auroc"]),
        )
        for name, of in gains.items()
    ]
    return Table(
        "Gain of this run, calibrated, over each baseline (positive is better)",
        ["baseline", "log loss saved", "verdict", "AUROC gained", "verdict"],
        rows,
        text_columns=(0, 2, 4),
    )


def findings(gains: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, str]]:
    """Return one sentence per metric on the gains, each with its level, ``good`` or ``warning``."""
    shortcuts = [of for name, of in gains.items() if name.startswith(SHORTCUT)]
    sentences = []
    for metric, words in (("weighted_log_loss", "log loss"), ("auroc", "AUROC")):
        least = {"constant": gains["constant"][metric]}
        if shortcuts:  # the best of them is the one to beat
            least["shortcuts"] = min((of[metric] for of in shortcuts), key=lambda gain: gain.low)
        parts = {name: _verdict(gain) for name, gain in least.items()}
        some = [f"{_VERDICTS[of]} {_BASELINE_WORDS[name]}" for name, of in parts.items()]
        learned = compare_with_baselines(gains, metric)
        is_good = all(part == "better" for part in parts.values()) and learned.verdict != "worse"
        sentence = f"By {words}, the run is {', '.join(some)} and {learned.phrase}."
        sentences.append(("good" if is_good else "warning", sentence))
    return sentences


def covariate_sentences(gains: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """Return what slides and covariates add to each other, one sentence each; none without."""
    sentences = []
    for alone, added, to in (
        (COVARIATES_ALONE, "The slides", "the covariates"),
        (SLIDES_ALONE, "The covariates", "the slides"),
    ):
        if alone in gains:
            loss, area = gains[alone]["weighted_log_loss"], gains[alone]["auroc"]
            shown = {
                "better": f"{added} add to {to}",
                "worse": f"{added} make the prediction from {to} worse",
                "no difference shown": f"{added} are not shown to add to {to}",
            }[_verdict(loss)]
            sentences.append(
                f"{shown}: log loss saved {_interval(loss)}, AUROC gained {_interval(area)}."
            )
    return sentences


def group_table(
    title: str, groups: Sequence[SubgroupScore], classes: Sequence[str], *, first: str
) -> Table:
    """Return the scores of folds, repeats or centres, with patients of shape (classes,)."""
    rows = []
    for group in groups:
        scores = [
            _interval(group.scores[metric]) if group.scores else _NONE
            for metric in ("weighted_log_loss", "auroc")
        ]
        rows.append((group.name, *(f"{count:,}" for count in group.counts), *scores))
    return Table(title, [first, *classes, "weighted log loss", "AUROC"], rows)


def calibration_table(reliability: Mapping[str, Reliability]) -> Table:
    """Return calibration metrics before and after calibration."""
    rows = [
        (
            _KIND_NAMES[kind],
            f"{of.error.value:.3f}",
            f"{of.error.if_perfect:.3f}",
            f"{of.error.if_perfect_high:.3f}",
            _two_digits(of.slope),
            _two_digits(of.intercept),
            f"{of.brier:.4f}",
        )
        for kind, of in reliability.items()
    ]
    return Table(
        "Calibration at equal class shares",
        [
            "", "calibration error", "if perfectly calibrated: mean", "and 95th percentile",
            "slope (ideal: 1)", "intercept (ideal: 0)", "Brier score (0 to 2)",
        ],
        rows,
    )  # fmt: skip


def confusion_table(data: ReportData) -> Table:
    """Return counts and row shares of true by most likely class, shape (classes, classes).

    The probabilities are those at the balanced prior.
    """
    predicted = data.first["calibrated"].argmax(axis=1)
    rows = []
    for index, name in enumerate(data.classes):
        counts = np.bincount(predicted[data.labels == index], minlength=len(data.classes))
        cells = [f"{count:,} ({percent(count / counts.sum())})" for count in counts]
        rows.append((name, *cells, f"{counts.sum():,}"))
    return Table(
        "Patients by true class (rows) and most likely class (columns)",
        ["true class", *(f"predicted {name}" for name in data.classes), "all"],
        rows,
    )


def classification_table(data: ReportData, *, n_resamples: int, seed: int) -> Table:
    """Return precision, recall and F1 of the most likely class, per class and averaged.

    The probabilities, shape (patients, classes), are those at the balanced prior, and patients are
    resampled for the intervals.
    """
    scores = score_classification(
        data.first["calibrated"], data.labels, data.classes, n_resamples=n_resamples, seed=seed
    )
    rows = [
        (name, f"{scores.n_patients[name]:,}", f"{scores.n_predicted[name]:,.0f}", *_cells(of))
        for name, of in scores.classes.items()
    ]
    rows += [(f"{name} average", "", "", *_cells(of)) for name, of in scores.averages.items()]
    return Table(
        "Scores of the most likely class",
        ["class", "patients", "predicted", "precision", "recall", "F1"],
        rows,
    )


def sets_table(data: ReportData, run: ModelBundle, *, coverage: float) -> Table:
    """Return sizes of prediction sets, shape (patients, classes), and coverage by true class."""
    for_new = (run.coverage_of_most_cohorts(coverage), run.guaranteed_coverage(coverage))
    labels = data.labels
    sets = cross_fitted_sets(data.first["calibrated"], labels, data.fold[0], coverage=coverage)
    holds, sizes = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    rows = []
    for index, name in enumerate(data.classes):
        is_own = labels == index
        alone = sizes == 1
        parts = (holds & alone, ~holds & alone, sizes > 1, sizes == 0, holds)
        rows.append((
            name,
            f"{is_own.sum():,}",
            *(f"{part[is_own].sum():,} ({percent(part[is_own].mean())})" for part in parts),
            *(percent(of[name]) if of else _NONE for of in for_new),
        ))  # fmt: skip
    return Table(
        f"Prediction sets that aim at {percent(coverage)}",
        [
            "true class", "patients", "true class alone", "another class alone", "several classes",
            "no class", "true class in the set", "new patients: plan with", "at least, on average",
        ],
        rows,
    )  # fmt: skip


def cohort_table(data: ReportData) -> Table:
    """Return patients, slides and tiles per class, from counts of shape (patients,)."""
    rows = []
    for index, name in enumerate(data.classes):
        of = data.labels == index
        rows.append((
            name,
            f"{of.sum():,}",
            percent(of.mean(), digits=1),
            f"{data.n_slides[of].sum():,}",
            f"{data.n_tiles[of].sum():,}",
            f"{np.median(data.n_tiles[of]):,.0f}",
        ))  # fmt: skip
    return Table(
        "Patients with predictions",
        ["class", "patients", "share", "slides", "tiles", "median tiles per patient"],
        rows,
    )


def incomplete_table(data: ReportData) -> Table:
    """Return the slides without a bag or a tile, and those with tiles that cannot be decoded."""
    return Table(
        "Incomplete slides",
        ["slide", "patient", "missing"],
        data.incomplete_slides,
        text_columns=(0, 1, 2),
    )


def patients_table(
    title: str,
    data: ReportData,
    losses: Floats,
    order: Sequence[int],
    links: Mapping[str, str],
) -> Table:
    """Return the predictions of patients in the given order, linked to their explanation pages.

    ``losses`` are the log losses in nats, shape (patients,).
    """
    mean = data.mean["calibrated"]
    rows = []
    for patient in order:
        label, predicted = data.labels[patient], int(mean[patient].argmax())
        rows.append((
            data.patient_ids[patient],
            data.classes[label],
            f"{mean[patient, label]:.3f}",
            data.classes[predicted],
            f"{mean[patient, predicted]:.3f}",
            f"{losses[patient]:.3f}",
            data.centres[patient] or _NONE,
            f"{data.n_slides[patient]:,}",
            f"{data.n_tiles[patient]:,}",
        ))  # fmt: skip
    return Table(
        title,
        [
            "patient", "true class", "its probability", "most likely class", "its probability",
            "log loss", "centre", "slides", "tiles",
        ],
        rows,
        text_columns=(0, 1, 3, 6),
        links=links,
    )  # fmt: skip


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Return names and values as rows; a mapping in them gives one row per entry."""
    return Table(title, ["name", "value"], list(_fact_rows(facts)), text_columns=(0, 1))


def _fact_rows(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        inner, title = _unpacked(value), f"{prefix}{name.replace('_', ' ')}"
        if isinstance(inner, Mapping) and inner:
            yield from _fact_rows(inner, f"{title}: ")
        else:
            yield title, _plain(inner)


def _unpacked(value: Any) -> Any:
    """Return the mapping in a text of JSON, and any other value as it is."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _cells(scores: ClassScores) -> tuple[str, ...]:
    return tuple(_interval(score) for _, score in scores.items())


def _verdict(gain: Interval) -> str:
    """Return whether the interval of a gain excludes 0, and on which side."""
    if gain.low > 0:
        return "better"
    return "worse" if gain.high < 0 else "no difference shown"


def _interval(score: Interval) -> str:
    if not np.isfinite(score.value):
        return _NONE
    if not np.isfinite(score.low):
        return f"{score.value:.4f}"
    return str(score).replace("-", "−")


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else _NONE


def _plain(value: Any) -> str:
    if isinstance(value, Mapping) or value is None or value == "":
        return _NONE  # only empty mappings come here
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(part) for part in value) or _NONE
    return f"{value:.6g}" if isinstance(value, float) else str(value)
