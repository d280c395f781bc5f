"""Covariance of a patient's tiles, and the distribution of the tiles along its directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats, Ints
from mil.base_learners.joined_bags import joined_bags, segment_sums
from mil.base_learners.logistic import LinearModel

__all__ = ["covariance_contributions", "covariances", "fit_directions", "tail_statistics"]

_LEAST_VARIANCE = 1e-3  # of whitened components, whose variance over all tiles is at most 1
_TAIL_SHARE = 0.1
_TILES_PER_BLOCK = 8192
_PATIENTS_PER_BLOCK = 256


def covariances(bags: Sequence[Tensor]) -> Floats:
    """Return the covariance of components over the tiles of each bag, float64.

    ``bags`` have shape (tiles, n_components), at least one tile each; the result has shape
    (bags, n_components, n_components).
    """
    size = bags[0].shape[1]
    found = np.empty((len(bags), size, size))
    for own, tiles, starts in joined_bags(bags):
        centred = _centred(tiles, starts)
        for index, of_bag in enumerate(np.split(centred, starts[1:]), own.start):
            np.divide(of_bag.T @ of_bag, len(of_bag), out=found[index])
    return found


def fit_directions(covariances: Floats, labels: Ints, *, n_classes: int, balanced: bool) -> Floats:
    """Return for each class the direction along which tiles set it apart, (n_components, classes).

    Second-order pooling (Carreira et al., 2012): a few unlike tiles change the variance along what
    sets them apart far more than the mean. A logistic regression is fitted on covariances, in
    components whose mean covariance within patients is the identity, so that one penalty suits all
    directions. Its logit of a class is a quadratic form of each tile's deviation from the patient's
    mean, averaged over the tiles, and the direction of the class is the eigenvector of its largest
    eigenvalue.

    Parameters
    ----------
    covariances
        Shape (patients, n_components, n_components), of training patients.
    labels, n_classes, balanced
        As for :meth:`mil.base_learners.logistic.LinearModel.fit`.
    """
    n, size, _ = covariances.shape
    variances, vectors = np.linalg.eigh(covariances.mean(axis=0) + _LEAST_VARIANCE * np.eye(size))
    whiten = (vectors / np.sqrt(variances)) @ vectors.T
    rows, columns = np.triu_indices(size)
    # A symmetric matrix has the norm of its upper triangle if what stands twice counts by root 2:
    # the same penalty and the same minimum, with half of the memory.
    factors = np.where(rows == columns, 1.0, np.sqrt(2.0))
    halves = np.empty((n, len(rows)))
    for start in range(0, n, _PATIENTS_PER_BLOCK):
        block = slice(start, start + _PATIENTS_PER_BLOCK)
        halves[block] = (whiten @ covariances[block] @ whiten)[:, rows, columns] * factors
    model = LinearModel.fit(
        halves, labels, n_classes=n_classes, balanced=balanced, standardise=False
    )
    forms = np.empty((n_classes, size, size))
    forms[:, rows, columns] = forms[:, columns, rows] = model.weights.T / factors
    return np.stack([whiten @ np.linalg.eigh(form)[1][:, -1] for form in forms], axis=1)


def covariance_contributions(model: LinearModel, components: Tensor) -> Floats:
    """Return the tiles' summands of the logits of a model of covariances, (tiles, classes).

    ``components`` have shape (tiles, n_components).
    """
    centred = _centred(components, np.zeros(1, np.int64))
    n_tiles, size = centred.shape
    forms = model.weights.T.reshape(-1, size, size)
    of_tiles = np.concatenate(
        [
            np.stack([((block @ form) * block).sum(axis=1) for form in forms], axis=1)
            for block in np.split(centred, range(_TILES_PER_BLOCK, n_tiles, _TILES_PER_BLOCK))
        ]
    )
    return np.asarray((of_tiles + model.bias) / n_tiles, np.float64)


def tail_statistics(bags: Sequence[Tensor], directions: Floats) -> Floats:
    """Return six statistics of the tiles of each bag along directions, float64.

    They are the means of the largest and of the smallest tenth, maximum, minimum, third moment and
    root of the fourth moment, about the patient's mean. ``bags`` have shape (tiles, n_components),
    at least one tile each, ``directions`` shape (n_components, directions), and the result shape
    (bags, 6 × directions).
    """
    found = np.empty((len(bags), 6, directions.shape[1]))
    for own, tiles, starts in joined_bags(bags):
        along = _centred(tiles.double() @ torch.from_numpy(directions).to(tiles.device), starts)
        squares = along**2
        for index, of_bag in enumerate(np.split(along, starts[1:]), own.start):
            ranked = np.sort(of_bag, axis=0)
            n_tail = max(1, round(_TAIL_SHARE * len(ranked)))
            found[index, 0] = ranked[-n_tail:].sum(axis=0) / n_tail
            found[index, 1] = ranked[:n_tail].sum(axis=0) / n_tail
            found[index, 2:4] = ranked[[-1, 0]]
        lengths = np.diff(starts, append=len(along))[:, None]
        found[own, 4] = segment_sums(squares * along, starts) / lengths
        found[own, 5] = np.sqrt(segment_sums(squares**2, starts) / lengths)
    return found.reshape(len(bags), -1)


def _centred(tiles: Tensor, starts: Ints) -> Floats:
    """Return tiles less the mean of their bag, shape (tiles, ...), float64."""
    rows: Floats = tiles.double().cpu().numpy()
    lengths = np.diff(starts, append=len(rows))
    means = segment_sums(rows, starts) / lengths[:, None]
    return np.asarray(rows - np.repeat(means, lengths, axis=0), np.float64)
