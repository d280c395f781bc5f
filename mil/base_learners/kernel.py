"""Similarity of a patient's pooled embeddings to training patients, as a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.spatial.distance import cdist

from mil.arrays import Floats

__all__ = ["PatientKernel"]

_MOST_ANCHORS = 256
_MAX_DEVIATION = 8.0  # standard deviations
_LEAST_DEVIATION = 1e-6  # of the largest: smaller ones are rounding errors


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientKernel:
    """Laplacian kernel of mean, maximum and minimum against training patients.

    The kernel is exp(-d / width), d the sum of absolute differences of standardised values. A
    kernel on statistics of a bag: Gärtner, Flach, Kowalczyk and Smola (2002); of the absolute
    differences, one odd dimension weighs less than in squared ones.

    Attributes
    ----------
    centre, scale
        Means and standard deviations of the training patients, shape (features,); the scale is 0
        for features that do not vary, which are left out.
    anchors
        Standardised values of the patients that others are compared with, shape
        (anchors, features), float16 numbers as float64, at most 256 patients.
    width
        Median distance of two anchors, above 0.
    """

    centre: Floats
    scale: Floats
    anchors: Floats
    width: float

    @classmethod
    def fit(cls, pooled: Floats) -> Self:
        """Return the kernel of training patients, shape (patients, features), without labels.

        Of more than 256 patients, those that are compared with are evenly spaced.
        """
        centre, deviation = (
            pooled.mean(axis=0, dtype=np.float64),
            pooled.std(axis=0, dtype=np.float64),
        )
        varies = deviation > max(_LEAST_DEVIATION * deviation.max(), 1e-12)
        scale = np.where(varies, deviation, 0.0)
        n_anchors = min(len(pooled), _MOST_ANCHORS)
        rows = np.linspace(0, len(pooled) - 1, n_anchors).astype(np.int64)
        # Rounded as they are stored, so that a run read again computes the same.
        anchors = _standardise(pooled[rows], centre, scale).astype(np.float16).astype(np.float64)
        pairs = cdist(anchors, anchors, "cityblock")[np.triu_indices(n_anchors, 1)]
        width = float(np.median(pairs)) if len(pairs) else 0.0
        return cls(centre=centre, scale=scale, anchors=anchors, width=width or 1.0)

    def features(self, pooled: Floats) -> Floats:
        """Return the similarity to each anchor, 0 to 1, shape (..., anchors).

        ``pooled`` has shape (..., features).
        """
        rows = _standardise(pooled.reshape(-1, pooled.shape[-1]), self.centre, self.scale)
        similar = np.exp(cdist(rows, self.anchors, "cityblock") / -self.width)
        return np.asarray(similar.reshape(*pooled.shape[:-1], len(self.anchors)), np.float64)


def _standardise(pooled: Floats, centre: Floats, scale: Floats) -> Floats:
    """Return standardised values, limited to 8; 0 for features that do not vary."""
    standard = np.zeros(pooled.shape)
    np.divide(pooled - centre, scale, out=standard, where=scale > 0)
    return np.clip(standard, -_MAX_DEVIATION, _MAX_DEVIATION, out=standard)
