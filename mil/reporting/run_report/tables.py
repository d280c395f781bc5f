"""Tables of the report: numbers set as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.utils.text import percent
from mil.evaluation.baselines import SHORTCUT
from mil.evaluation.metrics import Interval
from mil.evaluation.shortcut_model import ALL_SHORTCUTS
from mil.inference.conformal import cross_fitted_sets
from mil.reporting.run_report.calibration import Reliability
from mil.reporting.run_report.data import ReportData
from mil.reporting.run_report.subgroups import SubgroupScore

__all__ = [
    "Table",
    "calibration_table",
    "cohort_table",
    "confusion_table",
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
    "cohort prior": "class shares of the cohort",
    "constant": "constant: all classes alike",
    f"{SHORTCUT}centre": "shortcut: the centre alone",
    f"{SHORTCUT}slides": "shortcut: the number of slides alone",
    f"{SHORTCUT}tiles": "shortcut: the number of tiles alone",
    f"{SHORTCUT}{ALL_SHORTCUTS}": "shortcut: all of them together",
}
_BASELINE_WORDS = {
    "constant": "a constant answer",
    "shortcuts": "shortcuts that see no tissue",
    "mean + logistic": "a logistic regression on mean embeddings",
}
_VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "no difference shown": "not shown to differ from",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as the macro ``table`` of ``templates/macros.html`` takes it."""

    title: str
    """What it shows."""
    columns: tuple[str, ...]
    """Headings."""
    numeric: tuple[bool, ...]
    """Which columns are set as numbers."""
    rows: tuple[tuple[str, ...], ...]
    """Text of the cells."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Address behind the first cell of a row, by its text."""


def scores_table(scores: Mapping[str, Mapping[str, Interval]]) -> Table:
    """Scores of the run beside baselines and shortcuts."""
    rows = [
        (words, *(_interval(scores[kind][metric]) for metric in ("weighted_log_loss", "auroc")))
        for kind, words in _KIND_NAMES.items()
        if kind in scores
    ]
    return _table(
        "Scores with 95 % intervals", ["", "weighted log loss (less is better)", "AUROC"], rows
    )


def gains_table(found: Mapping[str, Mapping[str, Interval]]) -> Table:
    """Paired differences from the baselines."""
    rows = [
        (
            _KIND_NAMES[name],
            _interval(of["weighted_log_loss"]),
            _verdict(of["weighted_log_loss"]),
            _interval(of["auroc"]),
            _verdict(of["auroc"]),
        )
        for name, of in found.items()
    ]
    return _table(
        "Gain of this run, calibrated, over each baseline (positive is better)",
        ["baseline", "log loss saved", "verdict", "AUROC gained", "verdict"],
        rows,
        words=(0, 2, 4),
    )


def findings(found: Mapping[str, Mapping[str, Interval]]) -> list[tuple[str, str]]:
    """What the gains mean, a sentence a metric, each with ``good`` or ``warning``."""
    shortcuts = [of for name, of in found.items() if name.startswith(SHORTCUT)]
    said = []
    for metric, words in (("weighted_log_loss", "log loss"), ("auroc", "AUROC")):
        least = {"constant": found["constant"][metric]}
        if shortcuts:  # the best of them is the one to beat
            least["shortcuts"] = min((of[metric] for of in shortcuts), key=lambda gain: gain.low)
        least["mean + logistic"] = found["mean + logistic"][metric]
        parts = {name: _verdict(gain) for name, gain in least.items()}
        *some, last = (f"{_VERDICTS[of]} {_BASELINE_WORDS[name]}" for name, of in parts.items())
        is_good = (
            parts["constant"] == "better"
            and parts.get("shortcuts", "better") == "better"
            and parts["mean + logistic"] != "worse"
        )
        sentence = f"By {words}, the run is {', '.join(some)} and {last}."
        said.append(("good" if is_good else "warning", sentence))
    return said


def group_table(
    title: str, groups: Sequence[SubgroupScore], classes: Sequence[str], *, first: str
) -> Table:
    """Scores of folds, repeats or centres, with the patients of each class."""
    rows = [
        (
            group.name,
            *(f"{count:,}" for count in group.counts),
            *(_group_score(group, metric) for metric in ("weighted_log_loss", "auroc")),
        )
        for group in groups
    ]
    return _table(title, [first, *classes, "weighted log loss", "AUROC"], rows)


def calibration_table(found: Mapping[str, Reliability]) -> Table:
    """Calibration before and after."""
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
        for kind, of in found.items()
    ]
    return _table(
        "Calibration at equal class shares",
        [
            "",
            "calibration error",
            "if nothing were wrong: mean",
            "and 95th percentile",
            "slope (1 is right)",
            "intercept (0 is right)",
            "Brier score (0 to 2)",
        ],
        rows,
    )


def confusion_table(evidence: ReportData) -> Table:
    """True class by likeliest class at the balanced prior: counts, and shares of the true class."""
    likeliest = evidence.first["calibrated"].argmax(axis=1)
    rows = []
    for index, name in enumerate(evidence.classes):
        counts = np.bincount(likeliest[evidence.labels == index], minlength=len(evidence.classes))
        cells = [f"{count:,} ({percent(count / counts.sum())})" for count in counts]
        rows.append((name, *cells, f"{counts.sum():,}"))
    return _table(
        "Patients by true class (rows) and likeliest class (columns)",
        ["true class", *(f"taken for {name}" for name in evidence.classes), "all"],
        rows,
    )


def sets_table(
    evidence: ReportData, guaranteed: Mapping[str, float] | None, *, coverage: float
) -> Table:
    """Sizes of prediction sets by true class, and what they cover."""
    labels = evidence.labels
    sets = cross_fitted_sets(
        evidence.first["calibrated"], labels, evidence.fold[0], coverage=coverage
    )
    holds, sizes = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    rows = []
    for index, name in enumerate(evidence.classes):
        of = labels == index
        alone = sizes == 1
        parts = (holds & alone, ~holds & alone, sizes > 1, sizes == 0, holds)
        rows.append((
            name,
            f"{of.sum():,}",
            *(f"{part[of].sum():,} ({percent(part[of].mean())})" for part in parts),
            percent(guaranteed[name]) if guaranteed else _NONE,
        ))  # fmt: skip
    return _table(
        f"Prediction sets that aim at {percent(coverage)}",
        [
            "true class", "patients", "its class alone", "another class alone", "several classes",
            "no class", "true class in the set", "guaranteed to new patients",
        ],
        rows,
    )  # fmt: skip


def cohort_table(evidence: ReportData) -> Table:
    """Patients, slides and tiles of each class."""
    rows = []
    for index, name in enumerate(evidence.classes):
        of = evidence.labels == index
        rows.append((
            name,
            f"{of.sum():,}",
            percent(of.mean(), digits=1),
            f"{evidence.n_slides[of].sum():,}",
            f"{evidence.n_tiles[of].sum():,}",
            f"{np.median(evidence.n_tiles[of]):,.0f}",
        ))  # fmt: skip
    return _table(
        "Patients that were judged",
        ["class", "patients", "share", "slides", "tiles", "median tiles a patient"],
        rows,
    )


def incomplete_table(evidence: ReportData) -> Table:
    """Slides without a bag or a tile, and those of which tiles could not be decoded."""
    return _table(
        "Slides that are not all there",
        ["slide", "patient", "what is missing"],
        evidence.incomplete_slides,
        words=(0, 1, 2),
    )


def patients_table(
    title: str,
    evidence: ReportData,
    losses: np.ndarray,
    order: Sequence[int],
    links: Mapping[str, str],
) -> Table:
    """Patients in the order given, with what was said of each; names lead to where heads looked."""
    mean = evidence.mean["calibrated"]
    rows = []
    for patient in order:
        label, likeliest = evidence.labels[patient], int(mean[patient].argmax())
        rows.append((
            evidence.patient_ids[patient],
            evidence.classes[label],
            f"{mean[patient, label]:.3f}",
            evidence.classes[likeliest],
            f"{mean[patient, likeliest]:.3f}",
            f"{losses[patient]:.3f}",
            evidence.centres[patient] or _NONE,
            f"{evidence.n_slides[patient]:,}",
            f"{evidence.n_tiles[patient]:,}",
        ))  # fmt: skip
    return _table(
        title,
        [
            "patient", "true class", "its probability", "likeliest class", "its probability",
            "log loss", "centre", "slides", "tiles",
        ],
        rows,
        words=(0, 1, 3, 6),
        links=links,
    )  # fmt: skip


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values."""
    rows = [(name.replace("_", " "), _plain(value)) for name, value in facts.items()]
    return _table(title, ["name", "value"], rows, words=(0, 1))


def _table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[tuple[str, ...]],
    *,
    words: Sequence[int] = (0,),
    links: Mapping[str, str] | None = None,
) -> Table:
    return Table(
        title=title,
        columns=tuple(columns),
        numeric=tuple(index not in words for index in range(len(columns))),
        rows=tuple(rows),
        links=links or {},
    )


def _verdict(gain: Interval) -> str:
    """Whether a gain is told from chance by its interval."""
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


def _group_score(group: SubgroupScore, metric: str) -> str:
    return _interval(group.scores[metric]) if group.scores else _NONE


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(part) for part in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
