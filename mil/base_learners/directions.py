"""Directions along which a few tiles set a class apart from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.special import expit, logit
from torch import Tensor

from mil.arrays import Bools, Float32s, Floats, Ints
from mil.base_learners.joined_bags import about_means, joined_bags, segment_sums
from mil.base_learners.logistic import LinearModel
from mil.base_learners.second_order import segment_covariances

__all__ = ["N_COMPONENTS", "fit_directions"]

N_COMPONENTS = 64
"""Components of tiles to look for directions in, at least. Rare tiles hardly add to the variance:
what sets them apart is seldom among the first ones, which the heads of few patients have."""

_LEAST_VARIANCE = 1e-3  # of whitened components, whose variance over all tiles is at most 1
_PATIENTS_PER_BLOCK = 256
_MOST_STARTS = 3  # of a class and regression
_MOST_TILES = 2**15  # of all patients together
_LEAST_PATIENTS = 2  # of a class and of the others in each half
_N_STEPS = 5
_FIRST_SHIFT = 3.0  # standard deviations of a patient's tiles
_FIRST_SHARE = 0.1
_SHARES = (0.01, 0.5)
_LONGEST_SHIFT = 8.0
_LEAST_DIVISOR = 0.02  # an excess below it shortens the shift
_LEAST_EXCESS = 1e-3  # of the share of shifted tiles in a class over that in the others


def fit_directions(
    bags: Sequence[Tensor],
    labels: Ints,
    *,
    n_classes: int,
    balanced: bool,
    n_leading: int,
    groups: Ints | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Return two directions for each class, of two kinds, and the emphasis on the second.

    Directions have shape (n_components, classes), the emphasis (classes,).

    Components are first transformed so that their mean covariance within patients is the identity.

    The first kind is second-order pooling (Carreira et al., 2012): a few unlike tiles change the
    variance along what sets them apart far more than the mean. The logit of a logistic regression
    on covariances is a quadratic form of each tile's deviation from the patient's mean, averaged
    over the tiles, and the direction of a class is the first eigenvector of its form.

    The second kind is for few tiles that lie far off. The first eigenvectors of that regression,
    and of one on the ``n_leading`` first components, on which few patients are overfitted less,
    are where a mixture starts from, in both senses: tiles are N(0, I), and a share of them
    N(shift, I). Expectation maximisation estimates the shift from what tiles of the class have
    more of than those of the others, as in EM-DD (Zhang and Goldman, 2001), where positive bags
    attract a point and negative ones repel it. The start is taken whose shift, estimated on half
    of the patients, tells the classes of the other half apart best, and is estimated again on all.
    With fewer than two patients of the class or of the others in a half it is the first
    eigenvector.

    The emphasis on a class, 0 to 1, is the square of that t of left-out patients relative to the
    largest of a class: of two classes often only one has tiles that the other has not, and what is
    found of the other is six more statistics, on which few patients are overfitted. It is 1 for a
    class whose halves are too small for t, and for all classes if no t is above 0.

    Parameters
    ----------
    bags
        Whitened tiles of training patients, shape (tiles, n_components), at least one. At most
        32,768 of all together, evenly spaced, are used for the mixture.
    labels, n_classes, balanced
        As for :meth:`mil.base_learners.logistic.LinearModel.fit`.
    n_leading
        Number of components of the second regression.
    groups
        Patients of one number stay in one half, shape (patients,); each by itself by default.
    """
    within, tiles = _covariances_and_tiles(bags)
    size = bags[0].shape[1]
    whiten, unwhiten = _roots(_symmetric(within.mean(axis=0), size, size))
    starts = [
        _eigenvectors(within, labels, n_classes=n_classes, balanced=balanced, n_all=size, n=n)
        for n in sorted({size, min(n_leading, size)})  # the last changes them
    ][::-1]
    del within  # 17 kB per patient
    tiles = replace(tiles, values=(tiles.values @ whiten).astype(np.float32))
    first_half = _first_half(labels, np.arange(len(labels)) if groups is None else groups)
    shifts, contrasts = zip(
        *(
            _fit_mixture(tiles, unwhiten @ of_class, labels == which, first_half)
            for which, of_class in enumerate(np.concatenate(starts, axis=2))
        ),
        strict=True,
    )
    return starts[0][:, :, 0].T, whiten @ np.stack(shifts, axis=1), _emphasis(np.array(contrasts))


@dataclass(frozen=True, kw_only=True, eq=False)
class _DrawnTiles:
    """Evenly spaced tiles of all patients, about their means, shape (tiles, n_components).

    ``starts`` and ``n_tiles``, shape (patients,), are each patient's first tile and number of
    tiles.
    """

    values: Floats | Float32s
    starts: Ints
    n_tiles: Ints

    def of_patients(self, patients: Bools) -> Self:
        """Select patients, a mask of shape (patients,)."""
        n_tiles = self.n_tiles[patients]
        return type(self)(
            values=self.values[np.repeat(patients, self.n_tiles)],
            starts=n_tiles.cumsum() - n_tiles,
            n_tiles=n_tiles,
        )

    def membership(self, shifts: Floats, shares: Floats) -> Float32s:
        """Return how probably each tile is of the shifted ones, shape (tiles, candidates).

        ``shifts`` have shape (n_components, candidates), ``shares`` (candidates,).
        """
        along = self.values @ shifts.astype(np.float32)
        along += (logit(shares) - (shifts**2).sum(axis=0) / 2).astype(np.float32)
        return np.asarray(expit(along), np.float32)

    def shifted_share(self, shifts: Floats, shares: Floats) -> Floats:
        """Return the mean of :meth:`membership` over tiles, shape (patients, candidates)."""
        sums = segment_sums(self.membership(shifts, shares).astype(np.float64), self.starts)
        return sums / self.n_tiles[:, None]


def _covariances_and_tiles(bags: Sequence[Tensor]) -> tuple[Floats, _DrawnTiles]:
    """Return the covariance of each bag, its upper triangle by rows, and tiles drawn.

    Both in one pass over the ``bags``, shape (tiles, n_components) each; a triangle has
    n_components · (n_components + 1) / 2 numbers.
    """
    size = bags[0].shape[1]
    upper = _upper_triangle(size)
    within = np.empty((len(bags), len(upper)))
    lengths = np.array([len(bag) for bag in bags])
    n_tiles = np.minimum(lengths, max(1, _MOST_TILES // len(bags)))
    starts = n_tiles.cumsum() - n_tiles
    drawn = np.empty((n_tiles.sum(), size))
    for own, joined, first_rows in joined_bags(bags):
        rows = about_means(joined, first_rows)
        for index, of_bag in enumerate(segment_covariances(rows, first_rows), own.start):
            within[index] = of_bag.take(upper)
        n_own = n_tiles[own]
        middle = np.arange(n_own.sum()) - np.repeat(n_own.cumsum() - n_own, n_own) + 0.5
        picked = (middle * np.repeat(lengths[own] / n_own, n_own)).astype(np.int64)
        drawn[starts[own.start] :][: len(picked)] = rows[np.repeat(first_rows, n_own) + picked]
    return within, _DrawnTiles(values=drawn, starts=starts, n_tiles=n_tiles)


def _eigenvectors(
    covariances: Floats, labels: Ints, *, n_classes: int, balanced: bool, n_all: int, n: int
) -> Floats:
    """Return the first eigenvectors of each class's form, shape (classes, n_all, 3 at most).

    ``covariances`` are upper triangles, of ``n_all`` components, of which the first ``n`` are used;
    directions are 0 in the others. If all are used, the triangles are changed: they are large.
    """
    whiten, _ = _roots(_symmetric(covariances.mean(axis=0), n_all, n))
    # A symmetric matrix has the norm of its upper triangle if what stands twice counts by root 2:
    # the same penalty and the same minimum, with half of the memory.
    upper = _upper_triangle(n)
    factors = np.where(np.eye(n), 1.0, np.sqrt(2.0)).take(upper)
    features = covariances if n == n_all else np.empty((len(covariances), len(factors)))
    for start in range(0, len(covariances), _PATIENTS_PER_BLOCK):
        block = slice(start, start + _PATIENTS_PER_BLOCK)
        of_block = whiten @ _symmetric(covariances[block], n_all, n) @ whiten
        features[block] = of_block.reshape(-1, n * n).take(upper, axis=1) * factors
    model = LinearModel.fit(
        features, labels, n_classes=n_classes, balanced=balanced, standardise=False, overwrite=True
    )
    forms = _symmetric(model.weights.T / factors, n, n)
    first = np.linalg.eigh(forms)[1][:, :, : -_MOST_STARTS - 1 : -1]
    found = np.zeros((n_classes, n_all, first.shape[2]))
    found[:, :n] = whiten @ first
    return found


def _upper_triangle(n: int) -> Ints:
    """Return the places of the upper triangle, by rows, in a flat matrix of shape (n, n)."""
    return np.flatnonzero(np.triu(np.ones((n, n))))


def _symmetric(triangles: Floats, n_all: int, n: int) -> Floats:
    """Return matrices of the first components, shape (..., n, n), from triangles of ``n_all``."""
    places = np.zeros((n_all, n_all), np.int64)
    upper = _upper_triangle(n_all)
    places.flat[upper] = places.T.flat[upper] = np.arange(len(upper))
    return triangles.take(places[:n, :n], axis=-1)


def _fit_mixture(
    tiles: _DrawnTiles, vectors: Floats, is_class: Bools, first_half: Bools
) -> tuple[Floats, float]:
    """Return the best shift of a class, of length 1, shape (n_components,), and its contrast.

    That is the sum of the t of left-out patients of both halves, NaN if they are too small.
    ``vectors`` to start from have shape (n_components, candidates).
    """
    vectors = vectors / np.linalg.norm(vectors, axis=0)
    if np.bincount(2 * first_half + is_class, minlength=4).min() < _LEAST_PATIENTS:
        return np.asarray(vectors[:, 0]), np.nan
    starts = _FIRST_SHIFT * np.concatenate([vectors, -vectors], axis=1)
    contrasts = np.zeros(starts.shape[1])
    for half in (first_half, ~first_half):
        fitted = _fit_shifts(tiles.of_patients(half), starts, is_class[half])
        left_out = tiles.of_patients(~half).shifted_share(*fitted)
        contrasts += _contrast(left_out, is_class[~half])
    best = contrasts.argmax()
    shift = _fit_shifts(tiles, starts[:, [best]], is_class)[0][:, 0]
    return np.asarray(shift / np.linalg.norm(shift)), float(contrasts[best])


def _emphasis(contrasts: Floats) -> Floats:
    """Return the square of contrasts relative to the largest, (classes,).

    It is 1 where there is none (NaN), and everywhere if none is above 0.
    """
    largest = np.fmax.reduce(contrasts)
    if not largest > 0:
        return np.ones(len(contrasts))
    return np.where(np.isnan(contrasts), 1.0, (np.maximum(contrasts, 0) / largest) ** 2)


def _fit_shifts(tiles: _DrawnTiles, shifts: Floats, is_class: Bools) -> tuple[Floats, Floats]:
    """Return shifts, shape (n_components, candidates), and shares of shifted tiles (candidates,).

    A candidate whose tiles are no more frequent in the class than in the others stays as it is.
    """
    of_patient = np.where(is_class, 1 / is_class.sum(), -1 / (~is_class).sum()) / tiles.n_tiles
    of_tile = np.repeat(of_patient, tiles.n_tiles).astype(np.float32)[:, None]
    shares = np.full(shifts.shape[1], _FIRST_SHARE)
    for _ in range(_N_STEPS):
        excess_of_tiles = tiles.membership(shifts, shares) * of_tile
        excess = excess_of_tiles.sum(axis=0, dtype=np.float64)
        moved = tiles.values.T @ excess_of_tiles / np.maximum(excess, _LEAST_DIVISOR)
        lengths = np.linalg.norm(moved, axis=0)
        moved *= np.minimum(1, _LONGEST_SHIFT / np.maximum(lengths, 1e-9))
        changes = excess > _LEAST_EXCESS
        shifts = np.where(changes, moved, shifts)
        shares = np.where(changes, np.clip(excess, *_SHARES), shares)
    return shifts, shares


def _contrast(shares: Floats, is_class: Bools) -> Floats:
    """Return Welch's t (1947) of the shares of a class against the others', shape (candidates,)."""
    own, others = shares[is_class], shares[~is_class]
    variance = own.var(axis=0, ddof=1) / len(own) + others.var(axis=0, ddof=1) / len(others)
    return np.asarray((own.mean(axis=0) - others.mean(axis=0)) / np.sqrt(variance + 1e-9))


def _first_half(labels: Ints, groups: Ints) -> Bools:
    """Return which patients are in the first half: every second group of each class, (patients,).

    The class of a group is that of its first patient.
    """
    _, firsts, group = np.unique(groups, return_index=True, return_inverse=True)
    order = firsts.argsort()
    is_first = np.empty(len(firsts), bool)
    for label in np.unique(labels):
        members = order[labels[firsts[order]] == label]
        is_first[members] = np.arange(len(members)) % 2 == 0
    return is_first[group]


def _roots(covariance: Floats) -> tuple[Floats, Floats]:
    """Return the inverse root and the root of a covariance, each shape (n, n)."""
    variances, vectors = np.linalg.eigh(covariance + _LEAST_VARIANCE * np.eye(len(covariance)))
    roots = np.sqrt(variances)
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T
