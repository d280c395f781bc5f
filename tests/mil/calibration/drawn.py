"""Logits whose right calibration is known."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax


def normal_scores(n: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two classes whose difference is normal, ``distance`` apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 // 2
    difference = rng.normal(size=n) + distance * labels
    return np.stack([-difference / 2, difference / 2], axis=1), labels


def honest_logits(n: int, seed: int, *, n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth at the balanced prior, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    # Unit normals at the corners of a simplex: log densities differ by the coordinates.
    logits = 1.2 * (rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[labels])
    return logits, labels


def confused_logits(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits of three classes, mixed by a matrix; with labels and true probabilities."""
    honest, labels = honest_logits(n, seed, n_classes=3)
    mixed = np.log(softmax(honest, axis=1)) @ np.linalg.inv(MIXING).T
    return mixed, labels, softmax(honest, axis=1)


MIXING = np.array([[1.0, 0.6, -0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 1.6]])
"""What brings :func:`confused_logits` right; rows of one sum, as ln p is known up to a constant."""
