"""Scores of predictions at a stated prior, raw and after cross-fitted calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.utils.text import pluralize
from mil.calibration import build_calibrator, clipped_log, cross_fit
from mil.calibration.priors import balanced, shift_prior
from mil.data.cohort import Cohort
from mil.data.splits import stratified_fold_ids
from mil.errors import CalibrationError
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.calibration_slope import calibration_slope_and_intercepts, intercept_of
from mil.evaluation.metrics import (
    Interval,
    Metric,
    accuracy,
    auroc,
    balanced_accuracy,
    brier_score,
    expected_calibration_error,
    prior_weights,
    weighted_log_loss,
)
from mil.evaluation.reliability import brier_parts, expected_error, reliability_table

__all__ = [
    "CROSS_FITTED_NOTE",
    "INTERVAL_NOTE",
    "ScoreReport",
    "ScoreSettings",
    "baseline_losses",
    "calibrate_predictions",
    "describe_reliability",
    "score_model",
    "score_predictions",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

INTERVAL_NOTE = (
    "95 % intervals: class-stratified bootstrap over patients; the variance of training is not in "
    "them"
)
"""Meaning of the intervals, shown wherever they are."""

CROSS_FITTED_NOTE = (
    "calibrated scores are cross-fitted: the calibrator of a patient was fitted on other patients, "
    "whose predictions may come from models that were trained on the patient; a score is the mean "
    "over the repeats, and its interval holds the choice of folds as well"
)
"""Meaning of calibrated scores, shown wherever they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSettings:
    """Settings of a scoring, for every set of predictions."""

    file_prior: Floats
    """Class shares of the predictions, shape (classes,)."""
    prior: Floats
    """Class shares at which calibration is measured, shape (classes,)."""
    calibrator: str | None
    """Name of the calibrator to cross-fit; None to score the predictions alone."""
    n_folds: int
    """Folds of each cross-fit."""
    n_repeats: int
    """Cross-fits, each with other folds."""
    reliability: bool
    """Whether reliability is described."""
    n_resamples: int
    """Bootstrap resamples."""
    seed: int
    """Seed of folds and resamples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreReport:
    """Scores of a set of predictions, by kind: ``raw`` and, on request, ``calibrated``."""

    scores: Mapping[str, Mapping[str, Interval]]
    """Scores by kind and name."""
    reliability: Mapping[str, Mapping[str, Any]]
    """Results of :func:`describe_reliability` by kind; empty if not requested."""
    calibrators: Mapping[str, int]
    """Number of fitted calibrators by kind; empty if none were requested."""
    calibrated: Floats | None
    """Cross-fitted probabilities at the balanced prior, shape (repeats, patients, classes); None if
    not requested."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        plain: dict[str, object] = {
            kind: {name: score.as_dict() for name, score in scores.items()}
            for kind, scores in self.scores.items()
        }
        if self.calibrators:
            plain["calibrators"] = dict(self.calibrators)
        if self.reliability:
            plain["reliability"] = dict(self.reliability)
        return plain


def score_model(proba: Floats, cohort: Cohort, settings: ScoreSettings) -> ScoreReport:
    """Score one model's predictions, raw and, on request, after cross-fitted calibration.

    Parameters
    ----------
    proba
        Probabilities, float64, shape (patients, classes), in the cohort's order.
    cohort
        Patients and labels.
    settings
        Settings of the scoring.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown or a class has too few patients.
    """
    kinds = {"raw": (proba, settings.file_prior)}
    calibrators: Mapping[str, int] = {}
    calibrated: Floats | None = None
    if settings.calibrator is not None:
        calibrated = calibrate_predictions(
            proba,
            cohort.labels,
            file_prior=settings.file_prior,
            calibrator=settings.calibrator,
            n_folds=settings.n_folds,
            n_repeats=settings.n_repeats,
            seed=settings.seed,
        )
        kinds["calibrated"] = (calibrated, balanced(cohort.classes))
        kind = build_calibrator(settings.calibrator).kind
        calibrators = {kind: settings.n_folds * settings.n_repeats}
    return ScoreReport(
        scores={
            kind: score_predictions(
                values,
                cohort.labels,
                file_prior=shares,
                prior=settings.prior,
                n_resamples=settings.n_resamples,
                seed=settings.seed,
            )
            for kind, (values, shares) in kinds.items()
        },
        reliability={
            kind: describe_reliability(
                values,
                cohort.labels,
                classes=cohort.classes,
                file_prior=shares,
                prior=settings.prior,
                seed=settings.seed,
            )
            for kind, (values, shares) in kinds.items()
            if settings.reliability
        },
        calibrators=calibrators,
        calibrated=calibrated,
    )


def calibrate_predictions(
    proba: Floats,
    labels: Ints,
    *,
    file_prior: Floats,
    calibrator: str,
    n_folds: int,
    n_repeats: int,
    seed: int,
) -> Floats:
    """Return probabilities by calibrators that were fitted on other patients.

    Folds are drawn anew in each repeat, stratified by class. There is one row per patient, so a
    patient's slides are never on both sides.

    Parameters
    ----------
    proba
        Shape (patients, classes).
    labels
        Shape (patients,).
    file_prior
        Class shares of the predictions, shape (classes,).
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.
    n_folds, n_repeats
        Folds of each cross-fit, and number of cross-fits.
    seed
        Seed of the folds.

    Returns
    -------
    numpy.ndarray
        At the balanced prior, float64, shape (repeats, patients, classes).

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, a class has too few patients, or there are more folds than
        patients.
    """
    if n_folds > len(labels):
        raise CalibrationError(
            "folds", actual=f"{n_folds} for {pluralize(len(labels), 'patients')}",
            expected="no more than patients",
        )  # fmt: skip
    even = np.full(len(file_prior), 1 / len(file_prior))
    logits = clipped_log(_at_prior(proba, old=file_prior, new=even))
    folds = np.stack(
        [stratified_fold_ids(labels, n_folds=n_folds, seed=(seed, r)) for r in range(n_repeats)]
    )
    repeated = np.broadcast_to(logits, (n_repeats, *logits.shape))
    return cross_fit(repeated, labels, folds, calibrator=calibrator)


def score_predictions(
    proba: Floats,
    labels: Ints,
    *,
    file_prior: Floats,
    prior: Floats,
    n_resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Return all scores of one set of predictions, or of the repeats of a cross-fit.

    Weighted log loss, AUROC, balanced accuracy, calibration slope and intercept are for the
    balanced prior; Brier score, calibration error and accuracy for ``prior``, after the exact shift
    and with patients weighted so that the sample represents it.

    Parameters
    ----------
    proba
        Probabilities, shape (patients, classes), or (repeats, patients, classes): then a score is
        the mean over repeats, and each resample of patients takes the next repeat.
    labels
        Shape (patients,).
    file_prior
        Class shares of the predictions, shape (classes,).
    prior
        Class shares at which calibration is measured, shape (classes,).
    n_resamples, seed
        Number of bootstrap resamples, and their seed.
    """
    n_classes = proba.shape[-1]
    even = np.full(n_classes, 1 / n_classes)

    def weights(truth: Ints) -> Floats:
        return prior_weights(truth, prior, n_classes=n_classes)

    at_even: dict[str, Metric] = {
        "weighted_log_loss": weighted_log_loss,
        "auroc": auroc,
        "balanced_accuracy": balanced_accuracy,
        "calibration_slope": lambda p, y: calibration_slope_and_intercepts(p, y)[0],
        "calibration_intercept": lambda p, y: intercept_of(
            calibration_slope_and_intercepts(p, y)[1]
        ),
    }
    at_prior: dict[str, Metric] = {
        "brier_score": lambda p, y: brier_score(p, y, weights=weights(y)),
        "calibration_error": lambda p, y: expected_calibration_error(p, y, weights=weights(y)),
        "accuracy": lambda p, y: accuracy(p, y, weights=weights(y)),
    }
    return {
        name: score
        for shares, metrics in ((even, at_even), (prior, at_prior))
        for name, score in stratified_bootstrap(
            metrics,
            _at_prior(proba, old=file_prior, new=shares),
            labels,
            n_resamples=n_resamples,
            seed=seed,
        ).items()
    }


def describe_reliability(
    proba: Floats,
    labels: Ints,
    *,
    classes: Sequence[str],
    file_prior: Floats,
    prior: Floats,
    seed: int,
) -> dict[str, Any]:
    """Return calibration error, reliability table and Brier decomposition as plain values.

    Parameters
    ----------
    proba
        Probabilities, shape (patients, classes), or (repeats, patients, classes): then the means
        over repeats are described.
    labels
        Shape (patients,).
    classes
        Names of the classes. Of two classes the second is described, of more each.
    file_prior, prior
        Class shares of the predictions and of the result, shape (classes,).
    seed
        Seed of the draws that estimate the bias of the calibration error.
    """
    mean = proba if proba.ndim == 2 else proba.mean(axis=0)
    at_prior = _at_prior(mean, old=file_prior, new=prior)
    shown = range(1, 2) if len(classes) == 2 else range(len(classes))
    return {
        "calibration_error": asdict(expected_error(at_prior, labels, prior=prior, seed=seed)),
        "classes": {
            classes[index]: {
                "bins": [
                    asdict(one) for one in reliability_table(at_prior, labels, index, prior=prior)
                ],
                "brier": asdict(brier_parts(at_prior, labels, index, prior=prior)),
            }
            for index in shown
        },
    }


def baseline_losses(cohort: Cohort) -> Mapping[str, float]:
    """Return the weighted log losses of constant predictions: equal, and the cohort's shares."""
    n_patients = len(cohort.patients)
    shares = np.array(list(cohort.class_counts().values())) / n_patients
    return {
        name: weighted_log_loss(np.tile(row, (n_patients, 1)), cohort.labels)
        for name, row in (("constant", balanced(cohort.classes)), ("cohort_prior", shares))
    }


def _at_prior(proba: Floats, *, old: Floats, new: Floats) -> Floats:
    """Shift to another prior; equal priors leave the values exactly as they are."""
    if np.allclose(new, old, rtol=0, atol=1e-12):
        return proba
    flat = shift_prior(proba.reshape(-1, proba.shape[-1]), old=old, new=new)
    return flat.reshape(proba.shape)
