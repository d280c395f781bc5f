"""Plain folders of ``.pt`` files; reading and writing of tensors for the other formats.

A ``.pt`` file is a pickle; :mod:`features.utils.torch_io` reads it without executing anything.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from features.bags.bag import Bag
from features.bags.formats.base import COPY_AGAIN, ForeignBag, unknown_fields
from features.errors import BagError, one_line
from features.utils.files import atomic_write, make_folder
from features.utils.torch_io import safe_torch_load

__all__ = ["first_tensor", "read", "read_tensors", "write", "write_tensor"]

_FEATURE_NAMES = ("features", "feats", "embeddings")


def read(path: Path, encoder: str) -> ForeignBag:  # noqa: ARG001 - All formats share a signature.
    """Read a tensor, shape (n_tiles, dim), or a dictionary with ``features`` and ``coords``.

    ``features`` may be named ``feats`` or ``embeddings``, and ``coords`` may be missing.
    Coordinates, shape (n_tiles, 2), are level-0 px; those of ``coords/<slide>.pt`` next to the file
    take precedence.
    """
    tensors = read_tensors(path)
    coords_path = path.parent / "coords" / path.name
    coords = tensors.get("coords")
    if coords_path.is_file():
        coords = first_tensor(coords_path, read_tensors(coords_path), names=("features", "coords"))
    return ForeignBag(features=first_tensor(path, tensors), coords=coords)


def write(folder: Path, bag: Bag) -> None:
    """Write ``<slide>.pt``, float32 of shape (n_tiles, dim), and its coordinates.

    ``coords/<slide>.pt`` holds int64 of shape (n_tiles, 2), level-0 px.
    """
    name = f"{bag.meta.slide_id}.pt"
    if "coords" not in unknown_fields(bag.meta):
        write_tensor(make_folder(folder / "coords") / name, bag.coords_px0.astype(np.int64))
    write_tensor(folder / name, bag.features.astype(np.float32))


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a file, of any shape, by name; a bare one is named ``features``.

    Raises BagError if the file holds neither a tensor nor a dictionary, or states more bytes than
    it has.
    """
    if not path.is_file():
        raise BagError(path, actual="there is no such file", expected="a .pt file")
    try:
        content = safe_torch_load(path)
    except UnpicklingError as error:
        raise BagError(
            path,
            actual="no plain tensor: loading it could run a program, and it was not loaded",
            expected="a tensor, or a dictionary of tensors",
            hint="If you trust its source, load it elsewhere and save the bare tensor.",
        ) from error
    except Exception as error:  # A damaged stream raises errors of any kind.
        reason = one_line(str(error), max_chars=200)
        raise BagError(
            path, actual=f"not readable ({reason})", expected="a .pt file", hint=COPY_AGAIN
        ) from error
    if not isinstance(content, torch.Tensor | Mapping):
        raise BagError(
            path,
            actual=f"an object of type {type(content).__name__}",
            expected="a tensor, or a dictionary of tensors",
        )
    tensors = content if isinstance(content, Mapping) else {"features": content}
    return {
        str(name): _as_array(path, value)
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }


def first_tensor(
    path: Path, tensors: Mapping[str, npt.NDArray[Any]], *, names: Sequence[str] = _FEATURE_NAMES
) -> npt.NDArray[Any]:
    """Return the first of these tensors that a file has, of any shape; BagError if it has none."""
    name = next((name for name in names if name in tensors), None)
    if name is None:
        raise BagError(
            path,
            actual=f"a dictionary of {', '.join(map(repr, tensors)) or 'no tensor'}",
            expected="one of " + ", ".join(map(repr, names)),
        )
    return tensors[name]


def write_tensor(path: Path, array: npt.NDArray[Any]) -> None:
    """Write one tensor of any shape atomically; equal tensors give equal bytes.

    Raises OutputError if the file cannot be written.
    """
    content = io.BytesIO()  # PyTorch does not report a full disk.
    torch.save(torch.from_numpy(np.ascontiguousarray(array)), content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _as_array(path: Path, tensor: torch.Tensor) -> npt.NDArray[Any]:
    n_bytes = tensor.numel() * tensor.element_size()
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise BagError(path, actual=f"a tensor of layout {tensor.layout}", expected="a dense one")
    if n_bytes > path.stat().st_size:
        raise BagError(
            path,
            actual=f"a tensor that states {tuple(tensor.shape)} values, {n_bytes:,} bytes",
            expected="no more than the file holds",
        )
    plain = tensor.detach()
    array: npt.NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array
