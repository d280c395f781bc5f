"""The tiles of a bag as a grid again, to read them once more from the slide."""

from __future__ import annotations

import numpy as np

from features.bags import BagMeta
from features.heatmap import TilePlaces
from features.tiles import TileGrid

__all__ = ["grid_of"]

_TILE_PX = 224
"""Of bags from elsewhere that do not say it."""


def grid_of(places: TilePlaces, meta: BagMeta) -> TileGrid:
    """The grid whose tiles a bag holds; their shares of tissue are not kept and stand as 1.

    Parameters
    ----------
    places
        Where the tiles lie.
    meta
        What the bag says of their making.
    """
    return TileGrid(
        coords_px0=places.coords_px0,
        tissue_fraction=np.ones(len(places.coords_px0), np.float32),
        span_x_px0=places.span_px0[0],
        span_y_px0=places.span_px0[1],
        tile_px=meta.fingerprint.tile_px or _TILE_PX,
        min_tissue_used=meta.min_tissue_used,
    )
