"""Registry of the bag formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from features.bags.bag import Bag
from features.bags.formats import atlaspatch, clam, slideflow, stamp, torch_tensors, trident
from features.bags.formats.base import ForeignBag

__all__ = ["BAG_FORMATS", "BagFormat", "BagReader"]


class BagReader(Protocol):
    """Function that reads one slide; ``encoder`` chooses among several embeddings in a file."""

    def __call__(self, path: Path, *, encoder: str) -> ForeignBag:
        """Read one slide."""
        ...


@dataclass(frozen=True, kw_only=True)
class BagFormat:
    """Functions that find, read and write the bags of another program."""

    find: Callable[[Path], dict[str, Path]]
    """Returns the files of a folder by slide id."""
    read: BagReader
    write: Callable[[Path, Bag], None] | None = None
    """Writes one slide into a folder; None if the format can only be read."""
    required: frozenset[str] = frozenset()
    """Fields that a bag must know to be written."""


_COORDS = frozenset({"coords"})
_TILES = frozenset({"coords", "target_mpp", "tile_px"})

BAG_FORMATS: Mapping[str, BagFormat] = MappingProxyType({
    "clam": BagFormat(find=clam.find, read=clam.read, write=clam.write, required=_COORDS),
    "trident": BagFormat(
        find=trident.find, read=trident.read, write=trident.write, required=_TILES
    ),
    "stamp": BagFormat(find=stamp.find, read=stamp.read, write=stamp.write, required=_TILES),
    "atlaspatch": BagFormat(find=atlaspatch.find, read=atlaspatch.read),
    "slideflow": BagFormat(
        find=slideflow.find, read=slideflow.read, write=slideflow.write, required=_TILES
    ),
    "torch": BagFormat(find=torch_tensors.find, read=torch_tensors.read, write=torch_tensors.write),
})  # fmt: skip
"""Formats by the name that ``mil bags`` accepts."""
