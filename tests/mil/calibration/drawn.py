"""Logits whose right calibration is known."""

from __future__ import annotations

import numpy as np


def normal_scores(n: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of two classes whose difference is normal, ``distance`` apart, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 // 2
    difference = rng.normal(size=n) + distance * labels
    return np.stack([-difference / 2, difference / 2], axis=1), labels


def honest_logits(n: int, seed: int, *, n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true probability at the balanced prior, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    # Unit normals at the corners of a simplex: log densities differ by the coordinates.
    logits = 1.2 * (rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[labels])
    return logits, labels
