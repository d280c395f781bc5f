"""Registry of the bag formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from features.bags.bag import Bag
from features.bags.formats import atlaspatch, clam, slideflow, stamp, torch_tensors, trident
from features.bags.formats.base import ForeignBag
from features.errors import BagError

__all__ = ["BAG_FORMATS", "BagFormat"]


@dataclass(frozen=True, kw_only=True)
class BagFormat:
    """Format of the bags of another program.

    ``patterns`` are globs of its files, preferred first, which messages name as ``expected``.
    ``read`` takes a path and an encoder, which chooses among several embeddings of a file;
    ``write``, None if the format can only be read, takes a folder and a bag, which must know the
    ``required`` fields.
    """

    patterns: tuple[str, ...]
    expected: str
    read: Callable[[Path, str], ForeignBag]
    write: Callable[[Path, Bag], None] | None = None
    required: frozenset[str] = frozenset()

    def find(self, source: Path) -> dict[str, Path]:
        """Return the files by slide id that match the first pattern with any match.

        Raises BagError if no file matches, or those of a pattern are in several folders.
        """
        for pattern in self.patterns:
            paths = sorted(p for p in source.glob(pattern) if not p.name.startswith("."))
            folders = sorted({path.parent for path in paths})
            if len(folders) > 1:
                raise BagError(
                    source,
                    actual=f"bags in several folders: {', '.join(map(str, folders[:5]))}",
                    expected="one set of bags",
                    hint="Choose one of these folders.",
                )
            if paths:
                return {path.stem: path for path in paths}
        raise BagError(
            source, actual="no such bag in it", expected=self.expected, hint="Check --from."
        )


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
