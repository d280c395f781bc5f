"""Slides that share tiles: copies, whole or in part, whatever the order of their tiles.

A copy that was cut short, or has tiles of its own, differs from its original as a whole, but not in
the tiles that both have. Embeddings of one tile are equal to the last bit only where it was copied:
eight that two slides have in common are no chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol

import numpy as np

from features.bags.bag import Bag
from features.bags.tile_keys import N_SKETCHED, TileKeys, no_sketch

__all__ = [
    "MIN_SHARED_TILES",
    "ContentKeys",
    "CopyIndex",
    "KnownSlide",
    "SlideIdentity",
    "content_keys",
    "without_copies",
]

MIN_SHARED_TILES = 8
"""Fewest sketched tiles that copies share, as in :mod:`mil.audit.duplicates`."""

_MOST_SLIDES = 16
"""Slides that a tile may be on; one on more, such as blank glass, does not tell copies."""

ContentKeys = tuple[tuple[str, str], ...]


class KnownSlide(Protocol):
    """What copies of a slide are recognised by."""

    @property
    def content_keys(self) -> ContentKeys:
        """Keys that copies share, see :func:`content_keys`."""

    @property
    def tile_sketch(self) -> TileKeys:
        """Keys of some of its tiles, shape (n_keys,), empty if unknown."""


def content_keys(
    *, content_id: str, features_sha256: str, n_tiles: int, tiles_sha256: str = ""
) -> ContentKeys:
    """Return the keys that copies of a slide have in common: hashes of file and embeddings.

    The embeddings, shape (``n_tiles``, dim), have one hash in their order and one in any order,
    which runs trained earlier lack. What is unknown has no key, nor have bags without tiles, which
    are all equal.
    """
    of_tiles = {"tiles": features_sha256, "tiles in any order": tiles_sha256} if n_tiles else {}
    keys = {"file": content_id, **of_tiles}
    return tuple((kind, value) for kind, value in keys.items() if value)


@dataclass(frozen=True, kw_only=True)
class SlideIdentity:
    """A slide of a patient, identified by id and by content.

    ``features_sha256`` is the hash of its embeddings, shape (``n_tiles``, dim), ``tiles_sha256``
    that of the embeddings in any order, and ``content_id`` that of the slide file, see
    :func:`features.slides.file_info.content_hash`. ``tile_sketch`` holds keys of some of its tiles,
    see :func:`features.bags.tile_keys.sketch_tiles`. Runs trained earlier lack the hash of tiles in
    any order, or the sketch.
    """

    slide_id: str
    patient_id: str
    n_tiles: int
    content_id: str
    features_sha256: str
    tiles_sha256: str = ""
    tile_sketch: TileKeys = field(default_factory=no_sketch, compare=False, repr=False)

    @property
    def content_keys(self) -> ContentKeys:
        """Keys that copies share, see :func:`content_keys`."""
        return content_keys(
            content_id=self.content_id, features_sha256=self.features_sha256,
            tiles_sha256=self.tiles_sha256, n_tiles=self.n_tiles,
        )  # fmt: skip


def without_copies(bags: Mapping[str, Bag]) -> dict[str, Bag]:
    """Return the bags of one patient by slide, without copies of another: its tiles count once.

    A copy has most of its tiles, embeddings of shape (tiles, dim), in common with a bag of as many
    tiles or more, in any order; the larger one stays. Bags without tiles stay.
    """
    by_size = sorted(bags, key=lambda slide_id: -len(bags[slide_id].features))
    kept: set[str] = set()
    for slide_id in by_size:
        others = (bags[other] for other in kept)
        if len(bags) == 1 or not any(_is_mostly_in(bags[slide_id], other) for other in others):
            kept.add(slide_id)
    return {slide_id: bag for slide_id, bag in bags.items() if slide_id in kept}


def _is_mostly_in(bag: Bag, other: Bag) -> bool:
    """Return whether more than half of a bag's different tiles, or all, are those of a larger one.

    Sketches hold the smallest keys, so only keys below the other's largest can be in both.
    """
    own, known = bag.tile_sketch, other.tile_sketch
    if len(known) == N_SKETCHED:
        own = own[own <= known[-1]]
    n_shared = len(np.intersect1d(own, known, assume_unique=True))
    return n_shared > len(own) / 2 and (n_shared >= MIN_SHARED_TILES or n_shared == len(own))


class CopyIndex:
    """Index of slides by the content of their file and by their tiles, numbered in their order."""

    def __init__(self, slides: Sequence[KnownSlide]) -> None:
        self._first: dict[tuple[str, str], int] = {}
        self._pairs: set[tuple[int, int]] = set()
        for index, slide in enumerate(slides):
            for key in slide.content_keys:
                first = self._first.setdefault(key, index)
                if first != index:
                    self._pairs.add((first, index))
        sketches = [slide.tile_sketch for slide in slides]
        keys = np.concatenate([np.empty(0, np.uint64), *sketches])
        owners = np.repeat(np.arange(len(slides)), [len(sketch) for sketch in sketches])
        order = np.argsort(keys, kind="stable")
        _, run, length = np.unique(keys[order], return_inverse=True, return_counts=True)
        telling = length[run] <= _MOST_SLIDES
        self._keys, self._owners = keys[order][telling], owners[order][telling]
        self._n_slides = len(slides)

    def pairs(self) -> list[tuple[int, int]]:
        """Return the pairs of indices of slides that are copies of each other, sorted."""
        return sorted(self._pairs.union(self._pairs_by_tiles()))

    def find(self, keys: ContentKeys, sketch: TileKeys) -> list[int]:
        """Return the sorted indices of the slides that another one is a copy of.

        ``keys`` are its content keys, ``sketch`` the keys of its tiles, shape (n_keys,).
        """
        found = {self._first[key] for key in keys if key in self._first}
        left, right = (np.searchsorted(self._keys, sketch, side) for side in ("left", "right"))
        rows = [np.arange(a, b) for a, b in zip(left, right, strict=True) if b > a]
        if len(rows) >= MIN_SHARED_TILES:
            n_shared = np.bincount(self._owners[np.concatenate(rows)], minlength=self._n_slides)
            found.update(np.flatnonzero(n_shared >= MIN_SHARED_TILES).tolist())
        return sorted(found)

    def _pairs_by_tiles(self) -> Iterator[tuple[int, int]]:
        _, starts, lengths = np.unique(self._keys, return_index=True, return_counts=True)
        several = lengths > 1
        runs = zip(starts[several].tolist(), lengths[several].tolist(), strict=True)
        # Owners of one key are sorted, as slides are indexed in order and the sort is stable.
        owners = self._owners.tolist()
        shared = (combinations(owners[start : start + n], 2) for start, n in runs)
        coded = [one * self._n_slides + other for of_key in shared for one, other in of_key]
        codes, n_shared = np.unique(np.array(coded, np.int64), return_counts=True)
        for code in codes[n_shared >= MIN_SHARED_TILES].tolist():
            yield divmod(code, self._n_slides)
