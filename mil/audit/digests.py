"""Digests of the slides' bags, and the table entries that the slides belong to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import Bag, BagRef, Fingerprint, check_fingerprint
from features.bags.h5 import read_bag
from features.errors import BagError
from mil.audit.tables import Split

__all__ = ["SlideDigest", "TableEntry", "read_digests", "table_entries"]


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """Everything that the tables state about one slide."""

    slide_id: str
    splits: frozenset[str]
    """``train``, ``test`` or both."""
    patient_ids: frozenset[str]
    """Its patient; several if tables contradict each other."""
    labels: frozenset[str]
    """Its labels in the training table; empty for a slide of the test table."""

    def __str__(self) -> str:
        """``a_0 (train, patient a, CE)``."""
        parts = (self.splits, {f"patient {name}" for name in self.patient_ids}, self.labels)
        text = ", ".join(" and ".join(sorted(part)) for part in parts if part)
        return f"{self.slide_id} ({text})"


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideDigest:
    """A bag without its tiles: all that the audit keeps in memory."""

    slide_id: str
    path: BagRef
    fingerprint: Fingerprint
    n_tiles: int
    width_px0: int
    """Width of the slide in level-0 px; 0 if the bag does not state it."""
    height_px0: int
    """Height of the slide in level-0 px; 0 if the bag does not state it."""
    background_rgb: tuple[int, int, int]
    content_id: str
    """Content hash of the slide file; '' if not known."""
    features_sha256: str
    has_coords: bool
    """Whether the bag holds tile coordinates; series of images have none."""
    mean: npt.NDArray[np.float32]
    """Mean embedding, shape (dim,); zeros without tiles."""


def table_entries(splits: Sequence[Split]) -> dict[str, TableEntry]:
    """Return the entry of each slide by slide id, in order of first appearance."""
    entries: dict[str, TableEntry] = {}
    for split in splits:
        for row in split.rows.to_dict("records"):
            slide_id = str(row["slide"])
            labels = {str(row["label"])} if "label" in row else set()
            known = entries.get(slide_id)
            entries[slide_id] = TableEntry(
                slide_id=slide_id,
                splits=frozenset({split.name, *(known.splits if known else ())}),
                patient_ids=frozenset({row["patient"], *(known.patient_ids if known else ())}),
                labels=frozenset({*labels, *(known.labels if known else ())}),
            )
    return entries


def read_digests(
    slide_ids: Collection[str], bags: Mapping[str, BagRef], *, on_slide: Callable[[int], None]
) -> dict[str, SlideDigest]:
    """Read bags one after the other and keep a digest of each; slides without a bag are left out.

    ``on_slide`` is called after each slide with the number of slides done.

    Raises
    ------
    BagError
        If no slide has a bag, a bag is damaged, or two were made differently.
    """
    digests: dict[str, SlideDigest] = {}
    for done, slide_id in enumerate(slide_ids, start=1):
        if slide_id in bags:
            digests[slide_id] = _read_digest(slide_id, bags[slide_id])
        on_slide(done)
    if not digests:
        raise BagError(
            "bags",
            actual="no slide of the tables has one",
            expected="a bag named after each slide",
            hint="Check --bags, and that slide ids equal file names without suffix.",
        )
    first = next(iter(digests.values()))
    check_fingerprint(
        first.fingerprint,
        ((digest.path, digest.fingerprint) for digest in digests.values()),
        source=f"the bag of {first.slide_id!r}",
    )
    return digests


def _read_digest(slide_id: str, path: BagRef) -> SlideDigest:
    bag = read_bag(path)
    return SlideDigest(
        slide_id=slide_id,
        path=path,
        fingerprint=bag.meta.fingerprint,
        n_tiles=len(bag.features),
        width_px0=bag.meta.width_px0,
        height_px0=bag.meta.height_px0,
        background_rgb=bag.meta.background_rgb,
        content_id=bag.meta.slide_content_id,
        features_sha256=bag.features_sha256,
        has_coords=_has_coords(bag),
        mean=_mean(bag.features),
    )


def _has_coords(bag: Bag) -> bool:
    spans_px0 = (bag.meta.span_x_px0, bag.meta.span_y_px0)
    return bag.order is None and all(spans_px0) and bool((bag.coords_px0 >= 0).any())


def _mean(features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return the mean embedding, shape (dim,); summed in float64, since float16 overflows."""
    if not len(features):
        return np.zeros(features.shape[1], np.float32)
    return np.asarray(features.mean(axis=0, dtype=np.float64), np.float32)
