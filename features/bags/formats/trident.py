"""TRIDENT (Zhang and others, 2025): ``features_<encoder>/<slide>.h5`` and ``patches``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from features.bags.bag import Bag
from features.bags.formats.base import CHECK_LAYOUT, COPY_AGAIN, ForeignBag, number, text
from features.bags.h5 import trident_attributes
from features.bags.safe_hdf5 import create_h5, open_h5, read_array, read_attributes
from features.utils.files import make_folder

__all__ = ["parse_tiling", "read", "target_mpp_of", "write"]


def read(path: Path, encoder: str) -> ForeignBag:  # noqa: ARG001 - All formats share a signature.
    """Read embeddings, shape (n_tiles, dim); the resolution follows from the magnification."""
    with open_h5(path, expected="a TRIDENT file", hint=COPY_AGAIN) as file:
        features = read_array(file, "features", ndim=(2, 3), hint=CHECK_LAYOUT)
        coords = read_array(file, "coords", ndim=(2, 3), hint=CHECK_LAYOUT)
        attributes = read_attributes(file["coords"])
        made = read_attributes(file["features"])
    magnification = number(attributes, "level0_magnification")
    return ForeignBag(
        features=features,
        coords=coords,
        encoder=text(made, "encoder"),
        slide_name=text(made, "name") or text(attributes, "name"),
        mpp=10.0 / magnification if magnification else 0.0,
        mpp_is_nominal=True,
        **parse_tiling(attributes),
    )


def write(folder: Path, bag: Bag) -> None:
    """Write ``<mag>x_<tile>px_<overlap>px_overlap/{patches,features_<encoder>}``.

    Embeddings have shape (n_tiles, dim), upper left corners shape (n_tiles, 2), level-0 px.
    """
    attributes = trident_attributes(bag.meta)
    fingerprint = bag.meta.fingerprint
    root = folder / (
        f"{attributes['target_magnification']:g}x_{fingerprint.tile_px}px_{fingerprint.overlap_px}px_overlap"
    )
    coords, slide_id = bag.coords_px0.astype(np.int64), bag.meta.slide_id
    tiles_path = make_folder(root / "patches") / f"{slide_id}_patches.h5"
    with create_h5(tiles_path) as file:
        file.create_dataset("coords", data=coords).attrs.update(attributes)
    encoder = re.sub(r"[^\w.+-]", "_", fingerprint.encoder)
    bags_path = make_folder(root / f"features_{encoder}") / f"{slide_id}.h5"
    with create_h5(bags_path) as file:
        shape = (None, bag.features.shape[1])
        features = file.create_dataset("features", data=bag.features, maxshape=shape)
        features.attrs.update(
            {"name": slide_id, "savetodir": "bags", "encoder": fingerprint.encoder}
        )
        file.create_dataset("coords", data=coords, maxshape=(None, 2)).attrs.update(attributes)


def parse_tiling(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return fields of a ForeignBag from the attributes of TRIDENT, which AtlasPatch shares."""
    return {
        "tile_px": int(number(attributes, "patch_size")),
        "target_mpp": target_mpp_of(number(attributes, "target_magnification")),
        "overlap_px": int(number(attributes, "overlap")) if "overlap" in attributes else None,
        "span_px0": number(attributes, "patch_size_level0"),
        "size_px0": (
            int(number(attributes, "level0_width")),
            int(number(attributes, "level0_height")),
        ),
    }


def target_mpp_of(magnification: float) -> float:
    """Return µm per px by the convention 10 / magnification; 0 for 0."""
    return float(f"{10.0 / magnification:.6g}") if magnification else 0.0
