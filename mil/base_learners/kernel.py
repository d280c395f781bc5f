"""Similarity of a patient's pooled embeddings to training patients, as kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from mil.arrays import Float32s, Floats, Ints
from mil.base_learners.logistic import LinearModel

__all__ = ["LAPLACIAN", "RANKS", "VALUES", "PatientKernels"]

VALUES, RANKS = "value kernel", "rank kernel"
"""Gaussian kernels of values and of ranks; the names of their learners."""
LAPLACIAN = "kernel"
"""Laplacian kernel of values, of stacks of version 5."""

_MOST_ANCHORS = 256
_PATIENTS_PER_BLOCK = 512  # ranks of a patient take 0.1 MB with 1,280 numbers
_MAX_DEVIATION = 8.0  # standard deviations
_LEAST_DEVIATION = 1e-6  # of the largest: smaller ones are rounding errors
_WIDTH_SHARES = {VALUES: 0.25, RANKS: 0.5}  # of the median squared distance; decision 0043
_LEAST_EIGENVALUE = 1e-6  # of the largest, of the kernel matrix of the anchors


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientKernels:
    """Kernels of mean, maximum and minimum against training patients.

    A Gaussian kernel is exp(-d / width), d the sum of squared differences: of standardised values,
    or of the ranks of the values among the anchors, for which nothing counts but the order. Kernels
    on statistics of a bag: Gärtner, Flach, Kowalczyk and Smola (2002). In the Laplacian kernel of
    earlier stacks, d is the sum of absolute differences.

    Attributes
    ----------
    centre, scale
        Means and standard deviations of the training patients, shape (features,); the scale is 0
        for features that do not vary, which are left out.
    anchors
        Standardised values of the patients that others are compared with, shape
        (anchors, features), float16 numbers as float32, at most 256 patients.
    widths
        Width of each kernel by name, above 0.
    """

    centre: Floats
    scale: Floats
    anchors: Float32s
    widths: Mapping[str, float]

    @classmethod
    def fit(
        cls, pooled: Floats, labels: Ints, *, n_classes: int, balanced: bool
    ) -> tuple[Self, dict[str, LinearModel]]:
        """Return the Gaussian kernels, and a kernel logistic regression on each of them by name.

        Of more than 256 patients, those that are compared with are evenly spaced. Widths are a
        share of the median of two anchors, and need no labels. What is penalised is the norm of the
        function in the space of the kernel, which the anchors span (Williams and Seeger, 2001).

        Parameters
        ----------
        pooled
            Mean, maximum and minimum of training patients, shape (patients, features).
        labels, n_classes, balanced
            As for :meth:`mil.base_learners.logistic.LinearModel.fit`.
        """
        centre, deviation = (
            pooled.mean(axis=0, dtype=np.float64),
            pooled.std(axis=0, dtype=np.float64),
        )
        varies = deviation > max(_LEAST_DEVIATION * deviation.max(), 1e-12)
        scale = np.where(varies, deviation, 0.0)
        of_anchor = np.linspace(0, len(pooled) - 1, min(len(pooled), _MOST_ANCHORS)).astype(
            np.int64
        )
        rows = _standardise(pooled, centre, scale)
        widths = dict.fromkeys(_WIDTH_SHARES, 1.0)  # set below: distances need none
        kernels = cls(centre=centre, scale=scale, anchors=_round(rows[of_anchor]), widths=widths)
        models = {}
        pairs = np.triu_indices(len(of_anchor), 1)
        for name, distances in kernels._distances(rows).items():
            of_pairs = distances[of_anchor][pairs]
            median = float(np.median(of_pairs)) if len(of_pairs) else 0.0
            widths[name] = _WIDTH_SHARES[name] * median or 1.0
            similar = np.exp(distances / -widths[name])
            models[name] = _fit_logistic(
                similar, similar[of_anchor], labels, n_classes=n_classes, balanced=balanced
            )
        return kernels, models

    def features(self, pooled: Floats) -> dict[str, Floats]:
        """Return the similarity to each anchor by each kernel, 0 to 1, shape (..., anchors).

        ``pooled`` has shape (..., features).
        """
        rows = _standardise(pooled.reshape(-1, pooled.shape[-1]), self.centre, self.scale)
        shape = (*pooled.shape[:-1], len(self.anchors))
        return {
            name: np.exp(distances / -self.widths[name]).reshape(shape)
            for name, distances in self._distances(rows).items()
        }

    def _distances(self, rows: Float32s) -> dict[str, Floats]:
        """Return distances of standardised rows to the anchors, shape (rows, anchors)."""
        starts = range(0, len(rows), _PATIENTS_PER_BLOCK)
        blocks = [self._distances_of(rows[at : at + _PATIENTS_PER_BLOCK]) for at in starts]
        return {name: np.concatenate([of[name] for of in blocks]) for name in self.widths}

    def _distances_of(self, rows: Float32s) -> dict[str, Floats]:
        if LAPLACIAN in self.widths:
            return {LAPLACIAN: np.asarray(cdist(rows, self.anchors, "cityblock"), np.float64)}
        rounded = _round(rows)
        return {
            VALUES: _squared(rounded, self.anchors),
            RANKS: _squared(self._ranks(rounded), self._anchor_ranks),
        }

    @cached_property
    def _anchor_ranks(self) -> Float32s:
        return self._ranks(self.anchors)

    @cached_property
    def _ascending(self) -> tuple[Floats, npt.NDArray[np.int16]]:
        """Values of the anchors in one ascending row, feature after feature, for one search of all.

        Each feature is moved beyond the one before, which is exact for float16 numbers. With them,
        how often each value occurs.
        """
        values = (np.sort(self.anchors.T, axis=1) + self._moved_by).ravel()
        counts = np.diff(np.flatnonzero(np.diff(values, prepend=-np.inf)), append=len(values))
        return np.asarray(values, np.float64), np.repeat(counts, counts).astype(np.int16)

    @property
    def _moved_by(self) -> Floats:
        return np.arange(self.anchors.shape[1], dtype=np.float64)[:, None] * (4 * _MAX_DEVIATION)

    def _ranks(self, rows: Float32s) -> Float32s:
        """Return mid-ranks of rounded values among the anchors, 0 to 1, shape (rows, features)."""
        n_anchors, n_features = self.anchors.shape
        known, counts = self._ascending
        values = rows.T + self._moved_by
        order = values.argsort(axis=1)  # ascending values are found several times as fast
        ascending = np.take_along_axis(values, order, axis=1)
        found = np.searchsorted(known, ascending)
        twice = 2 * (found - n_anchors * np.arange(n_features)[:, None])
        is_known = known.take(found, mode="clip") == ascending
        twice += is_known * counts.take(found, mode="clip")
        ranks = np.empty(twice.shape, np.float32)
        np.put_along_axis(ranks, order, (twice / (2 * n_anchors)).astype(np.float32), axis=1)
        return np.ascontiguousarray(ranks.T)


def _fit_logistic(
    similar: Floats, of_anchors: Floats, labels: Ints, *, n_classes: int, balanced: bool
) -> LinearModel:
    """Fit a kernel logistic regression, as a model of similarities to the anchors.

    ``similar`` are those of training patients, shape (patients, anchors), and ``of_anchors`` those
    of the anchors to each other, shape (anchors, anchors).
    """
    eigenvalues, vectors = np.linalg.eigh(of_anchors)
    kept = eigenvalues > _LEAST_EIGENVALUE * eigenvalues[-1]
    to_space = vectors[:, kept] / np.sqrt(eigenvalues[kept])  # an orthonormal basis
    model = LinearModel.fit(
        similar @ to_space, labels, n_classes=n_classes, balanced=balanced, standardise=False
    )
    return replace(
        model,
        centre=similar.mean(axis=0),
        scale=np.ones(similar.shape[1]),
        weights=to_space @ model.weights,
    )


def _standardise(pooled: Floats, centre: Floats, scale: Floats) -> Float32s:
    """Return standardised values, limited to 8; 0 for features that do not vary."""
    standard = np.zeros(pooled.shape, np.float32)
    np.divide(pooled - centre, scale, out=standard, where=scale > 0, casting="same_kind")
    return np.clip(standard, -_MAX_DEVIATION, _MAX_DEVIATION, out=standard)


def _round(rows: Float32s) -> Float32s:
    """Return values rounded as anchors are stored, so that a training patient equals its anchor."""
    return rows.astype(np.float16).astype(np.float32)


def _squared(rows: Float32s, anchors: Float32s) -> Floats:
    """Return sums of squared differences, shape (rows, anchors), by one matrix product."""
    x, y = rows.astype(np.float64), anchors.astype(np.float64)
    sums = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.asarray(np.maximum(sums, 0.0), np.float64)
