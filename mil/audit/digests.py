"""What the audit remembers of each slide's bag, and who the slide belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import Bag, BagRef, Fingerprint, check_fingerprint
from features.bags.h5 import read_bag
from features.errors import BagError
from mil.audit.tables import Split

__all__ = ["SlideDigest", "TableEntry", "find_owners", "read_digests"]


@dataclass(frozen=True, kw_only=True)
class TableEntry:
    """Where a slide stands in the tables."""

    slide_id: str
    """Its name."""
    sides: frozenset[str]
    """``train``, ``test`` or both."""
    patient_ids: frozenset[str]
    """Whose it is; several if tables contradict each other."""
    labels: frozenset[str]
    """Its labels in the training table; empty for a slide of the test table."""

    def __str__(self) -> str:
        """``a_0 (train, patient a, CE)``."""
        parts = (self.sides, {f"patient {name}" for name in self.patient_ids}, self.labels)
        said = ", ".join(" and ".join(sorted(part)) for part in parts if part)
        return f"{self.slide_id} ({said})"


@dataclass(frozen=True, kw_only=True, eq=False)
class SlideDigest:
    """A bag in short: all the audit needs but the tiles."""

    slide_id: str
    """Name of the slide."""
    path: BagRef
    """Its bag."""
    fingerprint: Fingerprint
    """How the bag was made."""
    n_tiles: int
    """Embeddings in it."""
    width_px0: int
    """Width of the slide in level-0 px; 0 where the bag does not know it."""
    height_px0: int
    """Height of the slide in level-0 px; 0 where the bag does not know it."""
    background_rgb: tuple[int, int, int]
    """Colour of its glass."""
    content_id: str
    """Content of the slide file; '' if not known."""
    features_sha256: str
    """Hash of the embeddings."""
    knows_places: bool
    """Whether the bag says where on a slide its tiles lie; series of images have no such plane."""
    mean: npt.NDArray[np.float32]
    """Mean embedding, shape (dim,); zeros without tiles."""


def find_owners(sides: Sequence[Split]) -> dict[str, TableEntry]:
    """Where each slide stands, by slide id, in order of first appearance."""
    found: dict[str, TableEntry] = {}
    for side in sides:
        for row in side.rows.to_dict("records"):
            slide_id = str(row["slide"])
            labels = {str(row["label"])} if "label" in row else set()
            known = found.get(slide_id)
            found[slide_id] = TableEntry(
                slide_id=slide_id,
                sides=frozenset({side.name, *(known.sides if known else ())}),
                patient_ids=frozenset({row["patient"], *(known.patient_ids if known else ())}),
                labels=frozenset({*labels, *(known.labels if known else ())}),
            )
    return found


def read_digests(
    slide_ids: Iterable[str], bag_paths: Mapping[str, BagRef], *, on_slide: Callable[[], None]
) -> dict[str, SlideDigest]:
    """Read bags one after the other and keep a digest of each; slides without one are left out.

    Parameters
    ----------
    slide_ids
        Slides wanted.
    bag_paths
        Where bags lie, by slide id.
    on_slide
        Called after each slide.

    Raises
    ------
    BagError
        If no slide has a bag, a bag is damaged, or two were made differently.
    """
    found: dict[str, SlideDigest] = {}
    for slide_id in slide_ids:
        if slide_id in bag_paths:
            found[slide_id] = _read_digest(slide_id, bag_paths[slide_id])
        on_slide()
    if not found:
        raise BagError(
            "bags",
            actual="no slide of the tables has one",
            expected="a bag named after each slide",
            hint="Check --bags, and that slide ids equal file names without suffix.",
        )
    first = next(iter(found.values()))
    check_fingerprint(
        first.fingerprint,
        ((digest.path, digest.fingerprint) for digest in found.values()),
        source=f"the bag of {first.slide_id!r}",
    )
    return found


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
        knows_places=_knows_places(bag),
        mean=_mean(bag.features),
    )


def _knows_places(bag: Bag) -> bool:
    spans_px0 = (bag.meta.span_x_px0, bag.meta.span_y_px0)
    return bag.order is None and all(spans_px0) and bool((bag.coords_px0 >= 0).any())


def _mean(features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Mean embedding; summed in float64, since float16 overflows."""
    if not len(features):
        return np.zeros(features.shape[1], np.float32)
    return np.asarray(features.mean(axis=0, dtype=np.float64), np.float32)
