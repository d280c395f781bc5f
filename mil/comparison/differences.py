"""Paired differences of scores between models, with Holm's correction for their number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from mil.arrays import Floats
from mil.comparison.agreement import compare_patients, shared_errors
from mil.comparison.models import AlignedModels
from mil.evaluation.bootstrap import resampled_scores
from mil.evaluation.metrics import (
    Interval,
    Metric,
    auroc,
    balanced_brier_score,
    weighted_log_loss,
)

__all__ = [
    "LEVEL",
    "METRICS",
    "Comparison",
    "PairedDifference",
    "Verdict",
    "compare_models",
    "holm",
]

Verdict = Literal["better", "no difference shown", "worse"]

METRICS: Mapping[str, tuple[Metric, float]] = {
    "weighted_log_loss": (weighted_log_loss, -1.0),
    "auroc": (auroc, 1.0),
    "brier_score": (balanced_brier_score, -1.0),
}
"""Scores that are compared, all at the balanced prior, with the sign that makes more better."""

LEVEL = 0.05
"""Largest chance that any verdict of a comparison but "no difference shown" is wrong."""

_MIN_RESAMPLES = 5000
_RESAMPLES_PER_COMPARISON = 200  # so that Holm's smallest limit is ten times 1 / resamples


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Difference of two models by one metric, positive where the first is better.

    Attributes
    ----------
    first, second
        Names of the models.
    metric
        One of :data:`METRICS`.
    difference
        With the 95 percent interval of this difference by itself.
    p_value, adjusted_p_value
        Two-sided, of this difference by itself and among all of the comparison (Holm, 1979).
    """

    first: str
    second: str
    metric: str
    difference: Interval
    p_value: float
    adjusted_p_value: float

    @property
    def verdict(self) -> Verdict:
        """Whether the first model is shown to be better or worse than the second."""
        if not self.adjusted_p_value <= LEVEL:
            return "no difference shown"
        return "better" if self.difference.value > 0 else "worse"

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "metric": self.metric,
            **self.difference.as_dict(),
            "p_value": self.p_value,
            "adjusted_p_value": self.adjusted_p_value,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Scores of models with intervals, by name and metric, and the differences of all pairs."""

    models: AlignedModels
    scores: Mapping[str, Mapping[str, Interval]]
    differences: tuple[PairedDifference, ...]
    n_resamples: int

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        models = self.models
        return {
            "n_patients": len(models.patient_ids),
            "class_counts": dict(
                zip(models.classes, np.bincount(models.labels).tolist(), strict=True)
            ),
            "n_resamples": self.n_resamples,
            "correction": "Holm, all pairs and metrics together",
            "models": [
                {
                    "name": model.name,
                    "n_repeats": len(model.proba),
                    "n_patients_not_shared": left_out,
                    **{m: of.as_dict() for m, of in self.scores[model.name].items()},
                }
                for model, left_out in zip(models.models, models.n_left_out, strict=True)
            ],
            "differences": [one.as_dict() for one in self.differences],
            "agreement": [one.as_dict() for one in compare_patients(models)],
            "wrong_by_all": [models.patient_ids[row] for row in shared_errors(models)],
            "notes": list(models.notes),
        }

    def find(self, first: str, second: str, metric: str) -> tuple[Interval, Verdict]:
        """Return the difference of two models, in either order, and its verdict."""
        for one in self.differences:
            if one.metric == metric and (one.first, one.second) == (first, second):
                return one.difference, one.verdict
        of, verdict = self.find(second, first, metric)
        turned: Mapping[Verdict, Verdict] = {"better": "worse", "worse": "better"}
        flipped = Interval(value=-of.value, low=-of.high, high=-of.low)
        return flipped, turned.get(verdict, verdict)


def compare_models(
    models: AlignedModels, *, seed: int = 0, n_resamples: int | None = None
) -> Comparison:
    """Compare every pair of models by every metric, on the same resampled patients.

    Patients are resampled within their classes (paired bootstrap; Efron and Tibshirani, 1993), and
    each resample takes the next repeat of each model, so that the variance of training and folds is
    in an interval as far as a model was trained repeatedly. The p-value is twice the share of
    resampled differences on the other side of 0. All pairs and metrics are corrected together
    (Holm, 1979). ``n_resamples`` is by default enough for the number of comparisons. ``models`` are
    probabilities of shape (repeats, patients, classes) each.
    """
    names = [model.name for model in models.models]
    pairs = list(combinations(range(len(names)), 2))
    n_comparisons = len(pairs) * len(METRICS)
    n = n_resamples or max(_MIN_RESAMPLES, _RESAMPLES_PER_COMPARISON * n_comparisons)
    values = np.empty((len(METRICS), len(names)))
    samples = np.empty((len(METRICS), len(names), n))
    for row, (metric, _) in enumerate(METRICS.values()):
        for column, model in enumerate(models.models):
            of_repeats = [metric(one, models.labels) for one in model.proba]
            values[row, column] = np.mean(of_repeats)
            samples[row, column] = resampled_scores(
                metric, model.proba, models.labels, n_resamples=n, seed=seed
            )
    found = []
    for row, (metric_name, (_, sign)) in enumerate(METRICS.items()):
        for first, second in pairs:
            value = sign * (values[row, first] - values[row, second])
            of_samples = sign * (samples[row, first] - samples[row, second])
            found.append((names[first], names[second], metric_name, value, of_samples))
    p_values = np.array([two_sided_p_value(of_samples) for *_, of_samples in found])
    return Comparison(
        models=models,
        scores={
            name: {
                metric_name: _interval(values[row, column], samples[row, column])
                for row, metric_name in enumerate(METRICS)
            }
            for column, name in enumerate(names)
        },
        differences=tuple(
            PairedDifference(
                first=first, second=second, metric=metric_name,
                difference=_interval(value, of_samples), p_value=p_value, adjusted_p_value=adjusted,
            )
            for (first, second, metric_name, value, of_samples), p_value, adjusted in zip(
                found, p_values.tolist(), holm(p_values).tolist(), strict=True
            )
        ),
        n_resamples=n,
    )  # fmt: skip


def two_sided_p_value(differences: Floats) -> float:
    """Return the p-value of no difference from resampled differences, shape (resamples,).

    One is added to both counts, so that it is never 0 (Davison and Hinkley, 1997).
    """
    n = len(differences)
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (1 + n))


def holm(p_values: Floats) -> Floats:
    """Return p-values corrected for their number, shape (n,) (Holm, 1979).

    Rejecting those of at most α keeps the chance of any false rejection at α, whatever their
    dependence.

    Examples
    --------
    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def _interval(value: float, samples: Floats) -> Interval:
    low, high = np.percentile(samples, [2.5, 97.5])
    return Interval(value=float(value), low=float(low), high=float(high))
