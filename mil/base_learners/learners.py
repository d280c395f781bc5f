"""Base learners of one training set: fit, logits, and contributions of tiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from torch import Tensor

from mil.arrays import Float32s, Floats, Ints
from mil.base_learners import BASE_LEARNERS
from mil.base_learners.directions import fit_directions
from mil.base_learners.kernel import PatientKernels
from mil.base_learners.logistic import LinearModel
from mil.base_learners.pooling import Codebook, log_spread, mean_and_extremes
from mil.base_learners.second_order import (
    N_STATISTICS,
    covariance_contributions,
    covariances,
    project,
    tail_parts,
    tail_statistics,
)
from mil.data.features import Features
from mil.heads import Whitening
from mil.heads.ensemble import whiten_tiles

__all__ = ["BaseLearners"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseLearners:
    """Convex models of pooled embeddings, fitted on the training patients of an ensemble.

    ``models`` are by name, in the order of the logits. ``mean`` uses the mean embedding,
    ``projections`` and ``mixture`` the tails of the distribution of tiles along their
    ``directions``, shape (dim, classes), see
    :func:`mil.base_learners.directions.fit_directions`, and the two kernels the similarity to
    training patients.

    Stored ones of version 6 have no ``mixture``; those before it have
    :data:`mil.base_learners.EARLIER_LEARNERS`, or the first seven or five: ``mean + logistic`` uses
    the mean embedding, ``extremes`` the maximum and minimum of each dimension, ``spread`` the log
    standard deviations of components over tiles, ``histogram`` the mean occupancy of the cluster
    centres of ``codebook``, and ``covariance`` the covariance of components over tiles. Components
    are those of the ensemble's heads; up to version 6 ``projections`` has ``component_directions``
    in them, shape (n_components, classes).
    """

    models: Mapping[str, LinearModel]
    directions: Mapping[str, Floats]
    kernels: PatientKernels | None
    codebook: Codebook | None = None
    component_directions: Floats | None = None

    @classmethod
    def fit(
        cls,
        pooled: Floats,
        components: Sequence[Tensor],
        labels: Ints,
        *,
        n_classes: int,
        balanced: bool,
        whitening: Whitening,
        n_leading: int,
        groups: Ints | None = None,
    ) -> Self:
        """Fit all base learners to training patients only.

        Parameters
        ----------
        pooled
            Mean, maximum and minimum of each patient, shape (patients, 3, dim), see
            :func:`mil.base_learners.pooling.mean_and_extremes`.
        components
            Whitened tiles of each patient, shape (tiles, n_components), at least one.
        labels
            Class indices, shape (patients,), every class at least once.
        n_classes
            Number of classes.
        balanced
            Give every class the same total weight.
        whitening
            What the tiles were whitened by.
        n_leading
            Components that few patients can learn from, as the heads do: see
            :func:`mil.base_learners.directions.fit_directions`.
        groups
            Patients of one number share slides or tiles, shape (patients,).
        """
        by_variance, by_mixture, emphasis = fit_directions(
            components, labels, n_classes=n_classes, balanced=balanced, n_leading=n_leading,
            groups=groups,
        )  # fmt: skip
        of_tails = {"projections": by_variance, "mixture": by_mixture}
        emphasis_of = {"mixture": np.tile(emphasis, N_STATISTICS)}
        every_direction = np.concatenate(list(of_tails.values()), axis=1)
        projected = [project(bag, every_direction) for bag in components]
        kernels, of_kernels = PatientKernels.fit(
            pooled.reshape(len(pooled), -1), labels, n_classes=n_classes, balanced=balanced
        )
        models = {
            "mean": LinearModel.fit(
                pooled[:, 0], labels, n_classes=n_classes, balanced=balanced, standardise=False
            ),
            **{
                name: LinearModel.fit(
                    tails, labels, n_classes=n_classes, balanced=balanced, standardise=True,
                    emphasis=emphasis_of.get(name),
                )
                for name, tails in _tails(projected, of_tails).items()
            },
            **of_kernels,
        }  # fmt: skip
        matrix = whitening.matrix.double().cpu().numpy()
        return cls(
            models={name: models[name] for name in BASE_LEARNERS},
            directions={name: matrix @ directions for name, directions in of_tails.items()},
            kernels=kernels,
        )

    @property
    def constant(self) -> tuple[str, ...]:
        """Learners whose features were the same for all training patients."""
        return tuple(name for name, model in self.models.items() if model.is_constant)

    def logits(self, tiles: Features, whitening: Whitening) -> Floats:
        """Return logits, shape (learners, classes), of a patient's tiles, shape (tiles, dim).

        ``whitening`` is that of the ensemble's heads, on the CPU; there is at least one tile.
        """
        raw, components = whiten_tiles(tiles, whitening)
        pooled = mean_and_extremes(raw)
        of_bag = self.logits_of([pooled], [self.project(raw)], [components])
        return np.asarray(of_bag[0], np.float64)

    def project(self, tiles: Tensor) -> Tensor:
        """Return tiles, shape (tiles, dim), along all directions, (tiles, directions), float64."""
        return project(tiles, self._every_direction)

    @cached_property
    def _every_direction(self) -> Floats:
        dim = len(self.models["mean"].weights)
        return np.concatenate([np.empty((dim, 0)), *self.directions.values()], axis=1)

    def logits_of(
        self,
        pooled: Sequence[Floats | Float32s],
        projected: Sequence[Tensor],
        components: Sequence[Tensor],
    ) -> Floats:
        """Return logits, shape (patients, learners, classes), of many patients.

        Many at once take less time than one after the other. ``pooled`` are results of
        :func:`mil.base_learners.pooling.mean_and_extremes`, shape (3, dim) each, and ``projected``
        of :meth:`project`, for the same tiles, at least one each; ``components`` are these whitened
        for the heads, shape (tiles, n_components).
        """
        flat = np.stack(pooled).reshape(len(pooled), -1).astype(np.float64)
        dim = flat.shape[1] // 3
        features = {
            "mean": flat[:, :dim], "mean + logistic": flat[:, :dim], "extremes": flat[:, dim:],
        }  # fmt: skip
        if self.directions:
            features |= _tails(projected, self.directions)
        if self.component_directions is not None:
            of_components = [project(bag, self.component_directions) for bag in components]
            features |= _tails(of_components, ("projections",))
        if self.codebook is not None:
            features["histogram"] = self.codebook.mean_occupancies(components)
        if not {"spread", "covariance"}.isdisjoint(self.models):
            within = covariances(components)
            features |= {
                "spread": log_spread(within), "covariance": within.reshape(len(within), -1),
            }  # fmt: skip
        if self.kernels is not None:
            features |= self.kernels.features(flat)
        logits = [model.logits(features[name]) for name, model in self.models.items()]
        return np.asarray(np.stack(logits, axis=1), np.float64)

    def contributions(self, tiles: Features, whitening: Whitening) -> dict[str, Floats]:
        """Return summands of logits by learner, shape (tiles, classes) each.

        Only those of learners whose features are means over tiles: ``mean``, ``projections`` and
        ``mixture`` (see :func:`mil.base_learners.second_order.tail_parts`), and of earlier stacks
        ``mean + logistic``, ``histogram`` and ``covariance``. They sum over the tiles to
        :meth:`logits`, whose arguments these are.
        """
        raw, components = whiten_tiles(tiles, whitening)
        features: dict[str, Floats | Float32s] = {
            "mean": raw.numpy(), "mean + logistic": raw.numpy(),
        }  # fmt: skip
        pooled = dict.fromkeys(features, mean_and_extremes(raw)[0])
        for name, directions in self.directions.items():
            features[name] = tail_parts(raw, directions).reshape(len(raw), -1)
        if self.component_directions is not None:
            parts = tail_parts(components, self.component_directions)
            features["projections"] = parts.reshape(len(raw), -1)
        if self.codebook is not None:
            features["histogram"] = self.codebook.occupancy(components).numpy()
        of_tiles = {
            name: model.contributions(features[name], pooled=pooled.get(name))
            for name, model in self.models.items()
            if name in features
        }
        if "covariance" in self.models:
            of_tiles["covariance"] = covariance_contributions(self.models["covariance"], components)
        return of_tiles


def _tails(projected: Sequence[Tensor], names: Collection[str]) -> dict[str, Floats]:
    """Return the tail statistics of each learner, of bags along the directions of all of them."""
    parts = np.split(tail_statistics(projected), len(names), axis=2)
    return {name: part.reshape(len(part), -1) for name, part in zip(names, parts, strict=True)}
