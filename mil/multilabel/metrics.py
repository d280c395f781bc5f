"""Metrics of several labels, one by one and combined.

Throughout, ``proba`` and ``truth`` have shape (patients, labels): the probability that a patient
has a label, and 0 or 1. For the repeats of a cross-fit ``proba`` is (repeats, patients, labels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mil.arrays import Floats, Ints
from mil.evaluation.metrics import Interval

__all__ = [
    "ANY",
    "label_log_losses",
    "label_weights",
    "shift_labels",
    "weighted_label_loss",
]


ANY = "any"
"""Name of the label that is present if any of the others is."""

_WEIGHT_OF_ANY = 2.0
_MIN_PROBABILITY = 1e-15


def label_weights(names: Sequence[str]) -> Floats:
    """Return the weights of the labels, shape (labels,): ``any`` counts twice, as for RSNA."""
    weights = np.array([_WEIGHT_OF_ANY if name == ANY else 1.0 for name in names])
    return np.asarray(weights / weights.sum(), np.float64)


def label_log_losses(proba: Floats, truth: Ints) -> Floats:
    """Return the mean log loss of each label, shape (labels,), in nats, clipped at 1e-15."""
    return np.asarray(_log_losses(proba, truth).mean(axis=0), np.float64)


def _log_losses(proba: Floats, truth: Ints) -> Floats:
    clipped = np.clip(proba, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return np.asarray(-np.where(truth == 1, np.log(clipped), np.log1p(-clipped)), np.float64)


def weighted_label_loss(
    proba: Floats, truth: Ints, *, names: Sequence[str], n_resamples: int, seed: int
) -> Interval:
    """Return the weighted mean of the labels' log losses, in nats, with its interval over patients.

    The metric of the RSNA intracranial haemorrhage challenge (Flanders et al., 2020), taken over
    patients instead of slices. Resamples do not keep the counts of the labels. ``truth`` has shape
    (patients, labels). Of ``proba`` of shape (repeats, patients, labels) the value is the mean, and
    each resample of patients takes the next repeat.
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
    """Return probabilities, shape (..., labels), at other shares of the labels.

    ``old`` and ``new``, shape (labels,), are the shares of patients with each label before and
    after, above 0 and below 1.
    """
    factors = new / (1 - new) * (1 - old) / old
    odds = proba * factors
    return np.asarray(odds / (odds + 1 - proba), np.float64)
