"""Bags behind a tile filter that is fitted again without the test patients of each fold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from features.errors import FilterError
from features.filters.classifier import ExampleSlide, TileFilter, check_compatible, load_filter_copy
from features.filters.training import refit_filter
from features.utils.text import list_names, percent
from mil.arrays import Bools
from mil.data.bags import PatientBags
from mil.data.cohort import Cohort
from mil.data.features import FeatureMapping, Features, subset_features

__all__ = ["FilteredFeatures", "apply_tile_filter", "filter_notes"]

FilterExamples = Mapping[str, frozenset[ExampleSlide]]
"""The filter's training slides by patient id; patients without any are absent."""


class FilteredFeatures(FeatureMapping):
    """Embeddings by patient id, shape (tiles, dim), without the tiles that a filter drops.

    The filter is applied when tiles are read; ``trained_on`` are its training slides by patient.
    """

    def __init__(
        self,
        features: Mapping[str, Features],
        tile_filter: TileFilter,
        *,
        trained_on: FilterExamples,
    ) -> None:
        self._features = features
        self._kept: dict[str, Bools] = {}
        self.tile_filter: TileFilter = tile_filter
        self.trained_on = trained_on

    def __getitem__(self, patient_id: str) -> Features:
        """Read a patient's remaining embeddings, shape (tiles, dim)."""
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
        """Number of remaining embeddings by patient; all are read once to count them."""
        return {patient_id: len(tiles) for patient_id, tiles in self.items()}

    @property
    def n_dropped(self) -> int:
        """Number of tiles that the filter drops, over all patients."""
        return sum(int((~self._kept[patient_id]).sum()) for patient_id in self.n_tiles)

    def subset(self, patient_ids: Sequence[str]) -> FilteredFeatures:
        """Return a mapping of these patients, shape (tiles, dim) each, with the same filter."""
        trained_on = {n: self.trained_on[n] for n in patient_ids if n in self.trained_on}
        features = subset_features(self._features, patient_ids)
        return FilteredFeatures(features, self.tile_filter, trained_on=trained_on)

    def refit_without(self, patient_ids: Iterable[str]) -> FilteredFeatures:
        """Return the same patients, shape (tiles, dim) each, with a filter fitted without some.

        The examples of the patients named are left out of the fit.

        Raises
        ------
        FilterError
            If too few examples are left to fit it.
        """
        none: frozenset[ExampleSlide] = frozenset()
        slides = set(self.tile_filter.examples.slides)
        without = slides & none.union(*(self.trained_on.get(name, none) for name in patient_ids))
        if not without:
            return self
        refitted = refit_filter(self.tile_filter, without=frozenset(without))
        return FilteredFeatures(self._features, refitted, trained_on=self.trained_on)


def apply_tile_filter(
    bags: PatientBags, cohort: Cohort, *, bags_dir: Path, tile_filter: TileFilter | None
) -> PatientBags:
    """Return bags, shape (tiles, dim) each, behind the filter given or that of the embedding.

    A filter given here drops tiles when they are read, and each fold fits it again without its test
    patients. The effect of a filter at embedding cannot be undone: that filter must not have been
    trained on any patient of the cohort; ``bags_dir`` holds a copy of it.

    Raises
    ------
    FilterError
        If the filter was fitted on other embeddings, the bags were embedded with another one, or
        the copy of that one is missing or was trained on patients of the cohort.
    """
    made_with = bags.fingerprint.filter_sha256
    if made_with:
        return replace(bags, tile_filter=_embedding_filter(bags, cohort, bags_dir, tile_filter))
    if tile_filter is None:
        return bags
    if bags.views:
        raise FilterError(
            "the bags",
            actual="augmented views of tiles, which a filter cannot drop when they are read",
            expected="bags without views",
            hint="Embed with both: 'mil embed --views N --filter FILE'.",
        )
    check_compatible(tile_filter, bags.fingerprint, source="the bags")
    trained_on = _match_examples(tile_filter, cohort, bags)
    features = FilteredFeatures(bags.features, tile_filter, trained_on=trained_on)
    return replace(bags, features=features, tile_filter=tile_filter)


def filter_notes(bags: PatientBags) -> tuple[str, ...]:
    """Return notes on a filter that drops tiles when they are read, as sentences."""
    if not isinstance(bags.features, FilteredFeatures):
        return ()
    n_dropped, n_kept = bags.features.n_dropped, sum(bags.n_tiles.values())
    share = n_dropped / max(1, n_dropped + n_kept)
    dropped = f"{n_dropped:,} of {n_dropped + n_kept:,} ({percent(share, digits=1)})"
    notes = [f"tiles dropped by the filter: {dropped}"]
    if trained_on := bags.features.trained_on:
        notes.append(
            f"the filter was trained on slides of {len(trained_on)} of these patients: it was "
            "fitted again without them in each fold that tested them"
        )
    return tuple(notes)


def _embedding_filter(
    bags: PatientBags, cohort: Cohort, bags_dir: Path, given: TileFilter | None
) -> TileFilter:
    """Return the filter of the embedding after checking that no patient here trained it."""
    sha256 = bags.fingerprint.filter_sha256
    if given is not None and given.sha256 != sha256:
        raise FilterError(
            bags_dir,
            actual=f"bags embedded with filter {sha256[:12]}…",
            expected=f"bags embedded without one, or with the one given, {given.sha256[:12]}…",
            hint="Embed the slides without --filter to use another one here.",
        )
    tile_filter = given or load_filter_copy(bags_dir, sha256)
    if trained_on := _match_examples(tile_filter, cohort, bags):
        names = sorted({slide.slide_id for slides in trained_on.values() for slide in slides})
        raise FilterError(
            bags_dir,
            actual=f"bags embedded with a filter that was trained on {len(names)} slides of "
            f"{len(trained_on)} patients of the cohort ({list_names(names)})",
            expected="a filter that was not trained on test patients",
            hint="Embed the slides without --filter and give it to 'mil train --filter', which "
            "fits it again in each fold, or fit one on slides of other patients.",
        )
    return tile_filter


def _match_examples(
    tile_filter: TileFilter, cohort: Cohort, bags: PatientBags
) -> dict[str, frozenset[ExampleSlide]]:
    """Return the filter's examples by patient, matched by patient id, slide id or content."""
    contents: dict[str, set[str]] = {}
    for record in bags.slides:
        contents.setdefault(record.patient_id, set()).add(record.content_id)
    matched = {
        patient.patient_id: tile_filter.examples.slides_of_patient(
            patient.patient_id,
            slide_ids=patient.slide_ids,
            content_ids=contents.get(patient.patient_id, set()),
        )
        for patient in cohort.patients
    }
    return {patient_id: slides for patient_id, slides in matched.items() if slides}
