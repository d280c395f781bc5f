"""TRIDENT (Zhang and others, 2025): ``features_<encoder>/<slide>.h5`` and ``patches``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from features.bags.bag import Bag
from features.bags.formats.base import ForeignBag, find_files, number, text
from features.bags.h5 import trident_attributes
from features.bags.safe_hdf5 import create_h5, open_h5, read_array, read_attributes
from features.utils.files import make_folder

__all__ = ["find", "read", "target_mpp_of", "tiling_of", "write"]


def find(source: Path) -> dict[str, Path]:
    """Files by slide id, in the folder itself or in its ``features_<encoder>``."""
    return find_files(
        source, "*.h5", "features_*/*.h5", "*/features_*/*.h5",
        expected="features_<encoder>/<slide>.h5",
    )  # fmt: skip


def read(path: Path, *, encoder: str) -> ForeignBag:  # noqa: ARG001 - one signature for all layouts
    """Embeddings of one slide; its magnification gives a nominal resolution."""
    with open_h5(path, expected="a TRIDENT file", advice="Check --from.") as file:
        features = read_array(file, "features", ndim=(2, 3))
        coords = read_array(file, "coords", ndim=(2, 3))
        said = read_attributes(file["coords"])
        name = text(read_attributes(file["features"]), "encoder")
    magnification = number(said, "level0_magnification")
    return ForeignBag(
        features=features,
        coords=coords,
        encoder=name,
        mpp=10.0 / magnification if magnification else 0.0,
        mpp_is_nominal=True,
        **tiling_of(said),
    )


def write(folder: Path, bag: Bag) -> None:
    """``<mag>x_<tile>px_<overlap>px_overlap/`` with ``patches`` and ``features_<encoder>``."""
    said = trident_attributes(bag.meta)
    made = bag.meta.fingerprint
    job = folder / (
        f"{said['target_magnification']:g}x_{made.tile_px}px_{made.overlap_px}px_overlap"
    )
    coords, slide_id = bag.coords_px0.astype(np.int64), bag.meta.slide_id
    tiles_path = make_folder(job / "patches") / f"{slide_id}_patches.h5"
    with create_h5(tiles_path) as file:
        file.create_dataset("coords", data=coords).attrs.update(said)
    encoder = re.sub(r"[^\w.+-]", "_", made.encoder)
    bags_path = make_folder(job / f"features_{encoder}") / f"{slide_id}.h5"
    with create_h5(bags_path) as file:
        shape = (None, bag.features.shape[1])
        features = file.create_dataset("features", data=bag.features, maxshape=shape)
        features.attrs.update({"name": slide_id, "savetodir": "bags", "encoder": made.encoder})
        file.create_dataset("coords", data=coords, maxshape=(None, 2)).attrs.update(said)


def tiling_of(said: dict[str, Any]) -> dict[str, Any]:
    """Fields of a ForeignBag from TRIDENT's attributes, which AtlasPatch uses as well."""
    return {
        "tile_px": int(number(said, "patch_size")),
        "target_mpp": target_mpp_of(number(said, "target_magnification")),
        "overlap_px": int(number(said, "overlap")) if "overlap" in said else None,
        "span_px0": number(said, "patch_size_level0"),
        "size_px0": (int(number(said, "level0_width")), int(number(said, "level0_height"))),
    }


def target_mpp_of(magnification: float) -> float:
    """µm per px of a magnification, by the convention 10 / magnification; 0 for 0."""
    return float(f"{10.0 / magnification:.6g}") if magnification else 0.0
