"""Bags by patient, read-only, with subsets that cannot reach other patients."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.bags.bag import (
    Bag,
    BagMeta,
    BagRef,
    Fingerprint,
    check_fingerprint,
    check_same_fingerprint,
    no_bag_error,
)
from features.bags.h5 import read_bag_info, read_slide_bag
from features.errors import BagError, TableError
from features.filters.classifier import TileFilter
from features.utils.hardware import available_memory
from features.utils.tables import read_table
from features.utils.text import normalize_name, pluralize
from mil.data.cohort import Cohort, Patient
from mil.data.copies import CopyIndex, SlideIdentity, without_copies
from mil.data.features import FeatureMapping, Features, OnDiskFeatures, subset_features
from mil.data.instance_labels import describe_unmatched
from mil.data.patient_groups import LinkedPairs

__all__ = [
    "PatientBags",
    "SlideRecord",
    "load_patient_bags",
    "read_embed_failures",
]


@dataclass(frozen=True, kw_only=True)
class SlideRecord(SlideIdentity):
    """A slide whose bag was read.

    ``views_sha256`` is the hash of its augmented views, empty without. Of ``n_tried`` tiles
    selected for embedding, ``n_failed`` could not be decoded; a bag without tiles has an
    ``empty_reason``. ``sources`` are the images of a series, in order; empty for slides. ``meta``
    is the metadata of its bag.
    """

    views_sha256: str = ""
    n_tried: int = 0
    n_failed: int = 0
    empty_reason: str = ""
    sources: tuple[str, ...] = ()
    meta: BagMeta | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientBags:
    """Bags by patient: the tiles of all of a patient's slides, in the order of the cohort table.

    A store holds only the patients that its user may see. Training gets a store made by
    :meth:`subset`, so that patients of a test fold cannot be reached from it.

    Attributes
    ----------
    features
        Embeddings, shape (tiles, dim), float16 or float32; may have 0 rows.
    fingerprint
        Encoder and settings of all bags.
    slides, missing_slides
        Slides of the bags, and slides of the cohort without a bag.
    tile_filter
        Filter that dropped tiles before embedding, or drops them when they are read.
    unlabelled
        Other patients, of which only the embeddings are used. Only :meth:`with_unlabelled` adds
        them, which leaves out copies of the cohort's patients.
    views
        Embeddings of augmented views, shape (tiles, n_views, dim); empty without.
    instance_labels
        Labels of images, shape (tiles,): 1, 0, or -1 if unknown; empty without.
    label_notes
        Notes on labels that are of no image of these bags.
    """

    features: Mapping[str, Features]
    fingerprint: Fingerprint
    slides: tuple[SlideRecord, ...]
    missing_slides: tuple[str, ...] = ()
    tile_filter: TileFilter | None = None
    unlabelled: PatientBags | None = None
    views: Mapping[str, Features] = field(default_factory=dict)
    instance_labels: Mapping[str, npt.NDArray[np.int8]] = field(default_factory=dict)
    label_notes: tuple[str, ...] = ()

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients in the store, in order."""
        return tuple(self.features)

    @property
    def n_tiles(self) -> Mapping[str, int]:
        """Number of embeddings by patient, the first axis of their shape."""
        if isinstance(self.features, FeatureMapping):
            return self.features.n_tiles
        return {name: len(tiles) for name, tiles in self.features.items()}

    @property
    def n_versions(self) -> int:
        """Versions of each tile: the plain one and its augmented views."""
        return 1 + self.fingerprint.n_views if self.views else 1

    def nonempty(self) -> tuple[str, ...]:
        """Return the patients with at least one tile."""
        return tuple(name for name, n_tiles in self.n_tiles.items() if n_tiles)

    def subset(self, patient_ids: Iterable[str]) -> PatientBags:
        """Return a store of these patients only, shape (tiles, dim) each, in this order."""
        selected = list(patient_ids)
        kept = set(selected)
        labels = self.instance_labels
        return PatientBags(
            features=subset_features(self.features, selected),
            fingerprint=self.fingerprint,
            slides=tuple(record for record in self.slides if record.patient_id in kept),
            tile_filter=self.tile_filter,
            unlabelled=self.unlabelled,
            views=subset_features(self.views, selected) if self.views else {},
            instance_labels={name: labels[name] for name in selected} if labels else {},
        )

    def refit_without(self, patient_ids: Iterable[str]) -> PatientBags:
        """Return the same patients, shape (tiles, dim) each, with a filter fitted without some.

        The filter is fitted without the patients named. The result is the store itself where no
        filter drops tiles when they are read, or the filter has no examples of these patients.
        """
        if not isinstance(self.features, FeatureMapping):
            return self
        features = self.features.refit_without(patient_ids)
        if features is self.features:
            return self
        return replace(self, features=features, tile_filter=features.tile_filter)

    def with_instance_labels(self, labels: Mapping[tuple[str, str], int]) -> PatientBags:
        """Return the store with labels of images, 0 or 1 by slide and source, as shape (tiles,).

        Raises
        ------
        BagError
            If none of them is of an image of a bag.
        """
        by_patient: dict[str, list[int]] = {name: [] for name in self.patient_ids}
        images: set[tuple[str, str]] = set()
        for record in self.slides:
            sources = record.sources or [""] * record.n_tiles
            keys = [(record.slide_id, normalize_name(source)) for source in sources]
            by_patient[record.patient_id] += [labels.get(key, -1) for key in keys]
            images.update(keys)
        if all(label < 0 for own in by_patient.values() for label in own):
            first = next(
                (f"{n.slide_id}, {n.sources[0]}" for n in self.slides if n.sources), "none"
            )
            raise BagError(
                "labels of images", actual=f"{len(labels):,}, and none is of an image of a bag",
                expected=f"slide and source as bags name them (first: {first})",
            )  # fmt: skip
        arrays = {name: np.array(own, np.int8) for name, own in by_patient.items()}
        notes = describe_unmatched(labels, images)
        return replace(self, instance_labels=arrays, label_notes=notes)

    def with_unlabelled(self, others: PatientBags) -> PatientBags:
        """Return the store with unlabelled patients, shape (tiles, dim) each; call before splits.

        Patients of this store are left out, see :meth:`find_duplicates`, so that no copy of a test
        patient is used in training.

        Raises
        ------
        BagError
            If their bags were made with another encoder or other settings.
        """
        named = [(record.slide_id, others.fingerprint) for record in others.slides[:1]]
        check_fingerprint(self.fingerprint, named, source="the labelled bags")
        known = self.find_duplicates(others)
        return replace(
            self, unlabelled=others.subset(n for n in others.nonempty() if n not in known)
        )

    def find_duplicates(self, others: PatientBags) -> dict[str, str]:
        """Return the patients of ``others`` that are patients of this store, mapped to their ids.

        They are matched by id, by the content of a slide's file, or by its tiles.
        """
        index = CopyIndex(self.slides)
        known = {name: name for name in others.patient_ids if name in self.features}
        for record in others.slides:
            for number in index.find(record.content_keys, record.tile_sketch)[:1]:
                known.setdefault(record.patient_id, self.slides[number].patient_id)
        return known

    def duplicate_slides(self) -> tuple[tuple[SlideRecord, SlideRecord], ...]:
        """Return pairs of slides of two patients that are copies of each other, whole or in part.

        They have the same file content or the same embeddings, or share tiles, see
        :mod:`mil.data.copies`.
        """
        pairs = CopyIndex(self.slides).pairs()
        found = ((self.slides[one], self.slides[other]) for one, other in pairs)
        return tuple((a, b) for a, b in found if a.patient_id != b.patient_id)

    def linked_patients(self) -> LinkedPairs:
        """Return pairs of patients that share a slide, see :meth:`duplicate_slides`."""
        return tuple((one.patient_id, other.patient_id) for one, other in self.duplicate_slides())

    def unsupervised_features(self) -> tuple[Mapping[str, Features], tuple[str, ...]]:
        """Return embeddings, shape (tiles, dim) each, and the patients to use without labels.

        These are the store's own patients, then the unlabelled ones, each with at least one tile.
        """
        if self.unlabelled is None:
            return self.features, self.nonempty()
        both: Mapping[str, Features] = ChainMap(self.features, self.unlabelled.features)  # type: ignore[arg-type] # only read
        return both, (*self.nonempty(), *self.unlabelled.nonempty())


def load_patient_bags(
    cohort: Cohort, bag_paths: Mapping[str, BagRef], *, most_bytes: int | None = None
) -> PatientBags:
    """Read the bags of a cohort, shape (tiles, dim) per patient; keep them in memory if they fit.

    Slides without a bag are listed, copies of a slide of the same patient are left out, and a
    patient without tiles stays in the store with none. If
    embeddings take more than ``most_bytes`` bytes, all are left in their files and read again at
    each access; results are the same.

    Parameters
    ----------
    cohort
        Patients and their slides.
    bag_paths
        Reference to the bag of each slide, by slide id.
    most_bytes
        Memory for embeddings; half of the available memory by default.

    Raises
    ------
    BagError
        If no slide has a bag, or none of a class, a bag is damaged, or two bags were made
        differently.
    """
    present = [s for p in cohort.patients for s in p.slide_ids if s in bag_paths]
    missing = tuple(s for p in cohort.patients for s in p.slide_ids if s not in bag_paths)
    if not present:
        raise no_bag_error(cohort.path, missing, bag_paths)
    _check_bags_by_class(cohort, bag_paths)
    room = available_memory() // 2 if most_bytes is None else most_bytes
    features: dict[str, Features] = {}
    views: dict[str, Features] = {}
    files: dict[str, tuple[BagRef, ...]] = {}
    n_tiles: dict[str, int] = {}
    records: list[SlideRecord] = []
    first: Fingerprint | None = None
    for patient in cohort.patients:
        own = {s: read_slide_bag(s, bag_paths[s]) for s in patient.slide_ids if s in bag_paths}
        bags = list(without_copies(own).values())
        first = first or (bags[0].meta.fingerprint if bags else None)
        refs = [bag_paths[bag.meta.slide_id] for bag in bags]
        if any(bag.meta.fingerprint != first for bag in bags):  # The first may be the odd one.
            made = [(bag_paths[s], read_bag_info(bag_paths[s]).meta.fingerprint) for s in present]
            check_same_fingerprint(made)
        files[patient.patient_id] = tuple(refs)
        n_tiles[patient.patient_id] = sum(len(bag.features) for bag in bags)
        records += [_record(patient, bag) for bag in bags]
        own_views = [bag.views for bag in bags if bag.views is not None]
        room -= sum(array.nbytes for array in (*(bag.features for bag in bags), *own_views))
        if room >= 0:
            features[patient.patient_id] = _concatenate([bag.features for bag in bags])
            views[patient.patient_id] = _concatenate(own_views)
        else:
            features.clear()
            views.clear()
    assert first is not None  # noqa: S101 - at least one bag was read above
    kept: Mapping[str, Features]
    kept_views: Mapping[str, Features]
    if room >= 0:
        kept = _with_row_shape(features, (first.dim,))
        kept_views = _with_row_shape(views, (first.n_views, first.dim))
    else:
        kept = OnDiskFeatures(files, n_tiles, dim=first.dim)
        kept_views = OnDiskFeatures(files, n_tiles, dim=first.dim, n_views=first.n_views)
    return PatientBags(
        features=kept,
        fingerprint=first,
        slides=tuple(records),
        missing_slides=missing,
        views=kept_views if first.n_views else {},
    )


def _check_bags_by_class(cohort: Cohort, bag_paths: Mapping[str, BagRef]) -> None:
    """Raise BagError for a class of which no slide has a bag, by failure or under its name."""
    unused = bag_paths.keys() - {s for p in cohort.patients for s in p.slide_ids}
    for name in cohort.classes:
        slides = [s for p in cohort.patients if p.label == name for s in p.slide_ids]
        if not any(slide_id in bag_paths for slide_id in slides):
            if unused:
                raise no_bag_error(cohort.path, slides, unused, of=f"of class {name!r}")
            raise BagError(
                cohort.path,
                actual=f"no bag of class {name!r}, which has {pluralize(len(slides), 'slides')} "
                f"(first: {slides[0]!r})",
                expected="a bag of one at least",
                hint="Embed them, or leave the class out of the table; of slides that failed, "
                "embed.csv in the folder of the bags says why.",
            )


def read_embed_failures(bags_dir: Path) -> dict[str, str]:
    """Return the errors of failed slides in ``embed.csv`` by slide id; empty without the table."""
    with suppress(TableError):
        rows = read_table(bags_dir / "embed.csv").to_dict("records")
        return {
            normalize_name(str(row.get("slide_id"))): str(row.get("message"))
            for row in rows
            if row.get("status") == "failed"
        }
    return {}


def _concatenate(parts: list[Features]) -> Features:
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float16)


def _with_row_shape(
    features: Mapping[str, Features], row_shape: tuple[int, ...]
) -> Mapping[str, Features]:
    """Give arrays without rows the shape (0, *row_shape)."""
    empty = np.empty((0, *row_shape), np.float16)
    return {name: tiles if len(tiles) else empty for name, tiles in features.items()}


def _record(patient: Patient, bag: Bag) -> SlideRecord:
    return SlideRecord(
        slide_id=bag.meta.slide_id,
        patient_id=patient.patient_id,
        n_tiles=len(bag.features),
        content_id=bag.meta.slide_content_id,
        features_sha256=bag.features_sha256,
        views_sha256=bag.views_sha256,
        tiles_sha256=bag.tiles_sha256,
        tile_sketch=bag.tile_sketch,
        n_tried=bag.meta.n_tried,
        n_failed=bag.meta.n_failed,
        empty_reason=bag.meta.empty_reason,
        sources=bag.source or (),
        meta=bag.meta,
    )
