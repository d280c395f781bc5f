"""Vectors per slide (TITAN, PRISM, MADELEINE and others): bags of one.

TRIDENT writes ``slide_features_<encoder>/<slide>.h5`` with ``features``; others save a tensor or an
array per slide.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.bags.formats.base import ForeignBag
from features.bags.formats.torch_tensors import first_tensor, read_tensors
from features.bags.safe_hdf5 import find_item, open_h5, read_array
from features.errors import BagError, one_line

__all__ = ["CHECK_KIND", "read"]

_NAMES = ("features", "feats", "embedding", "slide_embedding", "embeddings")
CHECK_KIND = "Embeddings of tiles are imported with --from instead of --slide-vectors."
"""Advice on files that hold no vector of a slide."""

_EXPECTED = "one vector per slide, shape (dim,) or (1, dim)"


def read(path: Path, encoder: str) -> ForeignBag:  # noqa: ARG001 - All formats share a signature.
    """Read the vector of one slide, shape (dim,) or (1, dim), as a bag of shape (1, dim).

    Raises BagError if the file holds something else, such as the embeddings of tiles.
    """
    array = _read_array(path)
    if array.ndim not in (1, 2, 3) or math.prod(array.shape[:-1]) != 1:
        raise BagError(
            path,
            actual=f"an array of shape {array.shape}",
            expected=_EXPECTED,
            hint=CHECK_KIND,
        )
    return ForeignBag(features=array.reshape(1, -1), coords=None)


def _read_array(path: Path) -> npt.NDArray[np.generic]:
    if path.suffix in {".pt", ".pth"}:
        return first_tensor(path, read_tensors(path), names=_NAMES)
    if path.suffix == ".npy":
        try:
            array: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = one_line(str(error), max_chars=160)
            raise BagError(path, actual=f"not readable ({reason})", expected="an array") from error
        return array
    with open_h5(path, expected="a file of slide features", hint=CHECK_KIND) as file:
        name = next((name for name in _NAMES if find_item(file, name)), _NAMES[0])
        return read_array(file, name, ndim=(1, 2, 3), hint=CHECK_KIND)
