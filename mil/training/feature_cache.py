"""Whitened bags of patients that stay where heads are trained, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mil.data.bags import Batch, Features, PatientBags
from mil.heads import Whitening
from mil.heads.random_streams import RandomStreams

__all__ = ["CacheSpec", "FeatureCache", "build_caches", "length_buckets"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureCache:
    """Bags one after another in one piece of memory, on the device of training."""

    tiles: Tensor
    """Shape (tiles x n_versions, n_components), float32: whitened tiles of all patients, all
    versions of a tile one after another, the plain one first."""
    starts: Tensor
    """Shape (patients,), int64: where a patient's tiles begin."""
    lengths: Tensor
    """Shape (patients,), int64: how many tiles a patient has, at least one."""
    labels: Tensor
    """Shape (patients,), int64: class indices."""
    n_versions: int = 1
    """Looks at each tile: the plain one, and its views."""
    instance_labels: Tensor | None = None
    """Shape (tiles,), int8: labels of images, see :class:`mil.data.bags.PatientBags`; None
    without."""

    @classmethod
    def joined(cls, shelves: Sequence[FeatureCache]) -> FeatureCache:
        """All of them as one; the patients of the second come after those of the first."""
        if len(shelves) == 1:
            return shelves[0]
        offset, starts = 0, []
        for shelf in shelves:
            starts.append(shelf.starts + offset)
            offset += len(shelf.tiles) // shelf.n_versions
        return cls(
            tiles=torch.cat([shelf.tiles for shelf in shelves]),
            starts=torch.cat(starts),
            lengths=torch.cat([shelf.lengths for shelf in shelves]),
            labels=torch.cat([shelf.labels for shelf in shelves]),
            n_versions=shelves[0].n_versions,
            instance_labels=None
            if shelves[0].instance_labels is None
            else torch.cat(
                [shelf.instance_labels for shelf in shelves if shelf.instance_labels is not None]
            ),
        )

    def draw(self, patients: Tensor, n_tiles: int, luck: RandomStreams) -> Batch:
        """At most so many random tiles of each patient, and a random look at each.

        A larger bag is cut into ``n_tiles`` stretches of one length, and one tile is drawn of
        each, so that every part of a slide is seen in every step. A smaller one is taken whole.

        Parameters
        ----------
        patients
            Shape (batch,), int64: which patients.
        n_tiles
            Tiles of a patient at most. As many columns are drawn, whoever the patients are.
        luck
            With a row for each patient.
        """
        return self.draw_marked(patients, n_tiles, luck)[0]

    def draw_marked(
        self, patients: Tensor, n_tiles: int, luck: RandomStreams
    ) -> tuple[Batch, Tensor | None]:
        """As :meth:`draw`, with labels of the images drawn, shape (batch, tiles); None without."""
        size, device = (len(patients), n_tiles), self.tiles.device
        places, mask = self._find(patients, luck.uniform(*size, device=device))
        looks: Tensor | int = 0
        if self.n_versions > 1:
            looks = luck.integers(self.n_versions, *size, device=device)
        instance_labels = None if self.instance_labels is None else self.instance_labels[places]
        return self._take(places, mask, looks), instance_labels

    def spread(self, patients: Tensor, n_tiles: int | None = None, *, version: int = 0) -> Batch:
        """One look at at most so many tiles of each patient, evenly spaced; always the same.

        Parameters
        ----------
        patients
            Shape (batch,), int64: which patients.
        n_tiles
            Tiles of a patient at most; all of them by default.
        look
            Which one; 0 for the plain tiles.
        """
        longest = int(self.lengths[patients].max())
        width = longest if n_tiles is None else min(n_tiles, longest)
        middle = torch.full((1, width), 0.5, device=self.tiles.device)
        return self._take(*self._find(patients, middle.expand(len(patients), -1)), version)

    def _find(self, patients: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        """The tile at ``within`` (batch, width), from 0 to below 1, of each stretch of a bag.

        Returns tiles and which of them are real, both of shape (batch, width).
        """
        width = within.shape[1]
        lengths = self.lengths[patients, None]  # (batch, 1)
        steps = torch.arange(width, device=within.device)
        # In double precision, or the last stretch of a large bag could end behind its last tile.
        drawn = ((steps + within.double()) * (lengths / width)).long()
        places = torch.where(lengths > width, torch.minimum(drawn, lengths - 1), steps)
        mask = steps < lengths
        return self.starts[patients, None] + torch.where(mask, places, 0), mask

    def _take(self, tiles: Tensor, mask: Tensor, looks: Tensor | int = 0) -> Batch:
        """These tiles, by ``looks``, one or of the same shape."""
        places = tiles * self.n_versions + looks
        found = self.tiles.index_select(0, places.view(-1)).view(*places.shape, -1)
        return Batch(found * mask[..., None] if not mask.all() else found, mask)


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheSpec:
    """What a shelf is to hold."""

    bags: PatientBags
    """Where the tiles are."""
    patient_ids: Sequence[str]
    """Patients in the order of the shelf, each with a tile."""
    labels: npt.NDArray[np.int64]
    """Class index of each, shape (patients,)."""
    whitening: Whitening
    """Of their tiles, on the device of the shelf."""


def build_caches(plans: Sequence[CacheSpec]) -> list[FeatureCache]:
    """A shelf for each plan.

    A bag that several plans name is taken to the device once, where it lies in memory.
    """
    shelves, parts = [], []
    for plan in plans:
        device = plan.whitening.mean.device
        lengths = [plan.bags.n_tiles[name] for name in plan.patient_ids]
        # One piece of memory: many small ones among passing large ones would tear the heap to
        # pieces.
        n_components = plan.whitening.matrix.shape[1]
        tiles = torch.empty(sum(lengths), plan.bags.n_versions, n_components, device=device)
        parts.append(dict(zip(plan.patient_ids, torch.split(tiles, lengths), strict=True)))
        counts = torch.tensor(lengths, device=device)
        shelves.append(
            FeatureCache(
                tiles=tiles.view(-1, n_components),
                starts=counts.cumsum(0) - counts,
                lengths=counts,
                labels=torch.from_numpy(plan.labels).to(device),
                n_versions=plan.bags.n_versions,
                instance_labels=_marks(plan, device=device),
            )
        )
    with torch.no_grad():
        for name in dict.fromkeys(name for plan in plans for name in plan.patient_ids):
            asked = [
                (plan, of_plan[name])
                for plan, of_plan in zip(plans, parts, strict=True)
                if name in of_plan
            ]
            _whiten([(plan, plan.bags.features[name], part[:, :1]) for plan, part in asked])
            _whiten(
                [
                    (plan, plan.bags.views[name], part[:, 1:])
                    for plan, part in asked
                    if plan.bags.views
                ]
            )
    return shelves


def length_buckets(widths: Sequence[int], room: int) -> list[slice]:
    """Neighbours that, padded to the widest of them, take at most ``room`` tiles; one at least.

    Parameters
    ----------
    widths
        Tiles of each, falling.
    room
        Tiles of a block.
    """
    blocks, start = [], 0
    while start < len(widths):
        n = max(1, room // widths[start])
        blocks.append(slice(start, start + n))
        start += n
    return blocks


def _whiten(asked: Iterable[tuple[CacheSpec, Features, Tensor]]) -> None:
    """Fill parts of shelves, shape (tiles, looks, n_components), with one bag, whitened."""
    loaded, near = None, torch.empty(0)
    for plan, bag, part in asked:
        if bag is not loaded:
            loaded, near = bag, torch.from_numpy(bag).to(part.device).float()
        part.copy_(plan.whitening(near).view(part.shape))


def _marks(plan: CacheSpec, *, device: torch.device) -> Tensor | None:
    """Labels of the patients' images, shape (tiles,); None where there are none."""
    if not plan.bags.instance_labels:
        return None
    instance_labels = [plan.bags.instance_labels[name] for name in plan.patient_ids]
    return torch.from_numpy(np.concatenate(instance_labels)).to(device)
