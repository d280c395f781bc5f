"""Calibrators that were compared with those of :mod:`mil.calibration`, and no better.

They share the targets, weights and penalties of Platt scaling there. Decision 0017 has the
comparison; the calibrators are here so that it can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self

import numpy as np
from scipy.special import log_softmax, softmax

from mil.arrays import Floats, Ints
from mil.calibration import PlattScaling, build_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    CalibrationData,
    bias_terms,
    fit_penalized_softmax,
)
from mil.calibration.platt import fit_platt
from mil.data.splits import stratified_fold_ids

__all__ = [
    "AutoCalibrator", "BetaCalibration", "DirichletCalibration", "PlainPlattScaling",
    "build_any_calibrator",
]  # fmt: skip

_N_PARTS = 5
_MIN_PATIENTS_TO_CHOOSE = 10
_MIN_PROBABILITY = 1e-15
_RIDGE_OFF_DIAGONAL = 5.0


class AnyCalibrator(Protocol):
    """Whatever is fitted on logits and gives probabilities at the balanced prior."""

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit, see :meth:`mil.calibration.Calibrator.fit`."""

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities, shape (n, classes)."""


class PlainPlattScaling(PlattScaling):
    """Platt scaling by itself, not averaged with anything: the default before decision 29."""

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit slope and biases, see :meth:`mil.calibration.Calibrator.fit`."""
        self.slope_, self.bias_ = fit_platt(CalibrationData.of(logits, labels, groups=groups))
        return self


class BetaCalibration:
    """``logit q = a ln p - b ln(1 - p) + c`` with ``a, b >= 0`` (Kull et al., 2017); two classes.

    The family holds the identity (a = b = 1, c = 0) and, with a = b, Platt's sigmoid; a and b that
    differ bend the map where one class is overconfident and the other is not.

    Attributes
    ----------
    slopes_
        Factor of each class's log probability, (b, a) above, shape (2,); at least 0.
    bias_
        Shape (2,), sums to 0; c is their difference.
    """

    slopes_: Floats
    bias_: Floats

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit slopes and biases, see :meth:`mil.calibration.Calibrator.fit`."""
        data = CalibrationData.of(logits, labels, groups=groups)
        logs = log_softmax(logits, axis=1) / data.spread
        coefficients = fit_penalized_softmax(
            np.concatenate([np.eye(2)[:, None] * logs, bias_terms(len(logits), 2)]),
            data,
            ridge=np.array([RIDGE_SLOPE / 2] * 2 + [RIDGE_BIAS] * 2),
            nonnegative=np.array([0, 1]),
        )
        self.slopes_ = coefficients[:2] / data.spread
        self.bias_ = coefficients[2:] - coefficients[2:].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, 2); rows sum to 1."""
        scaled = self.slopes_ * log_softmax(logits, axis=1) + self.bias_
        return np.asarray(softmax(scaled, axis=1), np.float64)


class DirichletCalibration:
    """``softmax(matrix_ @ ln p + bias_)`` (Kull et al., 2019) for three or more classes.

    A ridge ten times that of a slope keeps the matrix small off its diagonal (the paper's ODIR);
    the diagonal is not negative. Unlike the others it may re-rank patients: a class that is often
    taken for another takes probability from it.

    Attributes
    ----------
    matrix_
        Shape (classes, classes): row c holds what each log probability adds to class c.
    bias_
        Shape (classes,), sums to 0.
    """

    matrix_: Floats
    bias_: Floats

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit matrix and biases, see :meth:`mil.calibration.Calibrator.fit`."""
        data = CalibrationData.of(logits, labels, groups=groups)
        n, n_classes = logits.shape
        logs = log_softmax(logits, axis=1) / data.spread
        # Term (c, j) adds the log probability of class j to the logit of class c.
        into, of = np.divmod(np.arange(n_classes**2), n_classes)
        terms = np.zeros((n_classes**2, n, n_classes))
        terms[np.arange(n_classes**2), :, into] = logs.T[of]
        ridge = np.where(into == of, RIDGE_SLOPE / n_classes, _RIDGE_OFF_DIAGONAL)
        coefficients = fit_penalized_softmax(
            np.concatenate([terms, bias_terms(n, n_classes)]),
            data,
            ridge=np.concatenate([ridge, np.full(n_classes, RIDGE_BIAS)]),
            nonnegative=np.flatnonzero(into == of),
        )
        self.matrix_ = coefficients[: n_classes**2].reshape(n_classes, n_classes) / data.spread
        self.bias_ = coefficients[n_classes**2 :] - coefficients[n_classes**2 :].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        scaled = log_softmax(logits, axis=1) @ self.matrix_.T + self.bias_
        return np.asarray(softmax(scaled, axis=1), np.float64)


class AutoCalibrator:
    """The calibrator that an inner cross-validation picks, with a preference for few parameters.

    Each candidate is fitted on four fifths of the patients and scored on the rest by balanced log
    loss. Of the candidates within one standard error of the best, the one with the fewest
    parameters is fitted on all patients (the one-standard-error rule of Breiman et al., 1984, with
    the error of the paired difference over patients). Where a class has fewer than 10 patients
    Platt scaling is taken. Uncalibrated logits are no candidate: they have no parameter, but no
    shrinkage either, and the rule would keep overconfident logits in most cohorts of a hundred.

    Attributes
    ----------
    name_
        Name of the calibrator taken.
    picked_
        The calibrator taken, fitted.
    losses_
        Balanced log loss of each candidate by name; empty where there were too few patients.
    """

    name_: str
    picked_: AnyCalibrator
    losses_: Mapping[str, float]

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Pick and fit, see :meth:`mil.calibration.Calibrator.fit`."""
        n_classes = logits.shape[1]
        groups = np.arange(len(labels)) if groups is None else groups
        patients, first, patient = np.unique(groups, return_index=True, return_inverse=True)
        self.name_, self.losses_ = "plain platt", {}
        if np.bincount(labels[first], minlength=n_classes).min() >= _MIN_PATIENTS_TO_CHOOSE:
            parts = stratified_fold_ids(labels[first], n_folds=_N_PARTS, seed=(len(patients),))
            weights = CalibrationData.of(logits, labels, groups=groups).sample_weight
            # Candidates in order of their number of parameters.
            losses = {
                name: _held_out_losses(name, logits, labels, groups, parts[patient])
                for name in (
                    "temperature",
                    "plain platt",
                    "beta" if n_classes == 2 else "dirichlet",
                )
            }
            self.losses_ = {
                name: float(np.average(loss, weights=weights)) for name, loss in losses.items()
            }
            self.name_ = _one_standard_error_choice(losses, self.losses_, patient, labels[first])
        self.picked_ = build_any_calibrator(self.name_).fit(logits, labels, groups=groups)
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        return self.picked_.predict_proba(logits)


def build_any_calibrator(name: str) -> AnyCalibrator:
    """Return an unfitted calibrator of this module or of :mod:`mil.calibration`."""
    ours: dict[str, Callable[[], AnyCalibrator]] = {
        "auto": AutoCalibrator, "beta": BetaCalibration, "dirichlet": DirichletCalibration,
        "plain platt": PlainPlattScaling,
    }  # fmt: skip
    return ours[name]() if name in ours else build_calibrator(name)


def _held_out_losses(name: str, logits: Floats, labels: Ints, groups: Ints, parts: Ints) -> Floats:
    """Return the log loss of each row by a calibrator fitted on the other parts, shape (n,)."""
    losses = np.empty(len(labels))
    for part in range(_N_PARTS):
        held_out, rest = parts == part, parts != part
        fitted = build_any_calibrator(name).fit(logits[rest], labels[rest], groups=groups[rest])
        proba = fitted.predict_proba(logits[held_out])
        own = proba[np.arange(held_out.sum()), labels[held_out]]
        losses[held_out] = -np.log(np.clip(own, _MIN_PROBABILITY, None))
    return losses


def _one_standard_error_choice(
    losses: Mapping[str, Floats], means: Mapping[str, float], patient: Ints, labels: Ints
) -> str:
    """Return the first of the candidates that is within one standard error of the best."""
    best = min(means, key=lambda name: means[name])
    for name, loss in losses.items():
        worse = np.bincount(patient, loss - losses[best]) / np.bincount(patient)
        of_class = [worse[labels == label] for label in np.unique(labels)]
        error = np.sqrt(sum(part.var(ddof=1) / len(part) for part in of_class)) / len(of_class)
        if means[name] - means[best] <= error:
            return name
    return best
