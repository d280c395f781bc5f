"""CLAM (Lu and others, 2021): ``h5_files`` or ``pt_files``, and ``patches`` next to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.bags.bag import Bag
from features.bags.formats.base import CHECK_LAYOUT, COPY_AGAIN, ForeignBag, number, text
from features.bags.formats.torch_tensors import first_tensor, read_tensors, write_tensor
from features.bags.safe_hdf5 import create_h5, open_h5, read_array, read_attributes
from features.errors import BagError
from features.utils.files import make_folder

__all__ = ["read", "write"]

_EXPECTED = "a CLAM file"


def read(path: Path, encoder: str) -> ForeignBag:  # noqa: ARG001 - All formats share a signature.
    """Read embeddings, shape (n_tiles, dim), and tiles from ``../patches/<slide>.h5``.

    Raises BagError if the ``.pt`` file of the slide, which CLAM trains on, holds other embeddings
    than its ``.h5`` file, or that of its tiles lacks some.
    """
    coords, attributes = None, {}
    tiles_path = path.parent.parent / "patches" / f"{path.stem}.h5"
    if tiles_path.is_file():
        with open_h5(tiles_path, expected=_EXPECTED, hint="") as file:
            coords = read_array(file, "coords", ndim=(2, 3), hint=CHECK_LAYOUT)
            attributes = read_attributes(file["coords"])
    if path.suffix == ".pt":
        features = first_tensor(path, read_tensors(path))
    else:
        with open_h5(path, expected=_EXPECTED, hint=COPY_AGAIN) as file:
            features = read_array(file, "features", ndim=(2, 3), hint=CHECK_LAYOUT)
            tiles, coords = coords, read_array(file, "coords", ndim=(2, 3), hint=CHECK_LAYOUT)
        _check_tensor(path, features)
        if tiles is not None and not _corners(coords) <= _corners(tiles):
            raise BagError(
                path, actual=f"coordinates that are not in {tiles_path}", expected="its tiles",
                hint="Run its patching and feature steps with the same settings, or move that "
                "file elsewhere.",
            )  # fmt: skip
    downsample = number(attributes, "downsample") or 1.0
    return ForeignBag(
        features=features,
        coords=coords,
        tile_px=int(number(attributes, "patch_size")),
        span_px0=number(attributes, "patch_size") * downsample,
        size_px0=_size_px0(attributes, downsample),
        slide_name=text(attributes, "name"),
    )


def write(folder: Path, bag: Bag) -> None:
    """Write ``h5_files``, ``pt_files`` and ``patches``.

    Embeddings, shape (n_tiles, dim), are float32; tiles are squares, their corners, shape (n_tiles,
    2), level-0 px.
    """
    slide_id = bag.meta.slide_id
    features, coords = bag.features.astype(np.float32), bag.coords_px0.astype(np.int32)
    tiles_path = make_folder(folder / "patches") / f"{slide_id}.h5"
    with create_h5(tiles_path) as file:
        file.create_dataset("coords", data=coords, maxshape=(None, 2))
        size = np.array([bag.meta.width_px0, bag.meta.height_px0])
        file["coords"].attrs.update({
            "patch_size": round((bag.meta.span_x_px0 * bag.meta.span_y_px0) ** 0.5),
            "patch_level": 0,
            "downsample": np.ones(2),
            "downsampled_level_dim": size,
            "level_dim": size,
            "name": slide_id,
            "save_path": "patches",
        })  # fmt: skip
    write_tensor(make_folder(folder / "pt_files") / f"{slide_id}.pt", features)
    bags_path = make_folder(folder / "h5_files") / f"{slide_id}.h5"
    with create_h5(bags_path) as file:
        file.create_dataset("features", data=features, maxshape=(None, features.shape[1]))
        file.create_dataset("coords", data=coords, maxshape=(None, 2))


def _corners(coords: npt.NDArray[Any]) -> set[tuple[float, ...]]:
    """Return corners of tiles, an array of shape (n_tiles, 2 or more) with any batch axis."""
    return {tuple(row[:2]) for row in coords.reshape(-1, max(1, coords.shape[-1])).tolist()}


def _check_tensor(path: Path, features: npt.NDArray[Any]) -> None:
    """Raise BagError if the ``.pt`` file of a slide holds other embeddings, beyond rounding."""
    folder = path.parent.parent / "pt_files" if path.parent.name == "h5_files" else path.parent
    tensor_path = folder / f"{path.stem}.pt"
    try:
        tensor = first_tensor(tensor_path, read_tensors(tensor_path))
    except BagError:  # Where it is missing or damaged, the other file alone is read.
        return
    rows, others = (table[0] if table.ndim == 3 else table for table in (features, tensor))
    largest = np.abs(rows).max(initial=0, where=np.isfinite(rows))
    if rows.shape != others.shape:
        actual = f"embeddings of shape {rows.shape}, and {others.shape} in {tensor_path}"
    elif not np.allclose(rows, others, rtol=0, atol=0.01 * float(largest), equal_nan=True):
        actual = f"other embeddings than in {tensor_path}"
    else:
        return
    raise BagError(
        path, actual=actual, expected="the same, as CLAM writes both at once",
        hint="Move the file that is out of date elsewhere.",
    )  # fmt: skip


def _size_px0(attributes: dict[str, Any], downsample: float) -> tuple[int, int]:
    size = attributes.get("level_dim")
    if not isinstance(size, tuple) or len(size) != 2:
        return (0, 0)
    width, height = (number({"side": side}, "side") for side in size)
    return round(width * downsample), round(height * downsample)
