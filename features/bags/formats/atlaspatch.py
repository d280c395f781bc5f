"""AtlasPatch (2026): ``patches/<slide>.h5``, one dataset per encoder, ``coords`` of 5 columns."""

from __future__ import annotations

from pathlib import Path

import h5py

from features.bags.formats.base import CHECK_LAYOUT, COPY_AGAIN, ForeignBag, number
from features.bags.formats.trident import parse_tiling
from features.bags.safe_hdf5 import find_item, open_h5, read_array, read_attributes
from features.errors import BagError

__all__ = ["read"]


def read(path: Path, encoder: str) -> ForeignBag:
    """Read the embeddings of one slide, shape (n_tiles, dim), of an encoder or of the only one."""
    with open_h5(path, expected="an AtlasPatch file", hint=COPY_AGAIN) as file:
        name = _choose_encoder(path, file, encoder)
        features = read_array(file, f"features/{name}", ndim=(2, 3), hint=CHECK_LAYOUT)
        coords = read_array(file, "coords", ndim=(2, 3), hint=CHECK_LAYOUT)
        attributes = read_attributes(file)
    return ForeignBag(
        features=features,
        coords=coords,
        encoder=name,
        mpp=number(attributes, "mpp"),
        **parse_tiling(attributes),
    )


def _choose_encoder(path: Path, file: h5py.File, requested: str) -> str:
    group = find_item(file, "features")
    names = sorted(map(str, group)) if isinstance(group, h5py.Group) else []
    if requested in names:
        return requested
    if requested or len(names) != 1:
        raise BagError(
            path,
            actual=f"embeddings of {', '.join(names[:8]) or 'no encoder'}",
            expected=repr(requested) if requested else "one encoder",
            hint="Name one with --backbone."
            if names
            else f"Run its feature step first. {CHECK_LAYOUT}",
        )
    return names[0]
