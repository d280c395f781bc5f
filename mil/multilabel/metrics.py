"""Scores of several labels: each by itself, and all in one number.

Throughout, ``proba`` and ``truth`` have shape (patients, labels): a probability that a patient has
a label, and 0 or 1. Of the repeats of a cross-fit, ``proba`` has shape (repeats, patients, labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mil.evaluation.metrics import Interval

__all__ = [
    "ANY",
    "label_log_losses",
    "label_weights",
    "shift_labels",
    "weighted_label_loss",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ANY = "any"
"""Name of the label that a patient has who has any of the others."""

_WEIGHT_OF_ANY = 2.0
_LEAST_PROBABILITY = 1e-15


def label_weights(names: Sequence[str]) -> Floats:
    """Weight of each label in the loss, shape (labels,): ``any`` counts twice, as for RSNA."""
    weights = np.array([_WEIGHT_OF_ANY if name == ANY else 1.0 for name in names])
    return np.asarray(weights / weights.sum(), np.float64)


def label_log_losses(proba: Floats, truth: Ints) -> Floats:
    """Mean log loss of each label, shape (labels,), in nats; probabilities are clipped at 1e-15."""
    return np.asarray(_log_losses(proba, truth).mean(axis=0), np.float64)


def _log_losses(proba: Floats, truth: Ints) -> Floats:
    clipped = np.clip(proba, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return np.asarray(-np.where(truth == 1, np.log(clipped), np.log1p(-clipped)), np.float64)


def weighted_label_loss(
    proba: Floats, truth: Ints, *, names: Sequence[str], n_resamples: int, seed: int
) -> Interval:
    """Weighted mean of the labels' log losses, with its interval over patients.

    The metric of the RSNA intracranial haemorrhage challenge (Flanders et al., 2020), taken over
    patients instead of slices. Patients are resampled as they are: how many have a label varies.

    Parameters
    ----------
    proba, truth
        Shape (patients, labels); of several repeats the mean is taken, and each resample of
        patients takes the next one.
    names
        Names of the labels; ``any`` weighs twice.
    n_resamples, seed
        Of the bootstrap.
    """
    weights = label_weights(names)
    repeats = proba.reshape(-1, *truth.shape)
    losses = [_log_losses(each, truth) for each in repeats]
    rng = np.random.default_rng(seed)
    draws = [
        weights @ losses[number % len(losses)][rows].mean(axis=0)
        for number, rows in enumerate(rng.integers(len(truth), size=(n_resamples, len(truth))))
    ]
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (np.nan, np.nan)
    value = float(np.mean([weights @ each.mean(axis=0) for each in losses]))
    return Interval(value=value, low=float(low), high=float(high))


def shift_labels(proba: Floats, *, old: Floats, new: Floats) -> Floats:
    """Probabilities as they would be if each label were as frequent as ``new`` says.

    Parameters
    ----------
    proba
        Shape (..., labels).
    old, new
        Shape (labels,): share of patients with each label, above 0 and below 1.
    """
    factors = new / (1 - new) * (1 - old) / old
    odds = proba * factors
    return np.asarray(odds / (odds + 1 - proba), np.float64)
