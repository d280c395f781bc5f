"""Duplicate slides: the same file, the same embeddings, or the same tissue embedded twice.

Near-duplicates are recognised by geometry. Each tile of one slide is matched with the most similar
tile of the other (cosine of embeddings, centred on the cohort's mean). If both slides show the same
tissue, all matches have the same displacement to within half a tile; between different slides,
displacements scatter. The score is the share of tiles that agree on a displacement, under the best
rotation by 0, 90, 180 or 270 degrees, mirrored or not. It needs no absolute threshold of similarity
and therefore tolerates a different grid, compression, tone, rotation and mirroring. It is the
geometric verification of copy detection (Douze et al., 2009), on tiles instead of key points.

Series of images are compared by file and by embeddings only: slices of different people match by
their level in the body, so that displacements agree although nothing was copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.bags.bag import Bag
from features.bags.digest import BagDigest
from features.bags.h5 import read_bag
from features.bags.tile_keys import TileKeys
from features.utils.text import list_names, percent
from mil.arrays import Float32s, Floats
from mil.audit.findings import Finding, Severity
from mil.audit.tables import TableEntry
from mil.data.copies import ContentKeys, CopyIndex

__all__ = [
    "MIN_AGREEING_TILES",
    "MIN_AGREEMENT",
    "TileAgreement",
    "find_identical",
    "find_near_duplicates",
    "find_shared_tiles",
    "match_tiles",
]


MIN_AGREEMENT = 0.4
"""Minimum share of tiles that agree on a displacement in near-duplicates."""

MIN_AGREEING_TILES = 8
"""Minimum number of such tiles; smaller slides are not compared, as few tiles agree by chance."""

_N_CANDIDATES = 3
_N_CACHED_BAGS = 16
_MAX_TILES = 128
_TOLERANCE_TILES = 0.75
_ROTATIONS = tuple(np.array(rotation) for rotation in (
    ((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0)),
    ((-1, 0), (0, 1)), ((1, 0), (0, -1)), ((0, 1), (1, 0)), ((0, -1), (-1, 0)),
))  # fmt: skip
"""Rotations by multiples of 90 degrees, then the same mirrored."""


@dataclass(frozen=True, kw_only=True)
class TileAgreement:
    """Number of tiles of the smaller slide, and of those whose matches moved by equal px."""

    n_agreeing: int
    n_tiles: int

    @property
    def share(self) -> float:
        """Share of the tiles that agree, 0 to 1."""
        return self.n_agreeing / self.n_tiles

    @property
    def is_copy(self) -> bool:
        """Whether both slides count as near-duplicates.

        On synthetic slides of 7 to 25 tiles, where chance agreement is greatest, none of 4,311
        pairs of different slides did; of 64 altered copies 48 did (counted without mirroring).
        """
        return self.n_agreeing >= MIN_AGREEING_TILES and self.share >= MIN_AGREEMENT


@dataclass(frozen=True)
class _DuplicateFinding:
    """Table entries of slides that are copies of each other."""

    entries: tuple[TableEntry, ...]
    detail: str = ""

    @property
    def severity(self) -> Severity:
        splits = frozenset().union(*(entry.splits for entry in self.entries))
        patients = frozenset().union(*(entry.patient_ids for entry in self.entries))
        if len(splits) > 1:
            return Severity.error
        if len(patients) == 1:
            return Severity.note
        return Severity.error if "train" in splits else Severity.warning

    def __str__(self) -> str:
        return " = ".join(map(str, self.entries)) + self.detail


_ADVICE = {
    Severity.error: (
        "Keep one of each, or give copies the same patient id in the same table; if labels differ, "
        "find out which one is right."
    ),
    Severity.warning: "They are scored as two patients; give them one patient id.",
    Severity.note: "Keep one of each; copies of the whole count once, of a part twice.",
}


def find_identical(
    digests: Mapping[str, BagDigest], entries: Mapping[str, TableEntry]
) -> list[Finding]:
    """Return findings on slides with the same file content or the same embeddings."""
    by_content = _groups(digests, lambda digest: digest.meta.slide_content_id)
    by_embedding = [
        group
        for group in _groups(digests, lambda d: d.tiles_sha256 if d.n_tiles else "")
        if not any(set(group) <= set(other) for other in by_content)
    ]
    findings: list[Finding] = []
    for kind, verb, groups in (
        ("identical_file", "are the same file", by_content),
        ("identical_embeddings", "have the same embeddings", by_embedding),
    ):
        copies = [_DuplicateFinding(tuple(entries[name] for name in group)) for group in groups]
        findings += _by_severity(kind, verb, copies)
    return findings


def find_shared_tiles(
    digests: Mapping[str, BagDigest], entries: Mapping[str, TableEntry]
) -> list[Finding]:
    """Return findings on slides that share tiles: copies that were cut short or have others too.

    Copies of the whole are left to :func:`find_identical`.
    """
    names = list(digests)
    index = CopyIndex([_Sketch(digests[name].tile_sketch) for name in names])
    copies = [
        _DuplicateFinding((entries[names[one]], entries[names[other]]))
        for one, other in index.pairs()
        if not _are_identical(digests[names[one]], digests[names[other]])
    ]
    return list(_by_severity("shared_tiles", "share tiles", copies))


@dataclass(frozen=True)
class _Sketch:
    """Tiles of a slide, whose whole is compared elsewhere."""

    tile_sketch: TileKeys
    content_keys: ContentKeys = ()


def find_near_duplicates(
    digests: Mapping[str, BagDigest],
    entries: Mapping[str, TableEntry],
    *,
    on_pair: Callable[[int, int], None],
) -> list[Finding]:
    """Return findings on slides of different patients that show the same tissue.

    These are rescans, re-encoded copies and crops. Each slide is compared tile by tile, see
    :func:`match_tiles`, with the three slides of other patients whose mean embeddings are most
    similar by cosine, shape (dim,). Slides without tile coordinates are left out.

    ``on_pair`` is called with the number of pairs compared and the number of pairs in all.

    Raises
    ------
    BagError
        If a bag cannot be read any more.
    """
    usable = [
        digest
        for digest in digests.values()
        if digest.has_coords and digest.n_tiles >= MIN_AGREEING_TILES
    ]
    if len(usable) < 2:
        return []
    centre = np.stack([digest.mean for digest in usable]).mean(axis=0, dtype=np.float64)
    pairs = _candidates(usable, entries, centre)
    read = lru_cache(maxsize=_N_CACHED_BAGS)(read_bag)
    copies = []
    for done, (first, second, cosine) in enumerate(pairs, start=1):
        fit = match_tiles(read(first.bag_ref), read(second.bag_ref), centre=centre)
        if fit.is_copy:
            detail = f": {percent(fit.share)} of tiles agree, cosine of means {cosine:.2f}"
            copies.append(
                _DuplicateFinding((entries[first.slide_id], entries[second.slide_id]), detail)
            )
        on_pair(done, len(pairs))
    return list(_by_severity("near_duplicate", "show the same tissue", copies))


def match_tiles(first: Bag, second: Bag, *, centre: Floats) -> TileAgreement:
    """Count tiles of the smaller bag whose best matches in the other have the same displacement.

    Both bags have tiles, with coordinates of shape (tiles, 2) in level-0 px. ``centre``, shape
    (dim,), is the mean embedding of the cohort, subtracted before cosines are computed.
    """
    small, large = sorted((first, second), key=lambda bag: len(bag.features))
    n_tiles = min(len(small.features), _MAX_TILES)
    rows = np.linspace(0, len(small.features) - 1, n_tiles).round().astype(np.int64)
    cosines = _unit_rows(small.features[rows], centre) @ _unit_rows(large.features, centre).T
    positions = _grid_positions(small)[rows]
    matched = _grid_positions(large)[cosines.argmax(axis=1)]
    shifts = (matched @ rotation.T - positions for rotation in _ROTATIONS)
    return TileAgreement(n_agreeing=max(map(_largest_cluster, shifts)), n_tiles=n_tiles)


def _largest_cluster(shifts: Floats) -> int:
    """Return the size of the largest cluster of shifts, shape (tiles, 2), around one of them."""
    gaps = np.abs(shifts[:, None] - shifts[None]).max(axis=2)
    return int((gaps <= _TOLERANCE_TILES).sum(axis=1).max())


def _unit_rows(features: npt.NDArray[np.floating], centre: Floats) -> Float32s:
    """Return centred rows scaled to length 1 (0 for a row that equals the centre)."""
    centred = features.astype(np.float32) - centre.astype(np.float32)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _grid_positions(bag: Bag) -> Floats:
    """Return tile coordinates in units of the tile's side, shape (tiles, 2), at any resolution."""
    return np.asarray(bag.coords_px0 / np.array([bag.meta.span_x_px0, bag.meta.span_y_px0]))


def _candidates(
    usable: Sequence[BagDigest], entries: Mapping[str, TableEntry], centre: Floats
) -> list[tuple[BagDigest, BagDigest, float]]:
    """Return each slide with its nearest slides of other patients, without repeats and copies."""
    means = _unit_rows(np.stack([digest.mean for digest in usable]), centre)
    patients = [entries[digest.slide_id].patient_ids for digest in usable]
    pairs: dict[tuple[int, int], float] = {}
    for index, digest in enumerate(usable):
        cosines = means @ means[index]
        n_pairs = 0
        for other in np.argsort(-cosines, kind="stable").tolist():
            if n_pairs == _N_CANDIDATES:
                break
            second = usable[other]
            if not _are_identical(digest, second) and not patients[index] & patients[other]:
                pairs[min(index, other), max(index, other)] = float(cosines[other])
                n_pairs += 1
    return [(usable[a], usable[b], cosine) for (a, b), cosine in sorted(pairs.items())]


def _are_identical(one: BagDigest, other: BagDigest) -> bool:
    return one.tiles_sha256 == other.tiles_sha256 or (
        one.meta.slide_content_id == other.meta.slide_content_id != ""
    )


def _groups(
    digests: Mapping[str, BagDigest], key: Callable[[BagDigest], str]
) -> list[tuple[str, ...]]:
    """Return groups of two or more slides with the same key; an empty key matches nothing."""
    members: dict[str, list[str]] = {}
    for digest in digests.values():
        members.setdefault(key(digest), []).append(digest.slide_id)
    return [tuple(names) for value, names in members.items() if value and len(names) > 1]


def _by_severity(kind: str, verb: str, copies: Sequence[_DuplicateFinding]) -> Iterator[Finding]:
    """Yield one finding per severity."""
    for severity in Severity:
        subjects = tuple(str(copy) for copy in copies if copy.severity is severity)
        if subjects:
            owner = "of one patient " if severity is Severity.note else ""
            message = f"slides {owner}{verb}: {list_names(subjects)}"
            yield Finding(severity, kind, message, _ADVICE[severity], subjects)
