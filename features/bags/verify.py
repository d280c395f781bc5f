"""Verification of a folder of bags, each bag by itself and all of them together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import (
    Bag,
    BagMeta,
    BagRef,
    Fingerprint,
    bag_id,
)
from features.bags.formats.base import unknown_fields
from features.bags.h5 import read_bag
from features.bags.setting_words import describe_difference
from features.bags.store import open_bags
from features.errors import CONTENT_ERRORS, BagError

__all__ = ["BagReport", "FolderReport", "verify_bags"]


@dataclass(frozen=True, kw_only=True)
class BagReport:
    """Result for one bag: its problems, and the fields that an imported bag does not know.

    ``slide_id`` is its key in the folder or store; ``n_tiles`` is 0 if it cannot be read.
    """

    slide_id: str
    n_tiles: int = 0
    problems: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """Result for a folder of bags.

    ``n_fingerprints``, of all readable bags, is 1 in a good folder. ``constant_features`` are
    indices, 0 to dim - 1, of features, shape (n_tiles, dim), with the same value on all tiles of
    all bags with the most frequent fingerprint; that is not wrong in itself, as some encoders have
    such features.
    """

    bags: tuple[BagReport, ...]
    n_fingerprints: int
    constant_features: tuple[int, ...]

    @property
    def n_bad(self) -> int:
        """Number of bags with a problem."""
        return sum(bool(bag.problems) for bag in self.bags)


@dataclass(frozen=True, kw_only=True, eq=False)
class _BagSummary:
    """Fingerprint of a readable bag and the range of each feature, shape (dim,)."""

    fingerprint: Fingerprint
    minimum: npt.NDArray[Any]
    maximum: npt.NDArray[Any]


def verify_bags(
    bags_dir: Path,
    *,
    on_bag: Callable[[int, int], None],
    read: Callable[[BagRef], Bag] = read_bag,
) -> FolderReport:
    """Read every bag of a folder or packed store, one at a time, and report its faults.

    Bags whose fingerprint differs from that of most bags count as bad, and so do all if as many
    bags have one as another. ``on_bag`` is called after each with the number of finished bags and
    of all; ``read`` may be safer than :func:`features.bags.h5.read_bag`, see
    :class:`features.bags.isolated_reader.IsolatedReader`.
    Raises BagError if there is no bag, or the store is damaged.
    """
    bag_refs = open_bags(bags_dir)
    reports: dict[str, BagReport] = {}
    summaries: dict[str, _BagSummary] = {}
    for slide_id in bag_refs:
        try:
            bag = read(bag_refs[slide_id])
        except BagError as error:
            reports[slide_id] = BagReport(slide_id=slide_id, problems=(error.actual,))
        else:
            reports[slide_id] = _check(slide_id, bag)
            summaries[slide_id] = _BagSummary(
                fingerprint=bag.meta.fingerprint,
                minimum=bag.features.min(axis=0, initial=np.inf),
                maximum=bag.features.max(axis=0, initial=-np.inf),
            )
        on_bag(len(reports), len(bag_refs))
    counts = Counter(summary.fingerprint for summary in summaries.values())
    most = counts.most_common(2)
    for slide_id, summary in summaries.items():
        reports[slide_id] = _check_fingerprint(
            reports[slide_id], summary.fingerprint, most, n_bags=counts.total()
        )
    same = [summary for summary in summaries.values() if summary.fingerprint == most[0][0]]
    return FolderReport(
        bags=tuple(reports.values()),
        n_fingerprints=len(counts),
        constant_features=_constant_features(same),
    )


def _check(slide_id: str, bag: Bag) -> BagReport:
    unknown = unknown_fields(bag.meta)
    problems = [*_check_meta(slide_id, bag)]
    if bag.views is not None:
        problems += _check_views(bag.features, bag.views)
    if bag.order is None:  # Images of a series have neither coordinates nor tissue.
        if "coords" not in unknown:
            problems += _check_coords(bag)
        if "tissue_fraction" not in unknown:
            problems += _check_tissue(bag.tissue_fraction)
    return BagReport(
        slide_id=slide_id, n_tiles=len(bag.features), problems=tuple(problems), unknown=unknown
    )


def _check_meta(slide_id: str, bag: Bag) -> Iterator[str]:
    meta, n_tiles = bag.meta, len(bag.features)
    if bag_id(meta.slide_id) != slide_id:
        yield f"it is the bag of slide {meta.slide_id!r}"
    n_left_out = _n_left_out(meta)
    if meta.n_tried - meta.n_failed - n_left_out != n_tiles or n_left_out < 0:
        also = f", {n_left_out} left out" if n_left_out else ""
        tried = f"{meta.n_tried} tiles tried{also} and {meta.n_failed} failed"
        yield f"{n_tiles} embeddings, but {tried}"
    if bool(meta.empty_reason) == bool(n_tiles):
        yield f"{n_tiles} embeddings, but the reason for being empty is {meta.empty_reason!r:.60}"


def _n_left_out(meta: BagMeta) -> int:
    """Return the number of rejected tiles; -1 where their counts cannot be parsed."""
    try:
        return sum(map(int, json.loads(meta.left_out).values()))
    except CONTENT_ERRORS:
        return -1


def _check_views(features: npt.NDArray[Any], views: npt.NDArray[Any]) -> Iterator[str]:
    if len(views) and (views == features[:, None]).all():
        yield f"all views of {len(views)} tiles equal their plain tile"


def _check_coords(bag: Bag) -> Iterator[str]:
    coords = bag.coords_px0
    n_duplicates = len(coords) - len(np.unique(coords, axis=0))
    if n_duplicates:
        yield f"{n_duplicates} tiles have the coordinates of another"


def _check_tissue(tissue_fraction: npt.NDArray[np.float32]) -> Iterator[str]:
    n_invalid = int((~((tissue_fraction >= 0) & (tissue_fraction <= 1 + 1e-6))).sum())
    if n_invalid:
        yield f"{n_invalid} tissue fractions are not between 0 and 1"


def _check_fingerprint(
    report: BagReport,
    fingerprint: Fingerprint,
    most: Sequence[tuple[Fingerprint, int]],
    *,
    n_bags: int,
) -> BagReport:
    """Return the report, with one more problem if as many bags have another fingerprint.

    ``most`` are the two most frequent ones, with their numbers of bags.
    """
    is_tied = len(most) == 2 and most[0][1] == most[1][1]
    usual, n_usual = most[is_tied and most[0][0] == fingerprint]
    if fingerprint == usual:
        return report
    own, others = describe_difference(vars(fingerprint), vars(usual))
    problem = f"made with {own}, but {n_usual:,} of {n_bags:,} bags with {others}"
    return replace(report, problems=(*report.problems, problem))


def _constant_features(summaries: list[_BagSummary]) -> tuple[int, ...]:
    if not summaries:
        return ()
    minimum = np.min([summary.minimum for summary in summaries], axis=0)
    maximum = np.max([summary.maximum for summary in summaries], axis=0)
    return tuple(np.flatnonzero(minimum == maximum).tolist())
