"""Slides that are copies of each other: the same file, or the same tissue embedded twice.

A copy is told by geometry. Each tile of one slide is paired with the most similar tile of the
other (cosine of embeddings, from which the cohort's mean was taken). If both show the same tissue,
paired tiles lie at one and the same displacement, give or take half a tile; in different slides
displacements scatter. What is counted is the share of tiles that agree on a displacement, under
the turn by 0, 90, 180 or 270 degrees that suits best. It needs no absolute threshold of similarity
and therefore survives another grid, compression, tone and turn. It is the geometric check of
copy detection (Douze et al., 2009) on tiles instead of key points.

Series of images are compared by file and by embeddings only: slices of different people match by
their level in the body, so that displacements agree where nothing was copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from features.bags.bag import Bag
from features.bags.h5 import read_bag
from features.utils.text import percent
from mil.audit.digests import SlideDigest, TableEntry
from mil.audit.findings import Finding, Severity, abbreviate

__all__ = [
    "LEAST_AGREEING_TILES",
    "LEAST_AGREEMENT",
    "Agreement",
    "find_identical",
    "find_near_duplicates",
    "match_tiles",
]

Floats = npt.NDArray[np.float64]

LEAST_AGREEMENT = 0.4
"""Share of tiles that must agree on a displacement for two slides to count as near-duplicates."""

LEAST_AGREEING_TILES = 8
"""And so many of them: a few tiles agree by chance, so slides with fewer are not compared."""

_N_CANDIDATES = 3
_N_KEPT = 16
_MOST_TILES = 128
_TOLERANCE_TILES = 0.75
_TURNS = tuple(np.array(turn) for turn in (
    ((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0)),
))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well the tiles of two slides lie upon each other."""

    n_agreeing: int
    """Tiles whose best matches lie at one displacement."""
    n_tiles: int
    """Tiles looked at, of the slide that has fewer."""

    @property
    def share(self) -> float:
        """Share of the tiles that agree, 0 to 1."""
        return self.n_agreeing / self.n_tiles

    @property
    def is_copy(self) -> bool:
        """Whether both slides count as near-duplicates.

        On painted slides of 7 to 25 tiles, where chance is greatest, none of 4,311 pairs of
        different slides did; of 64 altered copies 48 did.
        """
        return self.n_agreeing >= LEAST_AGREEING_TILES and self.share >= LEAST_AGREEMENT


@dataclass(frozen=True)
class _DuplicateFinding:
    """Slides that are one, in words."""

    owners: tuple[TableEntry, ...]
    detail: str = ""

    @property
    def severity(self) -> Severity:
        sides = frozenset().union(*(owner.sides for owner in self.owners))
        patients = frozenset().union(*(owner.patient_ids for owner in self.owners))
        if len(sides) > 1:
            return Severity.error
        if len(patients) == 1:
            return Severity.note
        return Severity.error if "train" in sides else Severity.warning

    def __str__(self) -> str:
        return " = ".join(map(str, self.owners)) + self.detail


_ADVICE = {
    Severity.error: (
        "Keep one of each, or give copies one patient id and one side; where labels differ, find "
        "out which is right."
    ),
    Severity.warning: "They are judged as two patients; give them one patient id.",
    Severity.note: "They weigh double in their patient's bag; keep one of each.",
}


def find_identical(
    digests: Mapping[str, SlideDigest], owners: Mapping[str, TableEntry]
) -> list[Finding]:
    """Slides of different names with the same file content or the same embeddings."""
    by_content = _groups(digests, lambda digest: digest.content_id)
    known = {frozenset(group) for group in by_content}
    by_embedding = [
        group
        for group in _groups(digests, lambda d: d.features_sha256 if d.n_tiles else "")
        if not any(set(group) <= other for other in known)
    ]
    return [
        *_findings("identical_file", "are the same file", by_content, owners),
        *_findings("identical_embeddings", "have the same embeddings", by_embedding, owners),
    ]


def find_near_duplicates(
    digests: Mapping[str, SlideDigest],
    owners: Mapping[str, TableEntry],
    *,
    on_pair: Callable[[int, int], None],
) -> list[Finding]:
    """Slides of different patients that show the same tissue: re-scans, re-encoded copies, crops.

    For every slide the three most similar slides of other patients, by the cosine of mean
    embeddings, are compared tile by tile, see :func:`match_tiles`. Slides of whose tiles nobody
    knows where they lie are left out.

    Parameters
    ----------
    digests
        Slides by id.
    owners
        Where they stand in the tables.
    on_pair
        Called with pairs compared and pairs in all.

    Raises
    ------
    BagError
        If a bag cannot be read any more.
    """
    usable = [
        digest
        for digest in digests.values()
        if digest.knows_places and digest.n_tiles >= LEAST_AGREEING_TILES
    ]
    if len(usable) < 2:
        return []
    centre = np.stack([digest.mean for digest in usable]).mean(axis=0, dtype=np.float64)
    pairs = _candidates(usable, owners, centre)
    read = lru_cache(maxsize=_N_KEPT)(read_bag)
    found = []
    for done, (first, second, cosine) in enumerate(pairs, start=1):
        fit = match_tiles(read(first.path), read(second.path), centre=centre)
        if fit.is_copy:
            detail = f": {percent(fit.share)} of tiles agree, cosine of means {cosine:.2f}"
            found.append(
                _DuplicateFinding((owners[first.slide_id], owners[second.slide_id]), detail)
            )
        on_pair(done, len(pairs))
    return list(_by_severity("near_duplicate", "show the same tissue", found))


def match_tiles(first: Bag, second: Bag, *, centre: Floats) -> Agreement:
    """Count tiles of the smaller bag whose best matches in the other lie at one displacement.

    Parameters
    ----------
    first, second
        The bags, in any order, each with at least one tile; both know where their tiles lie.
    centre
        Mean embedding of the cohort, shape (dim,), taken from all tiles before cosines.
    """
    small, large = sorted((first, second), key=lambda bag: len(bag.features))
    n_tiles = min(len(small.features), _MOST_TILES)
    rows = np.linspace(0, len(small.features) - 1, n_tiles).round().astype(np.int64)
    cosines = _directions(small.features[rows], centre) @ _directions(large.features, centre).T
    places, matched = _places(small)[rows], _places(large)[cosines.argmax(axis=1)]
    return Agreement(
        n_agreeing=max(_largest_cluster(matched @ turn.T - places) for turn in _TURNS),
        n_tiles=n_tiles,
    )


def _largest_cluster(shifts: Floats) -> int:
    """Most shifts, of shape (n, 2), that lie around one of them."""
    gaps = np.abs(shifts[:, None] - shifts[None]).max(axis=2)
    return int((gaps <= _TOLERANCE_TILES).sum(axis=1).max())


def _directions(features: npt.NDArray[np.floating], centre: Floats) -> npt.NDArray[np.float32]:
    """Rows of length 1 (0 for a row that equals the centre)."""
    apart = features.astype(np.float32) - centre.astype(np.float32)
    lengths = np.linalg.norm(apart, axis=1, keepdims=True)
    return np.asarray(apart / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _places(bag: Bag) -> Floats:
    """Where tiles lie, in tiles, shape (tiles, 2): the same for any resolution of the scan."""
    return np.asarray(bag.coords_px0 / np.array([bag.meta.span_x_px0, bag.meta.span_y_px0]))


def _candidates(
    usable: Sequence[SlideDigest], owners: Mapping[str, TableEntry], centre: Floats
) -> list[tuple[SlideDigest, SlideDigest, float]]:
    """Each slide with its nearest slides of other patients; no pair twice, no identical files."""
    means = _directions(np.stack([digest.mean for digest in usable]), centre)
    pairs: dict[tuple[int, int], float] = {}
    for index, digest in enumerate(usable):
        cosines = means @ means[index]
        n_found = 0
        for other in np.argsort(-cosines, kind="stable").tolist():
            if n_found == _N_CANDIDATES:
                break
            if _may_be_compared(digest, usable[other], owners):
                pairs[min(index, other), max(index, other)] = float(cosines[other])
                n_found += 1
    return [(usable[a], usable[b], cosine) for (a, b), cosine in sorted(pairs.items())]


def _may_be_compared(
    first: SlideDigest, second: SlideDigest, owners: Mapping[str, TableEntry]
) -> bool:
    known = (
        first.features_sha256 == second.features_sha256
        or first.content_id == second.content_id != ""
    )
    return not known and not (
        owners[first.slide_id].patient_ids & owners[second.slide_id].patient_ids
    )


def _groups(
    digests: Mapping[str, SlideDigest], key: Callable[[SlideDigest], str]
) -> list[tuple[str, ...]]:
    """Slides that share a key, where several do; an empty key is none."""
    members: dict[str, list[str]] = {}
    for digest in digests.values():
        members.setdefault(key(digest), []).append(digest.slide_id)
    return [tuple(names) for value, names in members.items() if value and len(names) > 1]


def _findings(
    kind: str, verb: str, groups: Iterable[Sequence[str]], owners: Mapping[str, TableEntry]
) -> Iterator[Finding]:
    copies = [_DuplicateFinding(tuple(owners[name] for name in group)) for group in groups]
    return _by_severity(kind, verb, copies)


def _by_severity(kind: str, verb: str, copies: Sequence[_DuplicateFinding]) -> Iterator[Finding]:
    """One finding for all copies that are equally bad."""
    for severity in Severity:
        subjects = tuple(str(found) for found in copies if found.severity is severity)
        if subjects:
            of_whom = "of one patient " if severity is Severity.note else ""
            yield Finding(
                severity=severity,
                kind=kind,
                message=f"slides {of_whom}{verb}: {abbreviate(subjects)}",
                advice=_ADVICE[severity],
                subjects=subjects,
            )
