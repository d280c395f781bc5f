"""Embeddings by patient: batches of them, and lazy mappings that read them from files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from features.bags.bag import BagRef
from features.bags.h5 import read_features, read_views
from features.errors import BagError
from features.filters.classifier import TileFilter

__all__ = ["Batch", "FeatureMapping", "Features", "OnDiskFeatures", "subset_features"]

Features = npt.NDArray[np.floating[Any]]
"""Embeddings, shape (tiles, dim), float16 or float32."""


class Batch(NamedTuple):
    """Bags of several patients, padded to the longest.

    ``features`` have shape (batch, tiles, dim), float32, zeros on padding; ``mask`` has shape
    (batch, tiles), bool, True on real tiles.
    """

    features: Tensor
    mask: Tensor


class FeatureMapping(Mapping[str, Features], ABC):
    """Embeddings by patient id, shape (tiles, dim), that are read or computed at each access."""

    tile_filter: TileFilter | None = None
    """Filter that drops tiles when they are read."""

    @property
    @abstractmethod
    def n_tiles(self) -> Mapping[str, int]:
        """Number of embeddings by patient."""

    @abstractmethod
    def subset(self, patient_ids: Sequence[str]) -> FeatureMapping:
        """Return a mapping of these patients only, shape (tiles, dim) each, in this order."""

    def refit_without(self, patient_ids: Iterable[str]) -> FeatureMapping:  # noqa: ARG002
        """Return the same patients with nothing learned from the ones named."""
        return self


class OnDiskFeatures(FeatureMapping):
    """Embeddings that stay in their files, read at each access: shape (tiles, dim) per patient.

    ``files`` are the bags by patient, in order, and ``n_tiles`` their numbers of embeddings at the
    first reading. With ``n_views``, the augmented views are read, shape (tiles, n_views, dim).
    """

    def __init__(
        self,
        files: Mapping[str, tuple[BagRef, ...]],
        n_tiles: Mapping[str, int],
        *,
        dim: int,
        n_views: int = 0,
    ) -> None:
        self._files = files
        self._dim = dim
        self._n_views = n_views
        self._n_tiles = n_tiles

    @property
    def n_tiles(self) -> Mapping[str, int]:
        """Number of embeddings by patient; nothing is read."""
        return self._n_tiles

    def __getitem__(self, patient_id: str) -> Features:
        """Read a patient's bags, shape (tiles, dim); of views (tiles, n_views, dim).

        Raises
        ------
        BagError
            If a file is missing, damaged, or changed since the first reading.
        """
        files = self._files[patient_id]
        row = (self._n_views, self._dim) if self._n_views else (self._dim,)
        parts = [read_views(path) if self._n_views else read_features(path) for path in files]
        tiles = np.concatenate(parts) if parts else np.empty((0, *row), np.float16)
        if tiles.shape != (expected := (self.n_tiles[patient_id], *row)):
            raise BagError(
                files[0],
                actual=f"embeddings of patient {patient_id!r} have shape {tiles.shape}",
                expected=f"{expected}, as when training began",
                hint="Do not change bags while they are trained on.",
            )
        return tiles

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def subset(self, patient_ids: Sequence[str]) -> OnDiskFeatures:
        """Return a mapping of these patients only, shape (tiles, dim) each, in this order."""
        return OnDiskFeatures(
            {name: self._files[name] for name in patient_ids},
            {name: self.n_tiles[name] for name in patient_ids},
            dim=self._dim,
            n_views=self._n_views,
        )


def subset_features(
    features: Mapping[str, Features], patient_ids: Sequence[str]
) -> Mapping[str, Features]:
    """Return the embeddings of these patients only, in this order, shape (tiles, dim) each."""
    if isinstance(features, FeatureMapping):
        return features.subset(patient_ids)
    return {patient_id: features[patient_id] for patient_id in patient_ids}
