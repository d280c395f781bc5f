"""Patients' bags in memory: ragged, read-only, and only of the patients one may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from features.bags import Bag, Fingerprint, read_bag, require_same_fingerprint
from features.errors import BagError
from mil.cohort import Cohort, Patient

__all__ = ["Batch", "Features", "PatientBags", "SlideNote", "load_patient_bags", "pad"]

Features = npt.NDArray[np.floating[Any]]
"""Embeddings, shape (tiles, dim), float16 or float32."""


class Batch(NamedTuple):
    """Patients side by side, padded to the longest bag."""

    features: Tensor
    """Shape (batch, tiles, dim), float32; zeros on padding."""
    mask: Tensor
    """Shape (batch, tiles), bool; True on real tiles."""


@dataclass(frozen=True, kw_only=True)
class SlideNote:
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


@dataclass(frozen=True, kw_only=True, eq=False)
class PatientBags:
    """Bags by patient: all tiles of all its slides, in the order of the cohort table.

    A store holds what may be seen and nothing else. Training gets a store made by
    :meth:`restricted_to`, so patients kept for judging cannot be reached from it.
    """

    features: Mapping[str, Features]
    """By patient id: shape (tiles, dim), float16 or float32; may have 0 rows."""
    fingerprint: Fingerprint
    """How all of them were made."""
    slides: tuple[SlideNote, ...]
    """Slides they were read from."""
    missing_slides: tuple[str, ...] = ()
    """Slides of the cohort without a bag."""

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients in the store, in order."""
        return tuple(self.features)

    def restricted_to(self, patient_ids: Iterable[str]) -> PatientBags:
        """A store of these patients only, in this order; the others are not in it at all."""
        wanted = list(patient_ids)
        return PatientBags(
            features={patient_id: self.features[patient_id] for patient_id in wanted},
            fingerprint=self.fingerprint,
            slides=tuple(note for note in self.slides if note.patient_id in set(wanted)),
        )

    def filled(self) -> tuple[str, ...]:
        """Patients that have at least one tile."""
        return tuple(name for name, tiles in self.features.items() if len(tiles))


def load_patient_bags(cohort: Cohort, bag_paths: Mapping[str, Path]) -> PatientBags:
    """Read the bags of a cohort.

    A slide without a bag is listed, not an error: its patient is judged on the others, and a
    patient without any tile stays in the store with none.

    Parameters
    ----------
    cohort
        Patients and their slides.
    bag_paths
        Where the bag of each slide lies, by slide id.

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
            found=f"none of its {cohort.n_slides} slides has a bag (first: {missing[0]!r})",
            expected="a bag named after each slide",
            advice="Check --bags, and that slide ids equal file names without suffix.",
        )
    features: dict[str, Features] = {}
    notes: list[SlideNote] = []
    first: Fingerprint | None = None
    for patient in cohort.patients:
        bags = [_read(s, bag_paths[s]) for s in patient.slide_ids if s in bag_paths]
        first = first or (bags[0].meta.fingerprint if bags else None)
        if first is not None:
            found = [(bag_paths[bag.meta.slide_id], bag.meta.fingerprint) for bag in bags]
            require_same_fingerprint(first, found, source=f"the bag of {present[0]!r}")
        features[patient.patient_id] = _concatenate(bags)
        notes += [_note(patient, bag) for bag in bags]
    assert first is not None  # noqa: S101 - at least one bag was read above
    empty = np.empty((0, first.dim), np.float16)
    return PatientBags(
        features={name: tiles if tiles.size else empty for name, tiles in features.items()},
        fingerprint=first,
        slides=tuple(notes),
        missing_slides=missing,
    )


def pad(bags: Sequence[Tensor]) -> Batch:
    """Bags side by side.

    Parameters
    ----------
    bags
        Each of shape (tiles, dim), float32, with the same dim.
    """
    features = torch.nn.utils.rnn.pad_sequence(list(bags), batch_first=True)
    lengths = torch.tensor([len(bag) for bag in bags], device=features.device)
    places = torch.arange(features.shape[1], device=features.device)
    return Batch(features, places[None] < lengths[:, None])


def _read(slide_id: str, path: Path) -> Bag:
    bag = read_bag(path)
    if bag.meta.slide_id != slide_id:
        raise BagError(
            path,
            found=f"the bag of slide {bag.meta.slide_id!r}",
            expected=f"that of {slide_id!r}",
            advice="Name the file after its slide, or embed the slide again.",
        )
    return bag


def _concatenate(bags: Sequence[Bag]) -> Features:
    if not bags:
        return np.empty((0, 0), np.float16)
    return np.concatenate([bag.features for bag in bags])


def _note(patient: Patient, bag: Bag) -> SlideNote:
    return SlideNote(
        slide_id=bag.meta.slide_id,
        patient_id=patient.patient_id,
        n_tiles=len(bag.features),
        content_id=bag.meta.slide_content_id,
        features_sha256=bag.features_sha256,
    )
