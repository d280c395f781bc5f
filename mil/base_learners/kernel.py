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
from mil.base_learners.logistic import LEAST_SPREAD, LinearModel

__all__ = ["LAPLACIAN", "RANKS", "VALUES", "PatientKernels"]

VALUES, RANKS = "value kernel", "rank kernel"
"""Gaussian kernels of values and of ranks; the names of their learners."""
LAPLACIAN = "kernel"
"""Laplacian kernel of values, of stacks of version 5."""

_MOST_ANCHORS = 256
_PATIENTS_PER_BLOCK = 512  # values of a patient take 31 kB with 1,280 numbers
_FEATURES_PER_BLOCK = 1280
_FEATURES_PER_PRODUCT = 256  # products of so many ranks add up exactly in float32
_FEW_PATIENTS = 24  # fewer are compared with each anchor: sorting them takes longer
_MAX_DEVIATION = 8.0  # standard deviations
_LEAST_DEVIATION = 1e-6  # of the largest: smaller ones are rounding errors
_WIDTH_SHARES = {VALUES: 0.25, RANKS: 0.5}  # of the median squared distance; decision 0043
_LEAST_DISTANCE = 1e-5  # of the mean squared norm: smaller ones may be rounding errors of float32
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
        largest = float(np.abs(pooled).max())
        varies = deviation > max(_LEAST_DEVIATION * deviation.max(), LEAST_SPREAD * largest)
        scale = np.where(varies, deviation, 0.0)
        of_anchor = np.linspace(0, len(pooled) - 1, min(len(pooled), _MOST_ANCHORS)).astype(
            np.int64
        )
        rows = _round(_standardise(pooled, centre, scale))
        anchors = rows[of_anchor]
        distances_of = {
            VALUES: _squared(rows, anchors), RANKS: _rank_distances(rows, of_anchor, slice(None)),
        }  # fmt: skip
        least_of = {VALUES: _LEAST_DISTANCE * float((anchors**2).sum(axis=1).mean()), RANKS: 0.0}
        widths, models = {}, {}
        pairs = np.triu_indices(len(of_anchor), 1)
        for name, distances in distances_of.items():
            of_pairs = distances[of_anchor][pairs]
            median = float(np.median(of_pairs)) if len(of_pairs) else 0.0
            widths[name] = _WIDTH_SHARES[name] * median if median > least_of[name] else 1.0
            similar = np.exp(distances / -widths[name])
            models[name] = _fit_logistic(
                similar, similar[of_anchor], labels, n_classes=n_classes, balanced=balanced
            )
        return cls(centre=centre, scale=scale, anchors=anchors, widths=widths), models

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
        if LAPLACIAN in self.widths:
            return {LAPLACIAN: np.asarray(cdist(rows, self.anchors, "cityblock"), np.float64)}
        rounded = _round(rows)
        return {
            VALUES: _squared(rounded, self.anchors), RANKS: self._distances_of_ranks(rounded),
        }  # fmt: skip

    def _distances_of_ranks(self, rounded: Float32s) -> Floats:
        anchors = self.anchors
        every = np.arange(len(anchors))
        if len(rounded) >= _FEW_PATIENTS:
            both = np.concatenate([anchors, rounded])
            return _rank_distances(both, every, slice(len(anchors), None))
        below, up_to = (
            np.array([compare(anchors, row).sum(axis=0, dtype=np.int16) for row in rounded])
            for compare in (np.less, np.less_equal)
        )
        ranks = (below + up_to - len(anchors)).astype(np.float64)
        of_anchors = self._anchor_ranks.astype(np.float64)
        return _squared(ranks, of_anchors) / (2 * len(anchors)) ** 2

    @cached_property
    def _anchor_ranks(self) -> npt.NDArray[np.int16]:
        return _ranks(self.anchors, np.arange(len(self.anchors)))


def _rank_distances(values: Float32s, of_anchor: Ints, own: slice) -> Floats:
    """Return distances of the ranks of some rows to those of the anchors, shape (rows, anchors).

    ``own`` are the rows of ``values``, shape (patients, features), that are meant; those of the
    anchors are among them. All sums are of integers, and exact.
    """
    n_features = values.shape[1]
    shape = len(values[own]), len(of_anchor)
    products, squares = np.zeros(shape), np.zeros(len(values))
    for block in np.split(values, range(_FEATURES_PER_BLOCK, n_features, _FEATURES_PER_BLOCK), 1):
        of_block = _ranks(block, of_anchor)
        for start in range(0, block.shape[1], _FEATURES_PER_PRODUCT):
            ranks = of_block[:, start : start + _FEATURES_PER_PRODUCT].astype(np.float32)
            products += ranks[own] @ ranks[of_anchor].T
            squares += (ranks**2).sum(axis=1)
    sums = squares[own, None] + squares[of_anchor] - 2 * products
    return np.asarray(sums / (2 * len(of_anchor)) ** 2, np.float64)


def _ranks(values: Float32s, of_anchor: Ints) -> npt.NDArray[np.int16]:
    """Return twice the mid-ranks of rounded values among the anchors, less the number of anchors.

    ``values`` and the result have shape (patients, features), ``of_anchor`` are rows of them.
    """
    # One integer for each value: the float16 number, whose bits are made to ascend with it, the
    # patient, and a last bit for an anchor. Integers are sorted several times as fast as by
    # argsort, and zero has no sign once zero is added.
    shift, tag_type = (16, "int32") if 2 * len(values) <= 2**16 else (32, "int64")
    tags: Ints = np.arange(0, 2 * len(values), 2)
    tags[of_anchor] += 1
    bits = np.ascontiguousarray(values.T + 0.0).astype(np.float16).view(np.int16)
    packed: Ints = (bits ^ ((bits >> 15) & 0x7FFF)).astype(tag_type) << shift
    packed |= tags.astype(tag_type)
    packed.sort(axis=1)
    # A mid-rank is the mean of the numbers of anchors below a value and up to it: those before the
    # first of equal values, and up to the last. Patients are gone through one by one, for all
    # features at once: sums along the other axis take several times as long.
    ordered = np.ascontiguousarray(packed.T)
    up_to = (ordered & 1).astype(np.int16)
    below = -up_to
    for row in range(1, len(up_to)):
        up_to[row] += up_to[row - 1]
    below += up_to
    is_same = (ordered[1:] >> shift) == (ordered[:-1] >> shift)  # as the next
    for row in range(1, len(up_to)):
        np.copyto(below[row], below[row - 1], where=is_same[row - 1])
    for row in range(len(up_to) - 2, -1, -1):
        np.copyto(up_to[row], up_to[row + 1], where=is_same[row])
    ranks = np.empty_like(up_to)
    patients = (ordered & (2**shift - 1)) >> 1
    np.put_along_axis(ranks, patients, below + up_to - np.int16(len(of_anchor)), axis=0)
    return ranks


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


def _squared(rows: Floats | Float32s, anchors: Floats | Float32s) -> Floats:
    """Return sums of squared differences, shape (rows, anchors), by matrix products.

    Those of float32 numbers are right to about 1e-7 of their own sums of squares.
    """
    of_anchors = (anchors**2).sum(axis=1)
    sums = np.empty((len(rows), len(anchors)))
    for start in range(0, len(rows), _PATIENTS_PER_BLOCK):
        x = rows[start : start + _PATIENTS_PER_BLOCK]
        products = 2 * x @ anchors.T
        sums[start : start + len(x)] = (x**2).sum(axis=1)[:, None] + of_anchors - products
    return np.maximum(sums, 0.0, out=sums)
