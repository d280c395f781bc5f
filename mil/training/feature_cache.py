"""Whitened features of all training patients on the training device, and sampling from them."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mil.arrays import Floats, Ints
from mil.base_learners.pooling import mean_and_extremes
from mil.data.bags import PatientBags
from mil.data.features import Batch, Features
from mil.heads import Whitening
from mil.heads.random_streams import RandomStreams

__all__ = ["CacheSpec", "FeatureCache", "build_caches", "length_buckets"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureCache:
    """Whitened bags, concatenated in one tensor on the training device.

    Attributes
    ----------
    tiles
        Shape (tiles × n_versions, n_components), float32: the versions of a tile, the plain one and
        its augmented views, are consecutive.
    starts, lengths
        Shape (patients,), int64: index of the first tile, and number of tiles, at least one.
    labels
        Shape (patients,), int64: class indices.
    instance_labels
        Shape (tiles,), int8: labels of images, see :class:`mil.data.bags.PatientBags`.
    wide_tiles
        Shape (tiles, n_wide), float32: plain tiles in more components, for base learners, where a
        spec asks for them.
    """

    tiles: Tensor
    starts: Tensor
    lengths: Tensor
    labels: Tensor
    n_versions: int = 1
    instance_labels: Tensor | None = None
    wide_tiles: Tensor | None = None

    @classmethod
    def concatenate(cls, caches: Sequence[FeatureCache]) -> FeatureCache:
        """Return one cache of all patients in turn, tiles of shape (tiles, n_components).

        It has no ``wide_tiles``.
        """
        if len(caches) == 1:
            return replace(caches[0], wide_tiles=None)
        offset, starts = 0, []
        for cache in caches:
            starts.append(cache.starts + offset)
            offset += len(cache.tiles) // cache.n_versions
        labelled = [c.instance_labels for c in caches if c.instance_labels is not None]
        return cls(
            tiles=torch.cat([cache.tiles for cache in caches]),
            starts=torch.cat(starts),
            lengths=torch.cat([cache.lengths for cache in caches]),
            labels=torch.cat([cache.labels for cache in caches]),
            n_versions=caches[0].n_versions,
            instance_labels=torch.cat(labelled) if labelled else None,
        )

    def sample(self, patients: Tensor, n_tiles: int, rng: RandomStreams) -> Batch:
        """Sample tiles of each patient, each in a random version.

        A bag of more than ``n_tiles`` is divided into ``n_tiles`` segments of equal length, and one
        tile is sampled from each, so that every part of a slide contributes to every step. A
        smaller bag is used whole. ``patients`` are indices, shape (batch,); the batch has shape
        (batch, n_tiles, n_components).
        """
        return self.sample_labelled(patients, n_tiles, rng)[0]

    def sample_labelled(
        self, patients: Tensor, n_tiles: int, rng: RandomStreams
    ) -> tuple[Batch, Tensor | None]:
        """Sample as :meth:`sample`, with labels of the images, shape (batch, tiles), if any."""
        size, device = (len(patients), n_tiles), self.tiles.device
        tiles, mask = self._locate(patients, rng.uniform(*size, device=device))
        versions: Tensor | int = 0
        if self.n_versions > 1:
            versions = rng.integers(self.n_versions, *size, device=device)
        labels = None if self.instance_labels is None else self.instance_labels[tiles]
        return self._take(tiles, mask, versions), labels

    def take_evenly(
        self, patients: Tensor, n_tiles: int | None = None, *, version: int = 0
    ) -> Batch:
        """Select at most ``n_tiles`` evenly spaced tiles of each patient, all by default.

        ``patients`` are indices, shape (batch,). Version 0 are the plain tiles.
        """
        longest = int(self.lengths[patients].max())
        width = longest if n_tiles is None else min(n_tiles, longest)
        middle = torch.full((1, width), 0.5, device=self.tiles.device)
        return self._take(*self._locate(patients, middle.expand(len(patients), -1)), version)

    def _locate(self, patients: Tensor, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tile at a fraction, 0 to below 1, of each segment of a bag, and the mask.

        ``fractions``, the indices of tiles and the mask all have shape (batch, width).
        """
        width = fractions.shape[1]
        lengths = self.lengths[patients, None]  # (batch, 1)
        steps = torch.arange(width, device=fractions.device)
        # In single precision the last segment of a large bag could end after its last tile.
        sampled = ((steps + fractions.double()) * (lengths / width)).long()
        tiles = torch.where(lengths > width, torch.minimum(sampled, lengths - 1), steps)
        mask = steps < lengths
        return self.starts[patients, None] + torch.where(mask, tiles, 0), mask

    def _take(self, tiles: Tensor, mask: Tensor, versions: Tensor | int) -> Batch:
        """Gather tiles, shape (batch, width), in one version or in one per tile."""
        rows = tiles * self.n_versions + versions
        features = self.tiles.index_select(0, rows.view(-1)).view(*rows.shape, -1)
        return Batch(features * mask[..., None] if not mask.all() else features, mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheSpec:
    """Patients, each with tiles, and whitening of a feature cache to build on its device.

    ``bags`` holds at least these patients; ``labels`` are their class indices, shape (patients,).
    Pooled embeddings of patients that are not in ``pooled`` yet, shape (3, dim), are added to it
    while their bags are read, see :func:`mil.base_learners.pooling.mean_and_extremes`. ``wide`` is
    a whitening of more components.
    """

    bags: PatientBags
    patient_ids: Sequence[str]
    labels: Ints
    whitening: Whitening
    wide: Whitening | None = None
    pooled: MutableMapping[str, Floats] | None = None


def build_caches(specs: Sequence[CacheSpec]) -> list[FeatureCache]:
    """Build a cache per spec; a bag that several specs name is read and moved once."""
    caches, parts = [], []
    for spec in specs:
        device = spec.whitening.mean.device
        n_tiles = spec.bags.n_tiles  # counted anew each time
        lengths = [n_tiles[name] for name in spec.patient_ids]
        # One allocation: many small ones between temporary large ones would fragment the heap.
        n_components = spec.whitening.matrix.shape[1]
        tiles = torch.empty(sum(lengths), spec.bags.n_versions, n_components, device=device)
        wide = None
        if spec.wide is not None:
            wide = torch.empty(sum(lengths), spec.wide.matrix.shape[1], device=device)
        rooms = zip(
            torch.split(tiles, lengths),
            [None] * len(lengths) if wide is None else torch.split(wide, lengths),
            strict=True,
        )
        parts.append(dict(zip(spec.patient_ids, rooms, strict=True)))
        counts = torch.tensor(lengths, device=device)
        images = spec.bags.instance_labels
        caches.append(
            FeatureCache(
                tiles=tiles.view(-1, n_components),
                starts=counts.cumsum(0) - counts,
                lengths=counts,
                labels=torch.from_numpy(spec.labels).to(device),
                n_versions=spec.bags.n_versions,
                instance_labels=torch.from_numpy(
                    np.concatenate([images[name] for name in spec.patient_ids])
                ).to(device)
                if images
                else None,
                wide_tiles=wide,
            )
        )
    rooms_for_pooled = _rooms_for_pooled(specs)
    with torch.no_grad():
        for name in dict.fromkeys(name for spec in specs for name in spec.patient_ids):
            targets = [
                (spec, by_patient[name])
                for spec, by_patient in zip(specs, parts, strict=True)
                if name in by_patient
            ]
            _whiten(
                ((s, s.bags.features[name], part[:, :1], wide) for s, (part, wide) in targets),
                pool_as=name,
                pool_into=rooms_for_pooled.get(name),
            )
            _whiten(
                (spec, spec.bags.views[name], part[:, 1:], None)
                for spec, (part, _) in targets
                if spec.bags.views
            )
    return caches


def _rooms_for_pooled(specs: Sequence[CacheSpec]) -> dict[str, Floats]:
    """Return room for the pooled embeddings that specs lack, shape (3, dim), float32, by patient.

    One allocation, as for the tiles.
    """
    missing = list(
        dict.fromkeys(
            name
            for spec in specs
            if spec.pooled is not None
            for name in spec.patient_ids
            if name not in spec.pooled
        )
    )
    dim = len(specs[0].whitening.mean)
    return dict(zip(missing, np.empty((len(missing), 3, dim), np.float32), strict=True))


def length_buckets(lengths: Sequence[int], room: int) -> list[slice]:
    """Return slices of bags whose tiles, padded to the longest bag of a slice, fit ``room``.

    ``lengths`` are tiles per bag, descending; a single bag may exceed ``room``.
    """
    slices, start = [], 0
    while start < len(lengths):
        n = max(1, room // lengths[start])
        slices.append(slice(start, start + n))
        start += n
    return slices


def _whiten(
    targets: Iterable[tuple[CacheSpec, Features, Tensor, Tensor | None]],
    *,
    pool_as: str = "",
    pool_into: Floats | None = None,
) -> None:
    """Write one bag, whitened, into parts of caches, shape (tiles, versions, n_components).

    Plain tiles are also written into wide parts, shape (tiles, n_wide), where there are any.
    ``pool_as`` is the patient whose plain tiles these are, ``pool_into``, shape (3, dim), float32,
    takes them pooled, where a spec asks for that.
    """
    loaded, on_device = None, torch.empty(0)
    for spec, bag, part, wide in targets:
        if bag is not loaded:
            loaded, on_device = bag, torch.from_numpy(bag).to(part.device).float()
        part.copy_(spec.whitening(on_device).view(part.shape))
        if wide is not None and spec.wide is not None:
            wide.copy_(spec.wide(on_device))
        if pool_into is not None and spec.pooled is not None and pool_as not in spec.pooled:
            pool_into[:] = mean_and_extremes(on_device)
            spec.pooled[pool_as] = pool_into
