"""The layouts that can be read and written, by name."""

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
    """Reads one slide; ``encoder`` chooses where a file holds several embeddings."""

    def __call__(self, path: Path, *, encoder: str) -> ForeignBag:
        """Read one slide."""
        ...


@dataclass(frozen=True, kw_only=True)
class BagFormat:
    """How another program lays out its bags."""

    find: Callable[[Path], dict[str, Path]]
    """Files of a folder by slide id."""
    read: BagReader
    """Reads one of them."""
    write: Callable[[Path, Bag], None] | None = None
    """Writes one slide into a folder; None where the layout is only read."""
    needs: frozenset[str] = frozenset()
    """What a bag must know to be written so."""


_PLACES = frozenset({"coords"})
_TILES = frozenset({"coords", "target_mpp", "tile_px"})

BAG_FORMATS: Mapping[str, BagFormat] = MappingProxyType({
    "clam": BagFormat(find=clam.find, read=clam.read, write=clam.write, needs=_PLACES),
    "trident": BagFormat(find=trident.find, read=trident.read, write=trident.write, needs=_TILES),
    "stamp": BagFormat(find=stamp.find, read=stamp.read, write=stamp.write, needs=_TILES),
    "atlaspatch": BagFormat(find=atlaspatch.find, read=atlaspatch.read),
    "slideflow": BagFormat(
        find=slideflow.find, read=slideflow.read, write=slideflow.write, needs=_TILES
    ),
    "torch": BagFormat(find=torch_tensors.find, read=torch_tensors.read, write=torch_tensors.write),
})  # fmt: skip
"""By the name that ``mil bags`` knows."""
