"""Covariance of a patient's tiles, and their distribution along directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats, Ints
from mil.base_learners.joined_bags import about_means, joined_bags, segment_sums
from mil.base_learners.logistic import LinearModel

__all__ = [
    "N_STATISTICS", "covariance_contributions", "covariances", "project", "segment_covariances",
    "tail_parts", "tail_statistics",
]  # fmt: skip

N_STATISTICS = 6
"""Statistics of tiles along a direction, see :func:`tail_statistics`."""

_TAIL_SHARE = 0.1
_TILES_PER_BLOCK = 8192
_TILES_PER_PRODUCT = 1024


def covariances(bags: Sequence[Tensor]) -> Floats:
    """Return the covariance of components over the tiles of each bag, float64.

    ``bags`` have shape (tiles, n_components), at least one tile each; the result has shape
    (bags, n_components, n_components).
    """
    size = bags[0].shape[1]
    found = np.empty((len(bags), size, size))
    for own, tiles, starts in joined_bags(bags):
        of_bags = segment_covariances(about_means(tiles, starts), starts)
        for index, within in enumerate(of_bags, own.start):
            found[index] = within
    return found


def segment_covariances(rows: Floats, starts: Ints) -> Iterator[Floats]:
    """Yield the covariance of each bag, shape (n_components, n_components).

    ``rows`` are tiles about the mean of their bag, shape (tiles, n_components); a bag begins at
    each start.
    """
    for of_bag in np.split(rows, starts[1:]):
        yield of_bag.T @ of_bag / len(of_bag)


def covariance_contributions(model: LinearModel, components: Tensor) -> Floats:
    """Return the tiles' summands of the logits of a model of covariances, (tiles, classes).

    ``components`` have shape (tiles, n_components).
    """
    centred = about_means(components, np.zeros(1, np.int64))
    n_tiles, size = centred.shape
    forms = model.weights.T.reshape(-1, size, size)
    of_tiles = np.concatenate(
        [
            np.stack([((block @ form) * block).sum(axis=1) for form in forms], axis=1)
            for block in np.split(centred, range(_TILES_PER_BLOCK, n_tiles, _TILES_PER_BLOCK))
        ]
    )
    return np.asarray((of_tiles + model.bias) / n_tiles, np.float64)


def project(tiles: Tensor, directions: Floats) -> Tensor:
    """Return a bag, shape (tiles, features), along directions, (tiles, directions), float64.

    ``directions`` have shape (features, directions). In blocks, since tiles may be embeddings: a
    large bag in float64 would need much memory.
    """
    matrix = torch.from_numpy(directions.T).to(tiles.device)
    # A product with few rows takes half as long as one with few columns.
    blocks = torch.split(tiles, _TILES_PER_PRODUCT)
    return torch.cat([matrix @ block.double().T for block in blocks], dim=1).T


def tail_statistics(projected: Sequence[Tensor]) -> Floats:
    """Return six statistics of the tiles of each bag along directions, float64.

    They are the means of the largest and of the smallest tenth, maximum, minimum, third moment and
    root of the fourth moment, about the patient's mean. ``projected`` are results of
    :func:`project`, shape (tiles, directions), at least one tile each, and the result has shape
    (bags, 6, directions).
    """
    found = np.empty((len(projected), N_STATISTICS, projected[0].shape[1]))
    for own, tiles, starts in joined_bags(projected):
        along = about_means(tiles, starts)
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
    return found


def tail_parts(tiles: Tensor, directions: Floats) -> Floats:
    """Return what each tile adds to the tail statistics, shape (tiles, 6, directions).

    The mean over the tiles is the result of :func:`tail_statistics` for the bag ``tiles``, shape
    (tiles, features): a mean of a tail is shared by its tiles, a maximum is one tile's, and the
    root of the fourth moment m is the mean of x⁴ / √m.
    """
    along = about_means(project(tiles, directions), np.zeros(1, np.int64))
    n_tiles, n_directions = along.shape
    n_tail = max(1, round(_TAIL_SHARE * n_tiles))
    order = along.argsort(axis=0, kind="stable")
    columns = np.arange(n_directions)
    parts = np.zeros((n_tiles, N_STATISTICS, n_directions))
    for index, rows in enumerate((order[-n_tail:], order[:n_tail], order[-1:], order[:1])):
        parts[rows, index, columns] = along[rows, columns] * (n_tiles / len(rows))
    parts[:, 4] = along**3
    root = np.sqrt((along**4).mean(axis=0))
    parts[:, 5] = along**4 / np.where(root > 0, root, 1)
    return parts
