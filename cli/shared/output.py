"""Printed output that several commands share: findings, caveats, scores, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

from rich.text import Text

from cli.console import options_elsewhere, print_numbers, stderr, stdout, warn
from features.errors import one_line
from features.utils.text import pluralize

if TYPE_CHECKING:
    from mil.audit import Finding
    from mil.comparison.differences import Comparison
    from mil.evaluation.baselines import BaselineComparison
    from mil.evaluation.classification import ClassificationScores
    from mil.evaluation.metrics import Interval
    from mil.evaluation.scoring import ScoreReport, ScoreSettings

__all__ = [
    "calibration_as_dict",
    "print_calibration_note",
    "print_caveats",
    "print_classification",
    "print_comparison",
    "print_failures",
    "print_findings",
    "print_guarantee",
    "print_model_scores",
    "print_reliability",
    "print_scores",
    "warn_of_reversed",
]

_N_NAMED = 5
_MAX_CHARS = 2000
"""Length of the line of a finding, which may name many slides."""
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_findings(findings: Iterable[Finding]) -> None:
    """Print one line per finding: its severity, the message, and the advice."""
    for finding in findings:
        text = Text()
        text.append(f"{finding.severity.value}: ", style=_STYLES[finding.severity.value])
        told = f"{finding.message}. {finding.advice}"
        text.append(one_line(f"{told} {options_elsewhere(told)}", max_chars=_MAX_CHARS))
        stdout.print(text)


def print_caveats(caveats: Iterable[str]) -> None:
    """Print warnings and notes on standard error, one per line."""
    for caveat in caveats:
        warn(caveat)


def print_failures(messages: Iterable[str], n_slides: int) -> None:
    """Print on standard error why slides cannot be read: the first five of ``n_slides`` in full."""
    failed = list(messages)
    for message in failed[:_N_NAMED]:
        warn(f"failed: {message}")
    if len(failed) > _N_NAMED:
        stderr.print(
            f"{len(failed):,} of {pluralize(n_slides, 'slides')} failed, the first "
            f"{_N_NAMED} of them above; --json lists all",
            style="bold yellow",
        )


def print_comparison(comparison: BaselineComparison, *, label: str = "") -> None:
    """Print how a run compares with its best baseline; as a warning where the run is worse."""
    prefix = f"{label}: " if label else ""
    if comparison.verdict == "worse":
        warn(
            f"warning: {prefix}{comparison} The simple model predicts these patients better: "
            "compare other heads with --head, and see the report."
        )
    else:
        stdout.print(f"{prefix}{comparison}")


def print_guarantee(
    planned: Mapping[str, float] | None, guaranteed: Mapping[str, float] | None
) -> None:
    """Print the coverage of each class to plan with, and the guaranteed one, if there is any."""
    if planned is not None and guaranteed is not None:
        plan, least = (
            ", ".join(f"{name} {share:.2f}" for name, share in of.items())
            for of in (planned, guaranteed)
        )
        stdout.print(
            f"Similar patients: plan with a coverage of {plan}, which about 9 in 10 cohorts of "
            f"this size reach; guaranteed on average: {least}"
        )


def print_model_scores(comparison: Comparison) -> None:
    """Print the scores of each model that is compared, one per line."""
    from mil.reporting.comparison_report import METRIC_WORDS

    for name, scores in comparison.scores.items():
        of = ", ".join(f"{words} {scores[metric]}" for metric, words in METRIC_WORDS.items())
        stdout.print(f"  {name}: {of}")


_TITLES = {
    "weighted_log_loss": "weighted log loss",
    "auroc": "AUROC",
    "brier_score": "Brier",
    "calibration_error": "calibration error",
    "calibration_slope": "calibration slope",
    "calibration_intercept": "calibration intercept",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}


_KINDS = {"raw": "as in the file", "calibrated": "calibrated"}


def print_scores(
    name: str, kinds: Mapping[str, Mapping[str, Interval]], *, n_patients: int
) -> None:
    """Print the scores of one file.

    Parameters
    ----------
    name
        The file.
    kinds
        Scores by kind (raw, calibrated) and name.
    n_patients
        Patients scored.
    """
    columns, rows = [""], []
    for kind in kinds:
        # A file may well hold calibrated probabilities: without a second kind it is just scored.
        columns += ["score" if len(kinds) == 1 else _KINDS[kind], "95 % interval"]
    for key, title in _TITLES.items():
        cells = []
        for scores in kinds.values():
            score = scores[key]
            span = f"{score.low:.4f} to {score.high:.4f}"
            absent = "" if key == "calibration_error" else "not estimable"
            cells += [f"{score.value:.4f}", absent if isnan(score.low) else span]
        rows.append([title, *cells])
    print_numbers(f"{name}: {pluralize(n_patients, 'patients')}", columns, rows)


def warn_of_reversed(reports: Mapping[str, ScoreReport]) -> None:
    """Print which predictions, by name, are on the wrong side, if that is no chance."""
    for name, report in reports.items():
        if report.is_reversed:
            area = next(iter(report.scores.values()))["auroc"]
            warn(
                f"warning: {name} ranks patients worse than chance (AUROC {area}): see whether its "
                "columns of classes are exchanged, or hold the probability of the other class"
            )


def print_classification(name: str, scores: ClassificationScores) -> None:
    """Print precision, recall and F1 per class and averaged.

    Parameters
    ----------
    name
        The file, and the kind of its probabilities if there are several.
    scores
        From :func:`mil.evaluation.classification.score_classification`.
    """
    rows = [
        [class_name, f"{scores.n_patients[class_name]:,}",
         f"{scores.n_predicted[class_name]:,.4g}", *(str(score) for _, score in of_class.items())]
        for class_name, of_class in scores.classes.items()
    ]  # fmt: skip
    for average, of_average in scores.averages.items():
        rows.append([average, "", "", *(str(score) for _, score in of_average.items())])
    columns = ["class", "patients", "predicted", "precision", "recall", "F1"]
    print_numbers(f"{name}: most likely class", columns, rows)


def print_reliability(name: str, kind: str, described: Mapping[str, Any]) -> None:
    """Print reliability table, Brier decomposition and calibration error of one file.

    Parameters
    ----------
    name, kind
        The file, and whether it is raw or calibrated.
    described
        From :func:`mil.evaluation.scoring.describe_reliability`.
    """
    for class_name, of_class in described["classes"].items():
        print_numbers(
            f"{name}, {kind}: reliability of {class_name}",
            ["patients", "probabilities", "promised", "observed", "95 % interval"],
            (
                [str(row["n_patients"]), f"{row['low']:.3f} to {row['high']:.3f}",
                 f"{row['promised']:.3f}", f"{row['observed']:.3f}",
                 f"{row['observed_low']:.3f} to {row['observed_high']:.3f}"]
                for row in of_class["bins"]
            ),
            n_names=0,
        )  # fmt: skip
        parts = of_class["brier"]
        stdout.print(
            f"Brier of {class_name}: {parts['brier']:.4f} = reliability {parts['reliability']:.4f} "
            f"- resolution {parts['resolution']:.4f} + uncertainty {parts['uncertainty']:.4f} "
            f"+ within bins {parts['within_bins']:.4f}"
        )
    error = described["calibration_error"]
    stdout.print(
        f"Calibration error {error['value']:.4f}. It is biased upwards: perfect probabilities of "
        f"this spread would show {error['if_perfect']:.4f} on average, and up to "
        f"{error['if_perfect_high']:.4f} in 95 of 100 samples."
    )


def calibration_as_dict(settings: ScoreSettings) -> dict[str, object]:
    """Return how scores were calibrated, for JSON; nothing where they were not."""
    from mil.evaluation.scoring import CROSS_FITTED_NOTE

    if settings.calibrator is None:
        return {}
    return {
        "calibration": {
            "kind": "cross-fitted",
            "calibrator": settings.calibrator,
            "folds": settings.n_folds,
            "repeats": settings.n_repeats,
            "note": CROSS_FITTED_NOTE,
        }
    }


def print_calibration_note(settings: ScoreSettings) -> None:
    """Print how scores were calibrated; nothing where they were not."""
    from mil.evaluation.scoring import CROSS_FITTED_NOTE

    if settings.calibrator is not None:
        stdout.print(
            f"Calibrated by {settings.calibrator}, {pluralize(settings.n_repeats, 'repeats')} of "
            f"{settings.n_folds} folds: {CROSS_FITTED_NOTE}."
        )
