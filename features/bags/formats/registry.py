"""Registry of the bag formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from features.bags.bag import Bag
from features.bags.formats import atlaspatch, clam, slideflow, stamp, torch_tensors, trident
from features.bags.formats.base import ForeignBag, find_files

__all__ = ["BAG_FORMATS", "BagFormat"]


@dataclass(frozen=True, kw_only=True)
class BagFormat:
    """Format of the bags of another program."""

    patterns: tuple[str, ...]
    """Glob patterns of its files, preferred first."""
    expected: str
    """Name of its files, for messages."""
    read: Callable[[Path, str], ForeignBag]
    """Reads one slide; the second argument, an encoder, chooses among several embeddings."""
    write: Callable[[Path, Bag], None] | None = None
    """Writes one slide into a folder; None if the format can only be read."""
    required: frozenset[str] = frozenset()
    """Fields that a bag must know to be written."""

    def find(self, source: Path) -> dict[str, Path]:
        """Return the files of a folder by slide id; see :func:`find_files`."""
        return find_files(source, self.patterns, expected=self.expected)


_TILES = frozenset({"coords", "target_mpp", "tile_px"})

BAG_FORMATS: Mapping[str, BagFormat] = MappingProxyType({
    "clam": BagFormat(
        patterns=("h5_files/*.h5", "pt_files/*.pt", "*.h5", "*.pt"),
        expected="h5_files/<slide>.h5 or pt_files/<slide>.pt",
        read=clam.read, write=clam.write, required=frozenset({"coords"}),
    ),
    "trident": BagFormat(
        patterns=("*.h5", "features_*/*.h5", "*/features_*/*.h5"),
        expected="features_<encoder>/<slide>.h5",
        read=trident.read, write=trident.write, required=_TILES,
    ),
    "stamp": BagFormat(
        patterns=("*.h5",), expected="<slide>.h5, one per slide",
        read=stamp.read, write=stamp.write, required=_TILES,
    ),
    "atlaspatch": BagFormat(
        patterns=("patches/*.h5", "*.h5"), expected="patches/<slide>.h5", read=atlaspatch.read
    ),
    "slideflow": BagFormat(
        patterns=("*.pt",), expected="<slide>.pt, one per slide",
        read=slideflow.read, write=slideflow.write, required=_TILES,
    ),
    "torch": BagFormat(
        patterns=("*.pt",), expected="<slide>.pt, one per slide",
        read=torch_tensors.read, write=torch_tensors.write,
    ),
})  # fmt: skip
"""Formats by the name that ``mil bags`` accepts."""
