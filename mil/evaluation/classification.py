"""Precision, recall and F1 of the most likely class, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mil.arrays import Floats, Ints
from mil.evaluation.bootstrap import resampled_confusions
from mil.evaluation.metrics import Interval

__all__ = ["AVERAGES", "ClassScores", "ClassificationScores", "score_classification"]

AVERAGES = ("macro", "weighted")
"""Means over classes: of equal weight, and weighted by the share of each class."""


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Precision, recall and F1 of one class, or a mean over classes, 0 to 1."""

    precision: Interval
    recall: Interval
    f1: Interval

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {name: score.as_dict() for name, score in self.items()}

    def items(self) -> tuple[tuple[str, Interval], ...]:
        """Return names and scores, in the usual order."""
        return ("precision", self.precision), ("recall", self.recall), ("f1", self.f1)


@dataclass(frozen=True, kw_only=True)
class ClassificationScores:
    """Scores of the most likely class of each patient.

    Attributes
    ----------
    classes
        Scores by class.
    averages
        Means over classes, by :data:`AVERAGES`.
    n_patients, n_predicted
        Patients by class, and by predicted class (mean over repeats).
    """

    classes: Mapping[str, ClassScores]
    averages: Mapping[str, ClassScores]
    n_patients: Mapping[str, int]
    n_predicted: Mapping[str, float]

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON: means such as ``f1_macro``, and ``classes``."""
        plain: dict[str, object] = {
            f"{metric}_{average}": score.as_dict()
            for average, scores in self.averages.items()
            for metric, score in scores.items()
        }
        plain["classes"] = {
            name: {
                "n_patients": self.n_patients[name],
                "n_predicted": self.n_predicted[name],
                **scores.as_dict(),
            }
            for name, scores in self.classes.items()
        }
        return plain


def score_classification(
    proba: Floats,
    labels: Ints,
    classes: Sequence[str],
    *,
    shares: Floats | None = None,
    n_resamples: int,
    seed: int,
) -> ClassificationScores:
    """Score the most likely class of each patient.

    Parameters
    ----------
    proba
        Probabilities, shape (patients, columns) or (repeats, patients, columns), of which scores
        are means over repeats. Columns after those of the classes are other predictable classes:
        a patient whose most likely class is one of them is a miss of its own class.
    labels
        Class index of each patient, shape (patients,).
    classes
        Names of the classes.
    shares
        Class shares that the patients are weighted to represent, shape (classes,); None for the
        patients as they are.
    n_resamples, seed
        Of the bootstrap, see :func:`mil.evaluation.bootstrap.stratified_bootstrap`.

    Returns
    -------
    ClassificationScores
        Precision and F1 of a class that is never predicted are 0, as in scikit-learn.
    """
    n_classes = len(classes)
    predicted = np.atleast_2d(proba.argmax(axis=-1))
    counts = np.bincount(labels, minlength=n_classes)
    given = counts / counts.sum() if shares is None else shares
    observed, resampled = resampled_confusions(
        predicted, labels, n_columns=proba.shape[-1], n_resamples=n_resamples, seed=seed
    )
    # Resamples keep the class counts, so one weight per class serves them all.
    weights = (given / counts)[:, None]
    values = _class_scores(observed * weights).mean(axis=0)
    samples = _class_scores(resampled * weights)
    mixes = {"macro": np.full(n_classes, 1 / n_classes), "weighted": given}
    return ClassificationScores(
        classes={
            name: _intervals(values[:, index], samples[..., index])
            for index, name in enumerate(classes)
        },
        averages={name: _intervals(values @ mixes[name], samples @ mixes[name])
                  for name in AVERAGES},
        n_patients=dict(zip(classes, counts.tolist(), strict=True)),
        n_predicted={
            name: float((predicted == index).sum(axis=1).mean())
            for index, name in enumerate(classes)
        },
    )  # fmt: skip


def _class_scores(confusions: Floats) -> Floats:
    """Return precision, recall and F1, shape (n, 3, classes), of (n, classes, columns)."""
    n_classes = confusions.shape[1]
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    predicted = confusions[:, :, :n_classes].sum(axis=1)
    actual = confusions.sum(axis=2)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    return np.stack([precision, hits / actual, 2 * hits / (predicted + actual)], axis=1)


def _intervals(values: Floats, samples: Floats) -> ClassScores:
    """Return the scores of values, shape (3,), with intervals over samples, (resamples, 3)."""
    limits = (
        np.percentile(samples, [2.5, 97.5], axis=0) if len(samples) else np.full((2, 3), np.nan)
    )
    precision, recall, f1 = (
        Interval(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(values, *limits, strict=True)
    )
    return ClassScores(precision=precision, recall=recall, f1=f1)
