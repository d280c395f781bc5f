"""Scores of predictions at a stated prior, raw and after cross-fitted calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from features.utils.text import pluralize
from mil.arrays import Floats, Ints
from mil.calibration import build_calibrator, clipped_log, cross_fit
from mil.calibration.priors import balanced, shift_prior
from mil.data.cohort import Cohort
from mil.data.splits import stratified_fold_ids
from mil.errors import CalibrationError
from mil.evaluation.bootstrap import stratified_bootstrap
from mil.evaluation.calibration_slope import calibration_slope_and_intercepts, intercept_of
from mil.evaluation.classification import ClassificationScores, score_classification
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

_MIN_TO_CALL_REVERSED = 10
"""Fewest patients of each class whose predictions are called reversed."""

INTERVAL_NOTE = (
    "95 % intervals: class-stratified bootstrap over patients; the variance of training is not in "
    "them"
)

CROSS_FITTED_NOTE = (
    "calibrated scores are cross-fitted: the calibrator of a patient was fitted on other patients, "
    "whose predictions may come from models that were trained on the patient; a score is the mean "
    "over the repeats, and its interval holds the choice of folds as well"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreSettings:
    """Settings of a scoring.

    ``file_prior`` and ``prior``, shape (classes,), are the class shares of the predictions and
    those at which calibration is measured. With a ``calibrator``, predictions are also scored after
    ``n_repeats`` cross-fits, each with ``n_folds`` other folds.
    """

    file_prior: Floats
    prior: Floats
    calibrator: str | None
    n_folds: int
    n_repeats: int
    reliability: bool
    n_resamples: int
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreReport:
    """Scores of a set of predictions, by kind: ``raw`` and, on request, ``calibrated``.

    ``classification`` are precision, recall and F1 of the most likely class at the stated prior.
    ``reliability`` holds the results of :func:`describe_reliability` by kind, ``calibrators`` the
    number of fitted calibrators by kind of calibrator, and ``calibrated`` the cross-fitted
    probabilities at the balanced prior, shape (repeats, patients, classes). They are empty or None
    if not requested. ``is_reversed`` says that two classes are exchanged in the predictions, beyond
    chance.
    """

    scores: Mapping[str, Mapping[str, Interval]]
    classification: Mapping[str, ClassificationScores]
    reliability: Mapping[str, Mapping[str, Any]]
    calibrators: Mapping[str, int]
    calibrated: Floats | None
    is_reversed: bool

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        plain: dict[str, object] = {
            kind: {
                **{name: score.as_dict() for name, score in scores.items()},
                **self.classification[kind].as_dict(),
            }
            for kind, scores in self.scores.items()
        }
        if self.calibrators:
            plain["calibrators"] = dict(self.calibrators)
        if self.reliability:
            plain["reliability"] = dict(self.reliability)
        return plain


def score_model(proba: Floats, cohort: Cohort, settings: ScoreSettings) -> ScoreReport:
    """Score predictions, shape (patients, columns), raw and after cross-fitted calibration.

    Predictions are in the order of the cohort; calibration is done on request. Columns after those
    of the cohort's classes are classes that no patient has, see :func:`score_predictions`.

    Raises
    ------
    CalibrationError
        As :func:`calibrate_predictions`; or if calibration or reliability is asked for, and there
        are columns of other classes.
    """
    labels = cohort.labels
    if proba.shape[1] > len(cohort.classes) and (settings.calibrator or settings.reliability):
        raise CalibrationError(
            "--calibrate" if settings.calibrator else "--reliability",
            actual="predictions of a class that no patient has",
            expected=f"of {', '.join(cohort.classes)} only",
            hint="Leave the option out, or give labels with patients of every class.",
        )
    kinds = {"raw": (proba, settings)}
    calibrators: Mapping[str, int] = {}
    calibrated: Floats | None = None
    if settings.calibrator is not None:
        calibrated = calibrate_predictions(proba, labels, settings)
        at_even = replace(settings, file_prior=balanced(cohort.classes))
        kinds["calibrated"] = (calibrated, at_even)
        kind = build_calibrator(settings.calibrator).kind
        calibrators = {kind: settings.n_folds * settings.n_repeats}
    return ScoreReport(
        scores={kind: score_predictions(p, labels, of) for kind, (p, of) in kinds.items()},
        classification={
            kind: score_classification(
                _at_prior(p, old=of.file_prior, new=of.prior), labels, cohort.classes,
                shares=of.prior, n_resamples=of.n_resamples, seed=of.seed,
            )
            for kind, (p, of) in kinds.items()
        },
        reliability={
            kind: describe_reliability(p, cohort, of)
            for kind, (p, of) in kinds.items()
            if settings.reliability
        },
        calibrators=calibrators,
        calibrated=calibrated,
        is_reversed=_is_reversed(proba, labels, settings),
    )  # fmt: skip


def calibrate_predictions(proba: Floats, labels: Ints, settings: ScoreSettings) -> Floats:
    """Return probabilities, shape (repeats, patients, classes), calibrated on other patients.

    They are at the balanced prior. Folds are drawn anew in each repeat, stratified by class.
    ``proba`` has shape (patients, classes), so a patient's slides are never on both sides;
    ``labels`` has shape (patients,).

    Raises
    ------
    CalibrationError
        If the calibrator is unknown, a class has too few patients, or there are more folds than
        patients.
    """
    n_folds, n_repeats = settings.n_folds, settings.n_repeats
    if n_folds > len(labels):
        raise CalibrationError(
            "folds", actual=f"{n_folds} for {pluralize(len(labels), 'patients')}",
            expected="no more than patients",
        )  # fmt: skip
    even = np.full(proba.shape[1], 1 / proba.shape[1])
    logits = clipped_log(_at_prior(proba, old=settings.file_prior, new=even))
    seeds = [(settings.seed, repeat) for repeat in range(n_repeats)]
    folds = np.stack([stratified_fold_ids(labels, n_folds=n_folds, seed=seed) for seed in seeds])
    repeated = np.broadcast_to(logits, (n_repeats, *logits.shape))
    return cross_fit(repeated, labels, folds, calibrator=settings.calibrator or "none")


def score_predictions(proba: Floats, labels: Ints, settings: ScoreSettings) -> dict[str, Interval]:
    """Return all scores of one set of predictions, or of the repeats of a cross-fit.

    Weighted log loss, AUROC, balanced accuracy, calibration slope and intercept are for the
    balanced prior; Brier score, calibration error and accuracy for ``settings.prior``, after the
    exact shift and with patients weighted so that the sample represents it. The limits of the
    calibration error are NaN; :func:`describe_reliability` says what chance gives. ``proba`` has
    shape (patients, classes), or (repeats, patients, classes) as for
    :func:`mil.evaluation.bootstrap.stratified_bootstrap`; ``labels`` has shape (patients,).

    Columns after those of the classes of the priors are classes that no patient has. What was
    predicted for them stays in each row's sum and is an error of log loss, Brier score,
    calibration error and accuracies; AUROC, slope and intercept compare the other classes alone.
    """
    n_classes = len(settings.prior)
    even = np.full(n_classes, 1 / n_classes)

    def weights(truth: Ints) -> Floats:
        return prior_weights(truth, settings.prior, n_classes=n_classes)

    at_even: dict[str, Metric] = {
        "weighted_log_loss": weighted_log_loss,
        "auroc": auroc,
        "balanced_accuracy": balanced_accuracy,
        "calibration_slope": lambda p, y: calibration_slope_and_intercepts(p, y)[0],
        "calibration_intercept": lambda p, y: intercept_of(
            calibration_slope_and_intercepts(p, y)[1]
        ),
    }
    if proba.shape[-1] > n_classes:
        at_even = _with_other_classes(at_even, n_classes, n_columns=proba.shape[-1])
    at_prior: dict[str, Metric] = {
        "brier_score": lambda p, y: brier_score(p, y, weights=weights(y)),
        "accuracy": lambda p, y: accuracy(p, y, weights=weights(y)),
    }
    # Chance raises the error of a resample a second time: its limits may lie above the error.
    without_interval: dict[str, Metric] = {
        "calibration_error": lambda p, y: expected_calibration_error(p, y, weights=weights(y)),
    }
    return {
        name: score
        for shares, metrics, n_resamples in (
            (even, at_even, settings.n_resamples),
            (settings.prior, at_prior, settings.n_resamples),
            (settings.prior, without_interval, 0),
        )
        for name, score in stratified_bootstrap(
            metrics,
            _at_prior(proba, old=settings.file_prior, new=shares),
            labels,
            n_resamples=n_resamples,
            seed=settings.seed,
        ).items()
    }


def describe_reliability(proba: Floats, cohort: Cohort, settings: ScoreSettings) -> dict[str, Any]:
    """Return calibration error, reliability table and Brier decomposition as plain values.

    ``proba`` has shape (patients, classes), or (repeats, patients, classes), of which the mean over
    repeats is described. Of two classes the second is described, of more each.
    """
    classes, labels, prior = cohort.classes, cohort.labels, settings.prior
    mean = proba if proba.ndim == 2 else proba.mean(axis=0)
    at_prior = _at_prior(mean, old=settings.file_prior, new=prior)
    shown = range(1, 2) if len(classes) == 2 else range(len(classes))
    return {
        "calibration_error": asdict(
            expected_error(at_prior, labels, prior=prior, seed=settings.seed)
        ),
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
    """Return the weighted log losses, in nats, of equal shares and of the cohort's shares."""
    n_patients = len(cohort.patients)
    shares = np.array(list(cohort.class_counts().values())) / n_patients
    return {
        name: weighted_log_loss(np.tile(row, (n_patients, 1)), cohort.labels)
        for name, row in (("constant", balanced(cohort.classes)), ("cohort_prior", shares))
    }


def _is_reversed(proba: Floats, labels: Ints, settings: ScoreSettings) -> bool:
    """Return whether exchanged probabilities of two classes are better than a constant.

    An AUROC below 0.5 does not show it: cross-validated predictions without any signal are on the
    wrong side by up to what leaving a patient out takes from the share of the patient's class.
    """
    smallest = np.bincount(labels, minlength=2).min()
    if proba.shape[1] != 2 or smallest < _MIN_TO_CALL_REVERSED:
        return False
    even = np.full(2, 0.5)
    exchanged = _at_prior(proba[:, ::-1], old=settings.file_prior, new=even)
    losses = stratified_bootstrap(
        {"weighted_log_loss": weighted_log_loss}, exchanged, labels,
        n_resamples=settings.n_resamples, seed=settings.seed,
    )  # fmt: skip
    return bool(losses["weighted_log_loss"].high < np.log(2) - 1 / smallest)


def _with_other_classes(
    metrics: Mapping[str, Metric], n_classes: int, *, n_columns: int
) -> dict[str, Metric]:
    """Return metrics, at equal shares, of predictions with columns of other classes."""
    counted = np.repeat([1.0, 0.0], [n_classes, n_columns - n_classes])

    def of_classes(metric: Metric) -> Metric:
        return lambda p, y: metric(_without_others(p, n_classes)[0], y)

    kept: dict[str, Metric] = {
        "weighted_log_loss": lambda p, y: weighted_log_loss(p, y, class_weights=counted),
        "balanced_accuracy": lambda p, y: accuracy(
            p, y, weights=prior_weights(y, None, n_classes=n_classes)
        ),
    }
    return {name: kept.get(name) or of_classes(metric) for name, metric in metrics.items()}


def _at_prior(proba: Floats, *, old: Floats, new: Floats) -> Floats:
    """Shift probabilities, shape (..., columns); equal priors leave them exactly as they are.

    Columns after those of the priors' classes keep their probabilities, since no prior is known
    for them.
    """
    if np.allclose(new, old, rtol=0, atol=1e-12):
        return proba
    flat = proba.reshape(-1, proba.shape[-1])
    if proba.shape[-1] == len(old):
        return shift_prior(flat, old=old, new=new).reshape(proba.shape)
    known, mass = _without_others(flat, len(old))
    shifted = mass * shift_prior(known, old=old, new=new)
    return np.concatenate([shifted, flat[:, len(old) :]], axis=1).reshape(proba.shape)


def _without_others(proba: Floats, n_classes: int) -> tuple[Floats, Floats]:
    """Return probabilities of the classes, rescaled to sum to 1, and their sums before, (n, 1).

    Rows without any probability of these classes become equal shares.
    """
    known = proba[:, :n_classes]
    mass = known.sum(axis=1, keepdims=True)
    even = np.full_like(known, 1 / n_classes)
    return np.divide(known, mass, out=even, where=mass > 0), mass
