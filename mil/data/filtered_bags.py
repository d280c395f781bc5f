"""Patients' bags seen through a tile filter, and never through one that saw who is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.errors import FilterError
from features.filters.classifier import ExampleSlide, TileFilter, check_compatible, load_filter_copy
from features.filters.training import refit_filter
from features.utils.text import percent
from mil.data.bags import FeatureMapping, Features, PatientBags, restrict
from mil.data.cohort import Cohort

__all__ = ["FilteredFeatures", "apply_tile_filter", "filter_notes"]

Seen = Mapping[str, frozenset[ExampleSlide]]
"""By patient id: slides of the filter's examples that are the patient's; others are absent."""

_MOST_NAMED = 5


class FilteredFeatures(FeatureMapping):
    """Embeddings by patient without the tiles that a filter drops.

    Parameters
    ----------
    features
        All embeddings by patient.
    tile_filter
        Drops tiles as they are read.
    seen
        Which of its examples are whose.
    """

    def __init__(
        self, features: Mapping[str, Features], tile_filter: TileFilter, *, seen: Seen
    ) -> None:
        self._features = features
        self._kept: dict[str, npt.NDArray[np.bool_]] = {}
        self.tile_filter: TileFilter = tile_filter
        self.seen = seen

    def __getitem__(self, patient_id: str) -> Features:
        tiles = self._features[patient_id]
        if patient_id not in self._kept:
            self._kept[patient_id] = ~self.tile_filter.predict_drop(tiles)
        kept = self._kept[patient_id]
        return tiles if kept.all() else tiles[kept]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    @cached_property
    def n_tiles(self) -> Mapping[str, int]:
        """Embeddings that are kept, by patient; all are read for it once."""
        return {patient_id: len(tiles) for patient_id, tiles in self.items()}

    @property
    def n_dropped(self) -> int:
        """Tiles that the filter drops, of all patients."""
        return sum(int((~self._kept[patient_id]).sum()) for patient_id in self.n_tiles)

    def subset(self, patient_ids: Sequence[str]) -> FilteredFeatures:
        """These patients only, in this order, through the same filter."""
        fewer = restrict(self._features, patient_ids)
        seen = {name: self.seen[name] for name in patient_ids if name in self.seen}
        return FilteredFeatures(fewer, self.tile_filter, seen=seen)

    def refit_without(self, patient_ids: Iterable[str]) -> FilteredFeatures:
        """The same patients, through a filter fitted without the examples of the ones named.

        Raises
        ------
        FilterError
            If too few examples are left to fit it again.
        """
        nothing: frozenset[ExampleSlide] = frozenset()
        known = set(self.tile_filter.examples.slides)
        without = known & nothing.union(*(self.seen.get(name, nothing) for name in patient_ids))
        if not without:
            return self
        refitted = refit_filter(self.tile_filter, without=frozenset(without))
        return FilteredFeatures(self._features, refitted, seen=self.seen)


def apply_tile_filter(
    bags: PatientBags, cohort: Cohort, *, bags_dir: Path, tile_filter: TileFilter | None
) -> PatientBags:
    """Bags of a cohort through a filter: the one given, or the one they were embedded with.

    A filter given here drops tiles as they are read, and is fitted again inside each fold without
    the patients that the fold judges. One that dropped tiles when they were embedded cannot be
    undone: it must not have seen any patient of the cohort.

    Parameters
    ----------
    bags
        Bags of the cohort.
    cohort
        Patients and their slides.
    bags_dir
        Folder of the bags, beside which the filter they were embedded with lies.
    tile_filter
        The filter given; None for none.

    Raises
    ------
    FilterError
        If the filter was fitted on other embeddings, the bags were embedded with another one, or
        that one saw patients of the cohort or is not to be found.
    """
    made_with = bags.fingerprint.filter_sha256
    if made_with:
        return replace(bags, tile_filter=_made_with(bags, cohort, bags_dir, tile_filter))
    if tile_filter is None:
        return bags
    if bags.views:
        raise FilterError(
            "the bags",
            actual="views of tiles in them, which a filter cannot drop as they are read",
            expected="bags without views",
            hint="Embed with both --views and --filter instead.",
        )
    check_compatible(tile_filter, bags.fingerprint, source="the bags")
    seen = _seen(tile_filter, cohort, bags)
    features = FilteredFeatures(bags.features, tile_filter, seen=seen)
    return replace(bags, features=features, tile_filter=tile_filter)


def filter_notes(bags: PatientBags) -> tuple[str, ...]:
    """What a reader must know of the filter that dropped tiles as they were read."""
    if not isinstance(bags.features, FilteredFeatures):
        return ()
    n_dropped, n_kept = bags.features.n_dropped, sum(bags.n_tiles.values())
    share = n_dropped / max(1, n_dropped + n_kept)
    of_all = f"{n_dropped:,} of {n_dropped + n_kept:,} ({percent(share, digits=1)})"
    notes = [f"tiles dropped by the filter: {of_all}"]
    if seen := bags.features.seen:
        notes.append(
            f"the filter learned from slides of {len(seen)} of these patients: it was fitted again "
            "without them in each fold that judged them"
        )
    return tuple(notes)


def _made_with(
    bags: PatientBags, cohort: Cohort, bags_dir: Path, given: TileFilter | None
) -> TileFilter:
    """The filter that the bags were embedded with, which saw none of these patients."""
    sha256 = bags.fingerprint.filter_sha256
    if given is not None and given.sha256 != sha256:
        raise FilterError(
            bags_dir,
            actual=f"bags embedded with filter {sha256[:12]}…",
            expected=f"bags embedded without one, or with the one given, {given.sha256[:12]}…",
            hint="Embed the slides without --filter to use another one here.",
        )
    tile_filter = given or load_filter_copy(bags_dir, sha256)
    if seen := _seen(tile_filter, cohort, bags):
        names = sorted({slide.slide_id for slides in seen.values() for slide in slides})
        raise FilterError(
            bags_dir,
            actual=f"bags embedded with a filter that learned from {len(names)} slides of "
            f"{len(seen)} patients of the cohort ({', '.join(names[:_MOST_NAMED])}"
            f"{' and more' if len(names) > _MOST_NAMED else ''})",
            expected="a filter that saw nobody who is judged",
            hint="Embed the slides without --filter and give it to 'mil train --filter', which "
            "fits it again in each fold, or fit one on slides of other patients.",
        )
    return tile_filter


def _seen(
    tile_filter: TileFilter, cohort: Cohort, bags: PatientBags
) -> dict[str, frozenset[ExampleSlide]]:
    """Examples of the filter by patient of the cohort, told by patient, slide or content."""
    contents: dict[str, set[str]] = {}
    for note in bags.slides:
        contents.setdefault(note.patient_id, set()).add(note.content_id)
    found = {
        patient.patient_id: tile_filter.examples.slides_of_patient(
            patient.patient_id,
            slide_ids=patient.slide_ids,
            content_ids=contents.get(patient.patient_id, set()),
        )
        for patient in cohort.patients
    }
    return {patient_id: slides for patient_id, slides in found.items() if slides}
