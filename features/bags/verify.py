"""Whether the bags of a folder can be trusted, one by one and together."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import TILE, Bag, BagMeta, BagRef, Fingerprint
from features.bags.formats.base import unknown_fields
from features.bags.h5 import read_bag
from features.bags.store import open_bags
from features.errors import BagError

__all__ = ["BagReport", "FolderReport", "verify_bags"]


@dataclass(frozen=True, kw_only=True)
class BagReport:
    """What was found about one bag."""

    slide_id: str
    """Name of its file, without suffix, or in its store."""
    n_tiles: int = 0
    """Embeddings in it; 0 if it cannot be read."""
    problems: tuple[str, ...] = ()
    """What is wrong with it; empty for a good bag."""
    unknown: tuple[str, ...] = ()
    """What it does not know of its making, because it was imported."""


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What was found about a folder of bags."""

    bags: tuple[BagReport, ...]
    """One a bag, by name."""
    n_fingerprints: int
    """Ways in which its readable bags were made; 1 in a good folder."""
    constant_features: tuple[int, ...]
    """Places in the embedding that hold the same number on all tiles of all bags of the most
    frequent make; not wrong in itself, some backbones have such features."""

    @property
    def n_bad(self) -> int:
        """Bags with a problem."""
        return sum(bool(bag.problems) for bag in self.bags)


@dataclass(frozen=True, kw_only=True, eq=False)
class _BagSummary:
    """What is kept of a bag that could be read, when its arrays are gone."""

    made: Fingerprint
    least: npt.NDArray[Any]
    largest: npt.NDArray[Any]


def verify_bags(
    bags_dir: Path,
    *,
    on_bag: Callable[[int, int], None],
    read: Callable[[BagRef], Bag] = read_bag,
) -> FolderReport:
    """Read every bag of a folder and say what is wrong with it.

    One bag is in memory at a time. Bags made otherwise than most of the folder count as bad.

    Parameters
    ----------
    bags_dir
        Folder of bags, or packed store.
    on_bag
        Told after each bag how many are done, and of how many.
    read
        Reads a bag; :class:`features.bags.isolated_reader.IsolatedReader` does so at less risk.

    Raises
    ------
    BagError
        If there is no bag, or the store is not to be trusted.
    """
    paths = open_bags(bags_dir)
    checks: list[BagReport] = []
    readable: dict[str, _BagSummary] = {}
    for slide_id in paths:
        try:
            bag = read(paths[slide_id])
        except BagError as error:
            checks.append(BagReport(slide_id=slide_id, problems=(error.actual,)))
        else:
            checks.append(_check(slide_id, bag))
            readable[slide_id] = _BagSummary(
                made=bag.meta.fingerprint,
                least=bag.features.min(axis=0, initial=np.inf),
                largest=bag.features.max(axis=0, initial=-np.inf),
            )
        on_bag(len(checks), len(paths))
    makes = Counter(found.made for found in readable.values())
    usual = makes.most_common(1)[0][0] if makes else None
    return FolderReport(
        bags=tuple(_with_make(check, readable.get(check.slide_id), usual) for check in checks),
        n_fingerprints=len(makes),
        constant_features=_constant([r for r in readable.values() if r.made == usual]),
    )


def _check(slide_id: str, bag: Bag) -> BagReport:
    unknown = unknown_fields(bag.meta)
    problems = [*_about_meta(slide_id, bag), *_about_features(bag.features)]
    if bag.views is not None:
        problems += _about_views(bag.features, bag.views)
    if bag.order is None:  # images of a series have neither place nor tissue
        problems += _about_resolution(bag.meta)
        if "coords" not in unknown:
            problems += _about_coords(bag)
        if "tissue_fraction" not in unknown:
            problems += _about_tissue(bag.tissue_fraction)
    return BagReport(
        slide_id=slide_id, n_tiles=len(bag.features), problems=tuple(problems), unknown=unknown
    )


def _about_meta(slide_id: str, bag: Bag) -> Iterator[str]:
    meta, n_tiles = bag.meta, len(bag.features)
    if meta.slide_id != slide_id:
        yield f"it is the bag of slide {meta.slide_id!r}"
    n_left_out = _n_left_out(meta)
    if meta.n_tried - meta.n_failed - n_left_out != n_tiles or min(meta.n_failed, n_left_out) < 0:
        also = f", {n_left_out} left out" if n_left_out else ""
        told = f"{meta.n_tried} tiles tried{also} and {meta.n_failed} failed"
        yield f"{n_tiles} embeddings, but {told}"
    if bool(meta.empty_reason) == bool(n_tiles):
        yield f"{n_tiles} embeddings, but the reason for being empty is {meta.empty_reason!r:.60}"


def _n_left_out(meta: BagMeta) -> int:
    """Tiles that rules left out; -1 where the bag's counts of them cannot be read."""
    try:
        return sum(map(int, json.loads(meta.left_out).values()))
    except (AttributeError, TypeError, ValueError):
        return -1


def _about_resolution(meta: BagMeta) -> Iterator[str]:
    if not all(math.isfinite(mpp) and mpp > 0 for mpp in (meta.mpp_x, meta.mpp_y)):
        yield f"a resolution of {meta.mpp_x:g} × {meta.mpp_y:g} µm/px"


def _about_features(features: npt.NDArray[Any]) -> Iterator[str]:
    finite = np.isfinite(features)
    if not finite.all():
        n_nan = int(np.isnan(features).any(axis=1).sum())
        n_infinite = int(np.isinf(features).any(axis=1).sum())
        yield f"{n_nan} embeddings hold NaN, {n_infinite} infinity"
    elif len(features) > 1 and (features == features[0]).all():
        yield f"all {len(features)} embeddings are equal"


def _about_views(features: npt.NDArray[Any], views: npt.NDArray[Any]) -> Iterator[str]:
    finite = np.isfinite(views).reshape(len(views), -1).all(axis=1)
    if not finite.all():
        yield f"views of {int((~finite).sum())} tiles hold NaN or infinity"
    elif len(views) and (views == features[:, None]).all():
        yield f"all views of {len(views)} tiles equal their plain tile"


def _about_coords(bag: Bag) -> Iterator[str]:
    coords, meta = bag.coords_px0, bag.meta
    n_twice = len(coords) - len(np.unique(coords, axis=0))
    if n_twice and meta.kind == TILE:
        yield f"{n_twice} tiles stand at the place of another"
    size = np.array([meta.width_px0, meta.height_px0], np.float64)
    size[size == 0] = np.inf  # unknown in imported bags
    n_outside = int(((coords < 0) | (coords >= size)).any(axis=1).sum())
    if n_outside:
        yield f"{n_outside} tiles lie outside the slide of {meta.width_px0} × {meta.height_px0} px"


def _about_tissue(tissue_fraction: npt.NDArray[np.float32]) -> Iterator[str]:
    n_odd = int((~((tissue_fraction >= 0) & (tissue_fraction <= 1 + 1e-6))).sum())
    if n_odd:
        yield f"{n_odd} tissue fractions are not between 0 and 1"


def _with_make(check: BagReport, read: _BagSummary | None, usual: Fingerprint | None) -> BagReport:
    """The check with a problem more if the bag was made otherwise than most."""
    if read is None or usual is None or read.made == usual:
        return check
    name = next(
        p.name for p in fields(usual) if getattr(read.made, p.name) != getattr(usual, p.name)
    )
    mine, theirs = getattr(read.made, name), getattr(usual, name)
    problem = f"{name} is {mine!r:.60}, but {theirs!r:.60} in most bags"
    return replace(check, problems=(*check.problems, problem))


def _constant(reads: list[_BagSummary]) -> tuple[int, ...]:
    if not reads:
        return ()
    least = np.min([read.least for read in reads], axis=0)
    largest = np.max([read.largest for read in reads], axis=0)
    return tuple(int(place) for place in np.flatnonzero(least == largest))
