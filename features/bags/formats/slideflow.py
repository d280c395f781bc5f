"""Slideflow (Dolezal and others, 2024): ``<slide>.pt``, ``<slide>.index.npz``, one JSON file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import Bag
from features.bags.formats.base import ForeignBag, number
from features.bags.formats.torch_tensors import first_tensor, read_tensors, write_tensor
from features.bags.formats.trident import target_mpp_of
from features.errors import CONTENT_ERRORS, BagError
from features.utils.files import atomic_write

__all__ = ["read", "write"]

_CONFIG = "bags_config.json"


def read(path: Path, encoder: str) -> ForeignBag:  # noqa: ARG001 - All formats share a signature.
    """Read embeddings, shape (n_tiles, dim); coordinates are centres of tiles, level-0 px."""
    index_path = path.with_suffix(".index.npz")
    config = _read_config(path.parent / _CONFIG)
    tile_px = int(number(config, "tile_px"))
    extractor = config.get("extractor")
    name = extractor.get("class") if isinstance(extractor, dict) else ""
    return ForeignBag(
        features=first_tensor(path, read_tensors(path)),
        coords=_read_index(index_path) if index_path.is_file() else None,
        coords_are="centres_px0",
        encoder=str(name or "").rsplit(".", maxsplit=1)[-1],
        tile_px=tile_px,
        target_mpp=_target_mpp(config, tile_px),
    )


def write(folder: Path, bag: Bag) -> None:
    """Write the three files; all slides of a folder share the JSON file.

    Embeddings, shape (n_tiles, dim), are float32, centres of tiles, shape (n_tiles, 2), level-0 px.
    """
    fingerprint = bag.meta.fingerprint
    tile_um = fingerprint.tile_px * fingerprint.target_mpp
    config = {
        "extractor": {"class": fingerprint.encoder, "kwargs": {}},
        "normalizer": None,
        "num_features": fingerprint.dim,
        "tile_px": fingerprint.tile_px,
        "tile_um": int(tile_um) if tile_um.is_integer() else tile_um,
    }
    with atomic_write(folder / _CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    span = np.array([bag.meta.span_x_px0, bag.meta.span_y_px0])
    index_path = folder / f"{bag.meta.slide_id}.index.npz"
    with atomic_write(index_path) as temporary:
        np.savez(temporary, arr_0=np.rint(bag.coords_px0 + span / 2).astype(np.int64))
    write_tensor(folder / f"{bag.meta.slide_id}.pt", bag.features.astype(np.float32))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except CONTENT_ERRORS as error:
        raise BagError(path, actual=f"not readable ({error})", expected="JSON") from error
    return config if isinstance(config, dict) else {}


def _target_mpp(config: dict[str, Any], tile_px: int) -> float:
    """Return µm per px from ``tile_um``: a number of µm, or a magnification such as ``20x``."""
    tile_um = config.get("tile_um")
    if isinstance(tile_um, str) and tile_um.lower().endswith("x"):
        return target_mpp_of(number({"x": tile_um[:-1]}, "x"))
    return float(f"{number(config, 'tile_um') / tile_px:.9g}") if tile_px else 0.0


def _read_index(path: Path) -> npt.NDArray[Any]:
    """Return the coordinates of the tiles, without pickle and within a limit of memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(part.file_size for part in archive.infolist())
        if n_bytes <= max(1 << 20, 20 * path.stat().st_size):
            with np.load(path, allow_pickle=False) as index:
                return np.asarray(index["arr_0"])
    except Exception as error:  # NumPy parses headers as Python: errors are of many kinds.
        raise BagError(path, actual=f"not readable ({error})", expected="an index.npz") from error
    raise BagError(path, actual=f"an archive that unpacks to {n_bytes:,} bytes")
