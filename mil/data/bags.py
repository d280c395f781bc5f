"""Patients' bags: ragged, read-only, and only of the patients one may see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from features.bags.bag import Bag, BagRef, Fingerprint, check_fingerprint
from features.bags.h5 import read_features, read_slide_bag, read_views
from features.errors import BagError
from features.filters.classifier import TileFilter
from features.utils.hardware import available_memory
from mil.data.cohort import Cohort, Patient
from mil.data.patient_groups import LinkedPairs

__all__ = [
    "Batch",
    "FeatureMapping",
    "Features",
    "OnDiskFeatures",
    "PatientBags",
    "SlideRecord",
    "content_keys",
    "load_patient_bags",
    "restrict",
]

Features = npt.NDArray[np.floating[Any]]
"""Embeddings, shape (tiles, dim), float16 or float32."""


class Batch(NamedTuple):
    """Patients side by side, padded to the longest bag."""

    features: Tensor
    """Shape (batch, tiles, dim), float32; zeros on padding."""
    mask: Tensor
    """Shape (batch, tiles), bool; True on real tiles."""


@dataclass(frozen=True, kw_only=True)
class SlideRecord:
    """What is remembered of a slide whose bag was read."""

    slide_id: str
    """Its name."""
    patient_id: str
    """Whose it is."""
    n_tiles: int
    """Embeddings in its bag."""
    content_id: str
    """Content of the slide file."""
    features_sha256: str
    """Hash of the embeddings."""
    views_sha256: str = ""
    """Hash of the embeddings of their views; empty without."""
    n_tried: int = 0
    """Tiles that were to be embedded."""
    n_failed: int = 0
    """Tiles among them that could not be decoded."""
    empty_reason: str = ""
    """Why its bag holds no tile; empty if it holds one."""
    sources: tuple[str, ...] = ()
    """Images of a series, in the order of its bag; empty for tiles of a slide."""

    @property
    def content_keys(self) -> tuple[tuple[str, str], ...]:
        """What a copy of the slide shares with it, see :func:`content_keys`."""
        return content_keys(
            content_id=self.content_id, features_sha256=self.features_sha256, n_tiles=self.n_tiles
        )


class FeatureMapping(Mapping[str, Features], ABC):
    """Embeddings by patient that are made whenever they are asked for."""

    tile_filter: TileFilter | None = None
    """Drops tiles as they are read; None for none."""

    @property
    @abstractmethod
    def n_tiles(self) -> Mapping[str, int]:
        """Embeddings by patient."""

    @abstractmethod
    def subset(self, patient_ids: Sequence[str]) -> FeatureMapping:
        """These patients only, in this order; the others cannot be reached from it."""

    def refit_without(self, patient_ids: Iterable[str]) -> FeatureMapping:  # noqa: ARG002 - for others
        """The same patients, as they are where nothing was learned from the ones named."""
        return self


class OnDiskFeatures(FeatureMapping):
    """Embeddings by patient that stay in their files and are read whenever they are asked for.

    Parameters
    ----------
    files
        Bags by patient, in order.
    n_tiles
        Embeddings by patient, in the same order, as they were when the bags were checked.
    dim
        Length of an embedding.
    n_views
        Of the further views of tiles, how many a tile; 0 for the plain tiles themselves.
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
        """Embeddings by patient; nothing is read for it."""
        return self._n_tiles

    def __getitem__(self, patient_id: str) -> Features:
        """Read a patient's bags, shape (tiles, dim); of views (tiles, n_views, dim).

        Raises
        ------
        BagError
            If a file is gone, damaged, or another than it was.
        """
        files = self._files[patient_id]
        row = (self._n_views, self._dim) if self._n_views else (self._dim,)
        parts = [read_views(path) if self._n_views else read_features(path) for path in files]
        tiles = np.concatenate(parts) if parts else np.empty((0, *row), np.float16)
        if tiles.shape != (expected := (self.n_tiles[patient_id], *row)):
            raise BagError(
                files[0],
                actual=f"embeddings of patient {patient_id!r} have shape {tiles.shape}",
                expected=f"{expected}, as a moment ago",
                hint="Leave bags alone while they are trained on.",
            )
        return tiles

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def subset(self, patient_ids: Sequence[str]) -> OnDiskFeatures:
        """These patients only, in this order; files of others cannot be reached from it."""
        return OnDiskFeatures(
            {name: self._files[name] for name in patient_ids},
            {name: self.n_tiles[name] for name in patient_ids},
            dim=self._dim,
            n_views=self._n_views,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientBags:
    """Bags by patient: all tiles of all its slides, in the order of the cohort table.

    A store holds what may be seen and nothing else. Training gets a store made by
    :meth:`subset`, so patients kept for judging cannot be reached from it.
    """

    features: Mapping[str, Features]
    """By patient id: shape (tiles, dim), float16 or float32; may have 0 rows."""
    fingerprint: Fingerprint
    """How all of them were made."""
    slides: tuple[SlideRecord, ...]
    """Slides they were read from."""
    missing_slides: tuple[str, ...] = ()
    """Slides of the cohort without a bag."""
    tile_filter: TileFilter | None = None
    """Filter that dropped tiles, when they were embedded or as they are read; None for none."""
    unlabelled: PatientBags | None = None
    """Other patients, of whom nothing but embeddings is used; only :meth:`with_unlabelled` adds
    them, so that no store that is made of a cohort's holds a copy of any of its patients."""
    views: Mapping[str, Features] = field(default_factory=dict)
    """By patient id: further views of its tiles, shape (tiles, n_views, dim); empty where bags
    hold none."""
    instance_labels: Mapping[str, npt.NDArray[np.int8]] = field(default_factory=dict)
    """By patient id: 1 on its images that show something, 0 on others, -1 where nobody looked,
    shape (tiles,); empty without. No patient's are here who is not in the store, so that a fold
    learns from no others."""

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients in the store, in order."""
        return tuple(self.features)

    def subset(self, patient_ids: Iterable[str]) -> PatientBags:
        """A store of these patients only, in this order; the others are not in it at all."""
        wanted = list(patient_ids)
        kept = set(wanted)
        return PatientBags(
            features=restrict(self.features, wanted),
            fingerprint=self.fingerprint,
            slides=tuple(note for note in self.slides if note.patient_id in kept),
            tile_filter=self.tile_filter,
            unlabelled=self.unlabelled,
            views=restrict(self.views, wanted) if self.views else {},
            instance_labels={name: self.instance_labels[name] for name in wanted}
            if self.instance_labels
            else {},
        )

    def refit_without(self, patient_ids: Iterable[str]) -> PatientBags:
        """The same patients, their tiles dropped by a filter that saw none of the ones named.

        Where no filter drops tiles as they are read, or it saw none of them anyhow, this is the
        store itself.
        """
        if not isinstance(self.features, FeatureMapping):
            return self
        features = self.features.refit_without(patient_ids)
        if features is self.features:
            return self
        return replace(self, features=features, tile_filter=features.tile_filter)

    def with_instance_labels(self, labels: Mapping[tuple[str, str], int]) -> PatientBags:
        """The store with labels of single images: 0 or 1, by slide and source.

        Raises
        ------
        BagError
            If they name no image of any bag.
        """
        marks: dict[str, list[int]] = {name: [] for name in self.patient_ids}
        for note in self.slides:
            sources = note.sources or [""] * note.n_tiles
            marks[note.patient_id] += [labels.get((note.slide_id, each), -1) for each in sources]
        if all(mark < 0 for own in marks.values() for mark in own):
            first = next(
                (f"{n.slide_id}, {n.sources[0]}" for n in self.slides if n.sources), "none"
            )
            raise BagError(
                "labels of images", actual=f"{len(labels):,}, and none is of an image of a bag",
                expected=f"slide and source as bags name them (first: {first})",
            )  # fmt: skip
        return replace(
            self, instance_labels={name: np.array(own, np.int8) for name, own in marks.items()}
        )

    def with_unlabelled(self, others: PatientBags) -> PatientBags:
        """The store with unlabelled patients beside its own, to be made before any split of it.

        Patients of this store are left out, see :meth:`find_duplicates`: whatever fold
        they are judged in, no copy of them lies on the other side.

        Raises
        ------
        BagError
            If their bags were made otherwise.
        """
        named = [(note.slide_id, others.fingerprint) for note in others.slides[:1]]
        check_fingerprint(self.fingerprint, named, source="the labelled bags")
        known = self.find_duplicates(others)
        strangers = [name for name in others.nonempty() if name not in known]
        return replace(self, unlabelled=others.subset(strangers))

    def find_duplicates(self, others: PatientBags) -> dict[str, str]:
        """Patients of ``others`` who are ones of this store, and which.

        Told by id, by the content of a slide's file, or by its embeddings.
        """
        owners = {each: note.patient_id for note in self.slides for each in note.content_keys}
        known = {name: name for name in others.patient_ids if name in self.features}
        for note in others.slides:
            for each in note.content_keys:
                if each in owners:
                    known.setdefault(note.patient_id, owners[each])
        return known

    def duplicate_slides(self) -> tuple[tuple[SlideRecord, SlideRecord], ...]:
        """Slides of two patients that are one, told by file content or by embeddings."""
        first: dict[tuple[str, str], SlideRecord] = {}
        found = {}
        for note in self.slides:
            for each in note.content_keys:
                known = first.setdefault(each, note)
                if known.patient_id != note.patient_id:
                    found[known.slide_id, note.slide_id] = known, note
        return tuple(found.values())

    def linked_patients(self) -> LinkedPairs:
        """Pairs of patients under both of whom one slide stands, see :meth:`duplicate_slides`."""
        return tuple((one.patient_id, other.patient_id) for one, other in self.duplicate_slides())

    def without_labels(self) -> tuple[Mapping[str, Features], tuple[str, ...]]:
        """Embeddings to be looked at without labels, and of whom: own patients, then others."""
        if self.unlabelled is None:
            return self.features, self.nonempty()
        both: Mapping[str, Features] = ChainMap(self.features, self.unlabelled.features)  # type: ignore[arg-type] # only read
        return both, (*self.nonempty(), *self.unlabelled.nonempty())

    @property
    def n_tiles(self) -> Mapping[str, int]:
        """Embeddings by patient."""
        if isinstance(self.features, FeatureMapping):
            return self.features.n_tiles
        return {name: len(tiles) for name, tiles in self.features.items()}

    @property
    def n_versions(self) -> int:
        """Looks at each tile: the plain one, and its views."""
        return 1 + self.fingerprint.n_views if self.views else 1

    def nonempty(self) -> tuple[str, ...]:
        """Patients that have at least one tile."""
        return tuple(name for name, n_tiles in self.n_tiles.items() if n_tiles)


def load_patient_bags(
    cohort: Cohort, bag_paths: Mapping[str, BagRef], *, most_bytes: int | None = None
) -> PatientBags:
    """Read the bags of a cohort, and keep them in memory where there is room.

    A slide without a bag is listed, not an error: its patient is judged on the others, and a
    patient without any tile stays in the store with none. Where embeddings take more than
    ``most_bytes``, all are left in their files and read again whenever they are needed; what is
    learned is the same.

    Parameters
    ----------
    cohort
        Patients and their slides.
    bag_paths
        Where the bag of each slide lies, by slide id.
    most_bytes
        Memory for embeddings; half of what is free by default.

    Raises
    ------
    BagError
        If no slide has a bag, a bag is damaged, or two were made differently.
    """
    present = [s for p in cohort.patients for s in p.slide_ids if s in bag_paths]
    missing = tuple(s for p in cohort.patients for s in p.slide_ids if s not in bag_paths)
    if not present:
        raise BagError(
            cohort.path,
            actual=f"none of its {cohort.n_slides} slides has a bag (first: {missing[0]!r})",
            expected="a bag named after each slide",
            hint="Check --bags, and that slide ids equal file names without suffix.",
        )
    room = available_memory() // 2 if most_bytes is None else most_bytes
    features: dict[str, Features] = {}
    views: dict[str, Features] = {}
    files: dict[str, tuple[BagRef, ...]] = {}
    notes: list[SlideRecord] = []
    first: Fingerprint | None = None
    for patient in cohort.patients:
        bags = [read_slide_bag(s, bag_paths[s]) for s in patient.slide_ids if s in bag_paths]
        first = first or (bags[0].meta.fingerprint if bags else None)
        if first is not None:
            found = [(bag_paths[bag.meta.slide_id], bag.meta.fingerprint) for bag in bags]
            check_fingerprint(first, found, source=f"the bag of {present[0]!r}")
        files[patient.patient_id] = tuple(bag_paths[bag.meta.slide_id] for bag in bags)
        notes += [_note(patient, bag) for bag in bags]
        room -= sum(bag.features.nbytes + _views_of(bag).nbytes for bag in bags)
        if room >= 0:
            features[patient.patient_id] = _concatenate([bag.features for bag in bags])
            views[patient.patient_id] = _concatenate([_views_of(bag) for bag in bags])
        else:
            features.clear()
            views.clear()
    assert first is not None  # noqa: S101 - at least one bag was read above
    n_tiles = _count_tiles(files, notes)
    kept, kept_views = (
        (_in_memory(features, (first.dim,)), _in_memory(views, (first.n_views, first.dim)))
        if room >= 0
        else (
            OnDiskFeatures(files, n_tiles, dim=first.dim),
            OnDiskFeatures(files, n_tiles, dim=first.dim, n_views=first.n_views),
        )
    )
    return PatientBags(
        features=kept,
        fingerprint=first,
        slides=tuple(notes),
        missing_slides=missing,
        views=kept_views if first.n_views else {},
    )


def restrict(
    features: Mapping[str, Features], patient_ids: Sequence[str]
) -> Mapping[str, Features]:
    """Embeddings of these patients only, in this order."""
    if isinstance(features, FeatureMapping):
        return features.subset(patient_ids)
    return {patient_id: features[patient_id] for patient_id in patient_ids}


def content_keys(
    *, content_id: str, features_sha256: str, n_tiles: int
) -> tuple[tuple[str, str], ...]:
    """What two copies of a slide share: the content of its file, and its embeddings.

    Nothing is said of a content that is not known, nor of bags without tiles, which are all alike.
    """
    by_file = (("file", content_id),) if content_id else ()
    return (*by_file, ("tiles", features_sha256)) if n_tiles else by_file


def _views_of(bag: Bag) -> Features:
    """Shape (tiles, n_views, dim); 0 views where there are none."""
    n_tiles, dim = bag.features.shape
    return np.empty((n_tiles, 0, dim), np.float16) if bag.views is None else bag.views


def _concatenate(parts: Sequence[Features]) -> Features:
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float16)


def _in_memory(
    features: Mapping[str, Features], row_shape: tuple[int, ...]
) -> Mapping[str, Features]:
    empty = np.empty((0, *row_shape), np.float16)
    return {name: tiles if len(tiles) else empty for name, tiles in features.items()}


def _count_tiles(patient_ids: Iterable[str], notes: Sequence[SlideRecord]) -> dict[str, int]:
    counts = dict.fromkeys(patient_ids, 0)
    for note in notes:
        counts[note.patient_id] += note.n_tiles
    return counts


def _note(patient: Patient, bag: Bag) -> SlideRecord:
    return SlideRecord(
        slide_id=bag.meta.slide_id,
        patient_id=patient.patient_id,
        n_tiles=len(bag.features),
        content_id=bag.meta.slide_content_id,
        features_sha256=bag.features_sha256,
        views_sha256=bag.views_sha256,
        n_tried=bag.meta.n_tried,
        n_failed=bag.meta.n_failed,
        empty_reason=bag.meta.empty_reason,
        sources=bag.source or (),
    )
