"""STAMP (El Nahhas and others, 2024): ``<slide>.h5`` with ``feats``, and ``coords`` in µm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features.bags.bag import Bag
from features.bags.formats.base import CHECK_LAYOUT, COPY_AGAIN, ForeignBag, number, text
from features.bags.safe_hdf5 import create_h5, find_item, open_h5, read_array, read_attributes
from features.errors import BagError

__all__ = ["read", "write"]

_FEATURE_NAMES = ("feats", "patch_embeddings")
_LEGACY_TILE_UM = 256.0
_LEGACY_TILE_PX = 224
_STAMP_VERSION = "2.0.0"
"""Lowest version with this layout, because STAMP refuses files of newer versions."""


def read(path: Path, encoder: str) -> ForeignBag:  # noqa: ARG001 - All formats share a signature.
    """Read the embeddings of one slide, shape (n_tiles, dim).

    Files of STAMP 1 state no unit: neighbouring tiles are then 224 apart, the side in px of a tile
    of 256 µm.
    """
    with open_h5(path, expected="a STAMP file", hint=COPY_AGAIN) as file:
        name = next((name for name in _FEATURE_NAMES if find_item(file, name)), _FEATURE_NAMES[0])
        features = read_array(file, name, ndim=(2, 3), hint=CHECK_LAYOUT)
        coords = read_array(file, "coords", ndim=(2, 3), hint=CHECK_LAYOUT).astype(np.float64)
        attributes = read_attributes(file)
    tile_um = number(attributes, "tile_size_um")
    if not tile_um and text(attributes, "unit") == "um":
        tile_um = number(attributes, "tile_size")
    tile_px = int(number(attributes, "tile_size_px"))
    if not tile_um:
        if _smallest_step(coords) != _LEGACY_TILE_PX:
            raise BagError(
                path,
                actual="coords without a unit, and tiles not 224 apart",
                expected="the attribute tile_size_um",
                hint="Embed the slide again with a current STAMP.",
            )
        tile_um, tile_px = _LEGACY_TILE_UM, _LEGACY_TILE_PX
        coords *= _LEGACY_TILE_UM / _LEGACY_TILE_PX
    return ForeignBag(
        features=features,
        coords=coords,
        coords_are="corners_um",
        encoder=text(attributes, "extractor") or text(attributes, "encoder"),
        tile_px=tile_px,
        target_mpp=float(f"{tile_um / tile_px:.9g}") if tile_px else 0.0,
        overlap_px=0,
    )


def write(folder: Path, bag: Bag) -> None:
    """Write ``<slide>.h5``; coordinates, shape (n_tiles, 2), in µm, float32."""
    fingerprint = bag.meta.fingerprint
    mpp_xy = np.array([bag.meta.mpp_x, bag.meta.mpp_y])
    path = folder / f"{bag.meta.slide_id}.h5"
    with create_h5(path) as file:
        file.create_dataset("coords", data=(bag.coords_px0 * mpp_xy).astype(np.float32))
        file.create_dataset("feats", data=bag.features)
        file.attrs.update({
            "stamp_version": _STAMP_VERSION,
            "extractor": fingerprint.encoder,
            "unit": "um",
            "tile_size_um": fingerprint.tile_px * fingerprint.target_mpp,
            "tile_size_px": fingerprint.tile_px,
            "code_hash": "",
            "feat_type": "tile",
        })  # fmt: skip


def _smallest_step(coords: np.ndarray) -> int:
    """Return the smallest distance of two columns or rows, rounded; 0 if there is only one."""
    table = coords.reshape(-1, coords.shape[-1])
    steps = [np.diff(np.unique(table[:, axis])) for axis in range(2)]
    together = np.concatenate(steps)
    return round(float(together.min())) if together.size else 0
