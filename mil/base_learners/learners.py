"""Base learners of one training set: fit, logits, and contributions of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Float32s, Floats, Ints
from mil.base_learners import BASE_LEARNERS
from mil.base_learners.kernel import PatientKernel
from mil.base_learners.logistic import LinearModel
from mil.base_learners.pooling import Codebook, log_spread, mean_and_extremes, spaced
from mil.base_learners.second_order import (
    covariance_contributions,
    covariances,
    fit_covariance_model,
    tail_statistics,
)
from mil.data.features import Features
from mil.heads import Whitening
from mil.heads.ensemble import whiten_tiles

__all__ = ["TILE_WISE", "BaseLearners"]

TILE_WISE = ("mean", "mean + logistic", "histogram", "covariance")
"""Base learners whose logits are means over tiles: each tile has a contribution."""

_SAMPLE_TILES = 20  # per patient, for the cluster centres


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseLearners:
    """Convex models of pooled embeddings, fitted on the training patients of an ensemble.

    ``mean`` and ``mean + logistic`` use the mean embedding, ``extremes`` the maximum and minimum of
    each dimension, ``spread`` the log standard deviations of whitened components over tiles, and
    ``histogram`` the mean occupancy of the cluster centres of ``codebook``. ``covariance`` uses the
    covariance of whitened components over tiles, and ``projections`` the tails of their
    distribution along ``directions``, shape (n_components, classes), which are those of
    :func:`mil.base_learners.second_order.fit_covariance_model`. ``kernel`` uses the similarity of
    mean, maximum and minimum to those of training patients. Whitened components are those of
    the ensemble's heads. ``models`` are by name, in the order of the logits; stored ones of
    earlier versions lack the kernel, or the kernel and the two before it with their directions.
    """

    models: Mapping[str, LinearModel]
    codebook: Codebook
    directions: Floats | None = None
    kernel: PatientKernel | None = None

    @classmethod
    def fit(
        cls,
        pooled: Floats,
        components: Sequence[Tensor],
        labels: Ints,
        *,
        n_classes: int,
        balanced: bool,
        seed: int,
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
        seed
            Seeds the cluster centres.
        """
        sample = torch.cat([c[spaced(len(c), _SAMPLE_TILES).to(c.device)] for c in components])
        codebook = Codebook.fit(sample, seed=seed)
        means = pooled[:, 0]
        occupancy = codebook.mean_occupancies(components)

        def fit(features: Floats, *, standardise: bool) -> LinearModel:
            return LinearModel.fit(
                features, labels, n_classes=n_classes, balanced=balanced, standardise=standardise
            )

        within = covariances(components)
        spread = log_spread(within)
        of_covariance, directions = fit_covariance_model(
            within, labels, n_classes=n_classes, balanced=balanced
        )
        del within  # 32 kB per patient
        tails = tail_statistics(components, directions)
        flat = pooled.reshape(len(pooled), -1)
        kernel, similarities = PatientKernel.fit(flat)
        models = {
            "mean": fit(means, standardise=False),
            "mean + logistic": LinearModel.fit_principal_components(
                means, labels, n_classes=n_classes, balanced=balanced, seed=seed
            ),
            "histogram": fit(occupancy, standardise=True),
            "extremes": fit(pooled[:, 1:].reshape(len(pooled), -1), standardise=True),
            "spread": fit(spread, standardise=True),
            "covariance": of_covariance,
            "projections": fit(tails, standardise=True),
            "kernel": fit(similarities, standardise=False),
        }
        return cls(
            models={name: models[name] for name in BASE_LEARNERS},
            codebook=codebook,
            directions=directions,
            kernel=kernel,
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
        return np.asarray(self.logits_of([mean_and_extremes(raw)], [components])[0], np.float64)

    def logits_of(
        self, pooled: Sequence[Floats | Float32s], components: Sequence[Tensor]
    ) -> Floats:
        """Return logits, shape (patients, learners, classes), of many patients.

        Many at once take less time than one after the other. ``pooled`` are results of
        :func:`mil.base_learners.pooling.mean_and_extremes`, shape (3, dim) each, and ``components``
        whitened tiles, shape (tiles, n_components) each, at least one.
        """
        flat = np.stack(pooled).reshape(len(pooled), -1).astype(np.float64)
        dim = flat.shape[1] // 3
        within = covariances(components)
        features = {
            "mean": flat[:, :dim],
            "mean + logistic": flat[:, :dim],
            "histogram": self.codebook.mean_occupancies(components),
            "extremes": flat[:, dim:],
            "spread": log_spread(within),
            "covariance": within.reshape(len(within), -1),
        }
        if self.directions is not None:
            features["projections"] = tail_statistics(components, self.directions)
        if self.kernel is not None:
            features["kernel"] = self.kernel.features(flat)
        logits = [model.logits(features[name]) for name, model in self.models.items()]
        return np.asarray(np.stack(logits, axis=1), np.float64)

    def contributions(self, tiles: Features, whitening: Whitening) -> dict[str, Floats]:
        """Return the summands of the logits of :data:`TILE_WISE`, shape (tiles, classes) each.

        Learners that the stack lacks are left out.

        They sum over the tiles to :meth:`logits`, whose arguments these are.
        """
        raw, components = whiten_tiles(tiles, whitening)
        features = {
            "mean": raw.numpy(),
            "mean + logistic": raw.numpy(),
            "histogram": self.codebook.occupancy(components).numpy(),
        }
        of_tiles = {n: self.models[n].contributions(values) for n, values in features.items()}
        if self.directions is not None:
            of_tiles["covariance"] = covariance_contributions(self.models["covariance"], components)
        return of_tiles
