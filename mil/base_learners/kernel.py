"""Similarity of a patient's pooled embeddings to training patients, as a kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from mil.arrays import Float32s, Floats

__all__ = ["PatientKernel"]

_MOST_ANCHORS = 256
_FEATURES_PER_BLOCK = 640
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
        (anchors, features), float16 numbers as float32, at most 256 patients.
    width
        Median distance of two anchors, above 0.
    """

    centre: Floats
    scale: Floats
    anchors: Float32s
    width: float

    @classmethod
    def fit(cls, pooled: Floats) -> tuple[Self, Floats]:
        """Return the kernel of training patients and their :meth:`features`, without labels.

        ``pooled`` has shape (patients, features). Of more than 256 patients, those that are
        compared with are evenly spaced.
        """
        centre, deviation = (
            pooled.mean(axis=0, dtype=np.float64),
            pooled.std(axis=0, dtype=np.float64),
        )
        varies = deviation > max(_LEAST_DEVIATION * deviation.max(), 1e-12)
        scale = np.where(varies, deviation, 0.0)
        rows = np.linspace(0, len(pooled) - 1, min(len(pooled), _MOST_ANCHORS)).astype(np.int64)
        standard = _standardise(pooled, centre, scale)
        # Rounded as they are stored, so that a run read again computes the same.
        anchors = standard[rows].astype(np.float16).astype(np.float32)
        distances = _city_block(standard, anchors)
        pairs = distances[rows][np.triu_indices(len(rows), 1)]
        kernel = cls(
            centre=centre, scale=scale, anchors=anchors,
            width=float(np.median(pairs) if len(pairs) else 0.0) or 1.0,
        )  # fmt: skip
        return kernel, kernel._similarity(distances)

    def features(self, pooled: Floats) -> Floats:
        """Return the similarity to each anchor, 0 to 1, shape (..., anchors).

        ``pooled`` has shape (..., features).
        """
        rows = _standardise(pooled.reshape(-1, pooled.shape[-1]), self.centre, self.scale)
        similar = self._similarity(_city_block(rows, self.anchors))
        return similar.reshape(*pooled.shape[:-1], len(self.anchors))

    def _similarity(self, distances: Floats) -> Floats:
        return np.asarray(np.exp(distances / -self.width), np.float64)


def _standardise(pooled: Floats, centre: Floats, scale: Floats) -> Float32s:
    """Return standardised values, limited to 8; 0 for features that do not vary."""
    standard = np.zeros(pooled.shape, np.float32)
    np.divide(pooled - centre, scale, out=standard, where=scale > 0, casting="same_kind")
    return np.clip(standard, -_MAX_DEVIATION, _MAX_DEVIATION, out=standard)


def _city_block(rows: Float32s, anchors: Float32s) -> Floats:
    """Return sums of absolute differences, shape (rows, anchors).

    ``|a - b| = 2 max(a, b) - a - b``, of which only the maximum is of every pair; in blocks that
    stay in the cache of a processor it takes less time than ``scipy.spatial.distance.cdist``.
    """
    sums = np.zeros((len(rows), len(anchors)))
    for start in range(0, anchors.shape[1], _FEATURES_PER_BLOCK):
        block = np.ascontiguousarray(anchors[:, start : start + _FEATURES_PER_BLOCK])
        larger, ones = np.empty_like(block), np.ones(block.shape[1], np.float32)
        for index, row in enumerate(rows[:, start : start + _FEATURES_PER_BLOCK]):
            sums[index] += np.maximum(block, row, out=larger) @ ones
    own, others = (each.sum(axis=1, dtype=np.float64) for each in (rows, anchors))
    return np.asarray(np.maximum(2 * sums - own[:, None] - others, 0.0), np.float64)
