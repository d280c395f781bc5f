"""Registry of the bag formats of other programs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from features.bags.bag import Bag, bag_id
from features.bags.formats import (
    atlaspatch,
    clam,
    slide_vectors,
    slideflow,
    stamp,
    torch_tensors,
    trident,
)
from features.bags.formats.base import CHECK_LAYOUT, ForeignBag
from features.errors import BagError
from features.utils.files import path_exists

__all__ = ["BAG_FORMATS", "BagFormat", "FoundBags"]


_SUFFIXES = frozenset({".h5", ".hdf5", ".npy", ".parquet", ".pickle", ".pkl", ".pt", ".pth"})
"""Suffixes of files that may hold embeddings."""

_COORDS = "coords"
"""Folder of the coordinates beside bags of bare tensors, in files of the same names."""


@dataclass(frozen=True, kw_only=True)
class FoundBags:
    """Files of bags by slide id, and the reasons why other files of embeddings were left out."""

    paths: Mapping[str, Path]
    left_out: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class BagFormat:
    """Format of the bags of another program.

    ``patterns`` are globs of its files, preferred first, which messages name as ``expected``;
    ``**`` is for programs that write a folder per cohort.
    ``read`` takes a path and an encoder, which chooses among several embeddings of a file;
    ``write``, None if the format can only be read, takes a folder and a bag, which must know the
    ``required`` fields; ``hint`` says what to do where there is no such bag. Files of two patterns
    that differ in their suffix alone are ``copies`` of each other, or two bags of one slide.
    """

    patterns: tuple[str, ...]
    expected: str
    read: Callable[[Path, str], ForeignBag]
    write: Callable[[Path, Bag], None] | None = None
    required: frozenset[str] = frozenset()
    hint: str = CHECK_LAYOUT
    copies: bool = False

    def find(self, source: Path) -> FoundBags:
        """Return the files that match the first pattern with any match, and those left out.

        Raises BagError if no file matches, if those of a pattern without ``**`` are in several
        folders, or if two are of one slide.
        """
        for pattern in self.patterns:
            found = _visible(source, sorted(source.glob(pattern)))
            paths = [p for p in found if p.is_file() and p.parent.name != _COORDS]
            folders = sorted({path.parent for path in paths})
            if len(folders) > 1 and "**" not in pattern:
                raise BagError(
                    source,
                    actual=f"bags in several folders: {', '.join(map(str, folders[:5]))}",
                    expected="one set of bags",
                    hint="Choose one of these folders.",
                )
            if paths:
                of_slides = _by_slide(source, paths if self.copies else self._with_twins(paths))
                return FoundBags(paths=of_slides, left_out=_list_left_out(source, of_slides))
        raise BagError(source, actual="no such bag in it", expected=self.expected, hint=self.hint)

    def _with_twins(self, paths: Sequence[Path]) -> list[Path]:
        """Return these files and those beside them that only differ in the suffix of a pattern."""
        suffixes = {Path(pattern).suffix for pattern in self.patterns}
        twins = {path.with_suffix(suffix) for path in paths for suffix in suffixes}
        return sorted({*paths, *filter(Path.is_file, twins)})


def _by_slide(source: Path, paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if (first := found.setdefault(bag_id(path.stem), path)) != path:
            folders = [shlex.quote(str(one.parent)) for one in (first, path)]
            raise BagError(
                source,
                actual=f"two bags of slide {bag_id(path.stem)!r}: {first} and {path}",
                expected="one set of bags",
                hint=f"Import {' and '.join(folders)} one by one, into two folders."
                if first.parent != path.parent
                else "Move one of them elsewhere.",
            )
    return found


def _list_left_out(source: Path, found: Mapping[str, Path]) -> dict[str, str]:
    """Return the other files of embeddings below a folder, and why each was not taken."""
    left_out = {}
    suffixes = {taken.suffix for taken in found.values()}
    for path in _visible(source, sorted(_walk(source))):
        slide_id = bag_id(path.stem.removesuffix("_patches"))
        is_lost = path.is_symlink() and not path_exists(path)
        is_of_bag = path.suffix.lower() in _SUFFIXES
        if slide_id not in found and (
            (is_lost and not path.suffix) or (is_of_bag and (is_lost or path.is_file()))
        ):
            left_out[str(path.relative_to(source))] = (
                f"a link to a {'file' if is_of_bag else 'folder'} that is not there"
                if is_lost
                else "not where this layout has its bags"
                if path.suffix in suffixes
                else f"a {path.suffix} file, and those of this layout are {min(suffixes)}"
            )
    return left_out


def _walk(source: Path) -> Iterator[Path]:
    """Yield all below a folder, and behind links to folders, each folder once: links may loop."""
    folders, links, seen = [source], list[Path](), set(source.resolve().parents)
    while folders or links:
        folder = (folders or links).pop()
        if (target := folder.resolve()) in seen:
            continue
        seen.add(target)
        try:
            paths = sorted(folder.iterdir())
        except OSError:  # such as a folder that may not be read
            continue
        for path in paths:
            yield path
            if path_exists(path) and path.is_dir():
                (links if path.is_symlink() else folders).append(path)


def _visible(source: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the paths without a hidden file or folder below the source."""
    for path in paths:
        if not any(part.startswith(".") for part in path.relative_to(source).parts):
            yield path


_TILES = frozenset({"coords", "target_mpp", "tile_px"})

BAG_FORMATS: Mapping[str, BagFormat] = MappingProxyType({
    "clam": BagFormat(
        patterns=("h5_files/*.h5", "pt_files/*.pt", "*.h5", "*.pt"),
        expected="h5_files/<slide>.h5 or pt_files/<slide>.pt",
        read=clam.read, write=clam.write, required=frozenset({"coords"}), copies=True,
    ),
    "trident": BagFormat(
        patterns=("*.h5", "features_*/*.h5", "*/features_*/*.h5"),
        expected="features_<encoder>/<slide>.h5",
        read=trident.read, write=trident.write, required=_TILES,
    ),
    "stamp": BagFormat(
        patterns=("**/*.h5",), expected="<slide>.h5, one per slide",
        read=stamp.read, write=stamp.write, required=_TILES,
    ),
    "atlaspatch": BagFormat(
        patterns=("patches/*.h5", "*.h5"), expected="patches/<slide>.h5", read=atlaspatch.read
    ),
    "slideflow": BagFormat(
        patterns=("**/*.pt",), expected="<slide>.pt, one per slide",
        read=slideflow.read, write=slideflow.write, required=_TILES,
    ),
    "torch": BagFormat(
        patterns=("**/*.pt",), expected="<slide>.pt, one per slide",
        read=torch_tensors.read, write=torch_tensors.write,
    ),
    "slide-vectors": BagFormat(
        patterns=("**/*.h5", "**/*.pt", "**/*.npy"),
        expected="<slide>.h5, .pt or .npy with one vector per slide", read=slide_vectors.read,
        hint=slide_vectors.CHECK_KIND,
    ),
})  # fmt: skip
"""Formats by the name that ``mil bags`` accepts."""
