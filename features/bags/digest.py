"""Digests: what reports and audits keep of each bag when its tiles are no longer in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.bags.bag import IMAGE, Bag, BagMeta, BagRef, no_bag_error
from features.bags.h5 import read_bag
from features.bags.tile_keys import TileKeys
from features.errors import BagError

__all__ = ["BagDigest", "read_digests"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BagDigest:
    """A bag without its tiles.

    ``slide_id`` is its key in the folder or store. ``tiles_sha256`` is the hash of its embeddings
    in any order, ``tile_sketch`` the keys of some, see :mod:`features.bags.tile_keys`.
    ``tissue_share`` is the share of the slide's area that is tissue inside its tiles,
    0 to 1, NaN if unknown; ``mean`` the mean embedding, shape (dim,), zeros without tiles. Images
    of a series have no coordinates.
    """

    slide_id: str
    bag_ref: BagRef
    meta: BagMeta
    n_tiles: int
    tiles_sha256: str
    tile_sketch: TileKeys
    has_coords: bool
    tissue_share: float
    mean: npt.NDArray[np.float32]

    @property
    def is_series(self) -> bool:
        """Whether it is a bag of images, not of tiles of a slide."""
        return self.meta.kind == IMAGE


def read_digests(
    slide_ids: Collection[str],
    bags: Mapping[str, BagRef],
    *,
    source: object,
    on_slide: Callable[[int], None],
    on_refused: Callable[[str, BagError], None],
) -> dict[str, BagDigest]:
    """Read the bags of slides one after the other, keeping their mean embeddings, shape (dim,).

    Slides without a bag are omitted; ``on_slide`` is called with the number of finished slides,
    ``on_refused`` with the id of a slide whose bag is damaged, and the reason. Raises BagError if
    no slide has a bag, naming the ``source`` of the bags, or all are damaged.
    """
    digests = {}
    first: BagError | None = None
    for n_done, slide_id in enumerate(slide_ids, start=1):
        if slide_id in bags:
            try:
                digests[slide_id] = _digest(slide_id, bags[slide_id])
            except BagError as error:
                first = first or error
                on_refused(slide_id, error)
        on_slide(n_done)
    if not digests and first is not None:
        raise first
    if not digests:
        raise no_bag_error(source, list(slide_ids), bags)
    return digests


def _digest(slide_id: str, bag_ref: BagRef) -> BagDigest:
    bag = read_bag(bag_ref)
    spans_px0 = (bag.meta.span_x_px0, bag.meta.span_y_px0)
    return BagDigest(
        slide_id=slide_id,
        bag_ref=bag_ref,
        meta=bag.meta,
        n_tiles=len(bag.features),
        tiles_sha256=bag.tiles_sha256,
        tile_sketch=bag.tile_sketch,
        has_coords=bag.order is None and all(spans_px0) and bool((bag.coords_px0 >= 0).any()),
        tissue_share=_tissue_share(bag),
        # float16 would overflow in the sum.
        mean=bag.features.mean(axis=0, dtype=np.float64).astype(np.float32)
        if len(bag.features)
        else np.zeros(bag.features.shape[1], np.float32),
    )


def _tissue_share(bag: Bag) -> float:
    meta, fingerprint = bag.meta, bag.meta.fingerprint
    # Overlapping tiles share tissue, so each tile counts for its own step of the grid only.
    step = 1 - fingerprint.overlap_px / fingerprint.tile_px if fingerprint.tile_px else 1.0
    tile_px0 = meta.span_x_px0 * meta.span_y_px0 * step * step
    tissue = float(bag.tissue_fraction.sum(dtype=np.float64)) * tile_px0
    area = meta.width_px0 * meta.height_px0
    share = tissue / area if area and meta.kind != IMAGE else math.nan
    return min(share, 1.0)  # NaN of imported bags stays NaN.
