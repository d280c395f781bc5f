"""Weights of several runs: non-negative, shrunken towards equal ones."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration import MIN_PATIENTS_PER_CLASS, StackedPlattScaling
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    CalibrationData,
    bias_terms,
    fit_penalized_softmax,
)
from mil.data.splits import stratified_fold_ids
from mil.evaluation.metrics import log_losses

__all__ = ["fit_weights"]

_RIDGES = (1.0, 10.0, 100.0, 1000.0)
"""Ridges on the slope of a run beyond that of all, from nearly free weights to equal ones."""

_N_FOLDS = 5

_LEAST_SPREAD = 0.1
"""Least spread that a run's logits are scaled by. Calibrated ones that vary less carry no signal;
scaled up, they would give a slope that makes any patient of another fold certain."""


def fit_weights(
    logits: Floats, labels: Ints, *, groups: Ints | None = None, seed: int = 0
) -> StackedPlattScaling:
    """Return a calibrator of the logits of several runs, shape (n, runs, classes).

    There is a slope for the mean of all standardised logits, and one of its own for each run, at
    least 0, with a ridge that pulls the weights towards equal ones: few patients cannot tell runs
    apart that mostly agree, and estimated weights are then worse than equal ones (Bates and
    Granger, 1969; Stock and Watson, 2004; Claeskens et al., 2016). The result is the mean of fits
    with several ridges, each weighted by its likelihood for patients left out of it in five folds
    (stacking of the whole by pseudo-Bayesian averaging; Yao et al., 2018).

    Parameters
    ----------
    logits
        Out-of-fold logits, shape (n, runs, classes), float64.
    labels
        Index of the true class, shape (n,).
    groups
        Patient of each row, shape (n,), where a patient has several; see
        :meth:`mil.calibration.base.Calibrator.fit`.
    seed
        Seeds the five folds.

    Raises
    ------
    CalibrationError
        If a logit is not finite, or a class has fewer than three patients.
    """
    patient = np.arange(len(labels)) if groups is None else groups
    _, first, of_row = np.unique(patient, return_index=True, return_inverse=True)
    fold = stratified_fold_ids(labels[first], n_folds=_N_FOLDS, seed=(seed, 4))[of_row]
    share = 1 / np.bincount(of_row)[of_row]  # the rows of a patient count as one
    losses = np.zeros(len(_RIDGES))
    smallest = np.bincount(labels[first]).min()
    if smallest >= MIN_PATIENTS_PER_CLASS + _N_FOLDS:
        for index in range(_N_FOLDS):
            held_out = fold == index
            fitted = _fit(logits[~held_out], labels[~held_out], patient[~held_out])
            for row, own in enumerate(fitted):
                proba = own.predict_proba(logits[held_out])
                losses[row] += share[held_out] @ log_losses(proba, labels[held_out])
    else:  # too few to tell the ridges apart: equal weights
        losses[:-1] = np.inf
    evidence = softmax(-losses)
    fits = _fit(logits, labels, patient)
    slopes = evidence @ np.stack([own.slopes_ for own in fits])
    bias = evidence @ np.stack([own.bias_ for own in fits])
    weights = evidence @ np.stack([own.weights_ for own in fits])
    return StackedPlattScaling(slopes=slopes.tolist(), bias=bias.tolist(), weights=weights.tolist())


def _fit(logits: Floats, labels: Ints, groups: Ints) -> list[StackedPlattScaling]:
    """Return a fit for each ridge."""
    data = [CalibrationData.of(own, labels, groups=groups) for own in np.moveaxis(logits, 1, 0)]
    n, n_runs, n_classes = logits.shape
    spreads = np.array([max(own.spread, _LEAST_SPREAD) for own in data])
    standard = np.stack([own.centred for own in data]) / spreads[:, None, None]
    terms = np.concatenate([standard.mean(axis=0)[None], standard, bias_terms(n, n_classes)])
    fits = []
    for ridge in _RIDGES:
        coefficients = fit_penalized_softmax(
            terms,
            data[0],
            ridge=np.array([RIDGE_SLOPE, *[ridge] * n_runs, *[RIDGE_BIAS] * n_classes]),
            nonnegative=np.arange(1 + n_runs),
        )
        weights = coefficients[0] / n_runs + coefficients[1 : 1 + n_runs]
        bias = coefficients[1 + n_runs :]
        fits.append(
            StackedPlattScaling(
                slopes=(weights / spreads).tolist(),
                bias=(bias - bias.mean()).tolist(),
                weights=(weights / max(float(weights.sum()), 1e-12)).tolist(),
            )
        )
    return fits
