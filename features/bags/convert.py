"""Conversion of whole folders of bags from and to the formats of other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from features.bags.bag import (
    TILE,
    BagRef,
    Fingerprint,
    bag_id,
    check_fingerprint,
    check_no_tie,
)
from features.bags.formats.base import ImportDefaults, to_bag, unknown_fields
from features.bags.formats.registry import BAG_FORMATS
from features.bags.h5 import bag_path, read_bag_info, read_slide_bag, write_bag
from features.bags.store import open_bags
from features.errors import BagError, MilError, OutputError
from features.utils.files import make_folder, missing_folder, why_no_folder

__all__ = ["ConversionResult", "OnSlide", "export_bags", "import_bags"]

Ref = TypeVar("Ref")

_OPTIONS = {"target_mpp": "--mpp", "tile_px": "--tile-px"}
"""Options of the import for the fields that layouts need, beside coordinates."""

_DIFFERENT_HINT = (
    "State what files leave out with --backbone, --mpp, --tile-px, or import the others from a "
    "folder of their own."
)

_APART_HINT = "Move the bags of each kind into a folder of their own, and export one by one."

OnSlide = Callable[[int, int], None]
"""Callback with the number of finished slides and of all slides."""


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """Result of the conversion of one slide: fields that its bag does not know, or the problem.

    A file that was not converted has the reason in ``left_out``, and its path as ``slide_id``.
    ``named`` is the other slide that a file says it is of, if that one has no file.
    """

    slide_id: str
    n_tiles: int = 0
    unknown: tuple[str, ...] = ()
    problem: str = ""
    left_out: str = ""
    named: str = ""


def import_bags(
    source: Path, bags_dir: Path, *, layout: str, defaults: ImportDefaults, on_slide: OnSlide
) -> list[ConversionResult]:
    """Convert another program's bags into bags of this program, in a new or empty folder.

    ``layout`` is a key of :data:`features.bags.formats.registry.BAG_FORMATS`. A bag that cannot be
    read, or was made otherwise than most, does not stop the others and is not kept; files of
    embeddings that are not of that layout follow as left out. Raises BagError if ``source`` holds
    no bag of that layout, or as many bags of one kind as of another, OutputError if ``bags_dir`` is
    not empty, or cannot be written.
    """
    bag_format = BAG_FORMATS[layout]
    if not source.is_dir():
        raise BagError(
            source,
            actual=missing_folder(source),
            expected=f"a folder with {bag_format.expected}",
        )
    found = bag_format.find(source)
    _make_new_folder(bags_dir)
    fingerprints: dict[str, Fingerprint] = {}

    def convert(slide_id: str, path: Path) -> ConversionResult:
        target = bag_path(bags_dir, slide_id)
        foreign = bag_format.read(path, defaults.encoder)
        named = bag_id(foreign.slide_name)
        if named != slide_id and named in found.paths:
            raise BagError(
                path,
                actual=f"embeddings that say they are of slide {named!r}",
                expected=f"those of {slide_id!r}",
                hint="Name the file after its slide, or move it elsewhere.",
            )
        bag = to_bag(foreign, path=path, slide_id=slide_id, layout=layout, defaults=defaults)
        write_bag(target, bag)
        fingerprints[slide_id] = bag.meta.fingerprint
        return ConversionResult(
            slide_id=slide_id,
            n_tiles=len(bag.features),
            unknown=unknown_fields(bag.meta),
            named="" if named.startswith(slide_id) or slide_id.startswith(named) else named,
        )

    results = _convert_each(found.paths, convert, on_slide)
    made = list(fingerprints.values())
    try:
        check_no_tie(source, made, hint=_DIFFERENT_HINT)
    except BagError:
        for slide_id in fingerprints:
            bag_path(bags_dir, slide_id).unlink()
        raise
    usual, n_usual = next(iter(Counter(made).most_common(1)), (None, 0))

    def keep_usual(result: ConversionResult) -> ConversionResult:
        slide_id = result.slide_id
        if usual is not None and slide_id in fingerprints:
            own = [(found.paths[slide_id], fingerprints[slide_id])]
            try:
                check_fingerprint(
                    usual, own, source=f"{n_usual:,} of {len(made):,} bags",
                    hint=_DIFFERENT_HINT,
                )  # fmt: skip
            except BagError as error:
                bag_path(bags_dir, slide_id).unlink()
                return ConversionResult(slide_id=slide_id, problem=str(error))
        return result

    return [
        *map(keep_usual, results),
        *(ConversionResult(slide_id=n, left_out=reason) for n, reason in found.left_out.items()),
    ]


def export_bags(
    bags_dir: Path, out: Path, *, layout: str, on_slide: OnSlide
) -> list[ConversionResult]:
    """Convert a folder of bags into the format of another program, in a new or empty folder.

    Raises BagError if ``bags_dir`` holds no bag, or as many bags of one kind as of another, or
    ``layout`` can only be read, OutputError if ``out`` is not empty, or cannot be written.
    """
    bag_format = BAG_FORMATS[layout]
    write = bag_format.write
    if write is None:
        raise BagError(layout, actual="a layout that can be imported only")
    bag_refs = open_bags(bags_dir)
    fingerprints: list[Fingerprint] = []
    for bag_ref in bag_refs.values():
        with suppress(BagError):  # It is reported when its turn comes.
            fingerprints.append(read_bag_info(bag_ref).meta.fingerprint)
    check_no_tie(bags_dir, fingerprints, hint=_APART_HINT)
    _make_new_folder(out)
    usual, n_usual = next(iter(Counter(fingerprints).most_common(1)), (None, 0))

    def convert(slide_id: str, bag_ref: BagRef) -> ConversionResult:
        bag = read_slide_bag(slide_id, bag_ref)
        if usual is not None:
            check_fingerprint(
                usual, [(bag_ref, bag.meta.fingerprint)],
                source=f"{n_usual:,} of {len(fingerprints):,} bags",
            )  # fmt: skip
        if bag.meta.kind != TILE:
            raise BagError(
                bag_ref, actual=f"a bag of kind {bag.meta.kind!r}", expected="one of tiles"
            )
        unknown = unknown_fields(bag.meta)
        if missing := bag_format.required & set(unknown):
            raise BagError(
                bag_ref,
                actual=f"{', '.join(sorted(missing))} unknown",
                expected=f"known, as {layout} needs it",
                hint=_how_to_know(missing),
            )
        write(out, bag)
        return ConversionResult(slide_id=slide_id, n_tiles=len(bag.features), unknown=unknown)

    return _convert_each(bag_refs, convert, on_slide)


def _how_to_know(missing: Collection[str]) -> str:
    """Return how imported bags get to know the fields that a layout needs, if they can."""
    if "coords" in missing:
        return "Only --to torch does without coordinates."
    options = [_OPTIONS[name] for name in sorted(missing)]
    return f"Import the bags again with {' and '.join(options)}."


def _convert_each(
    refs: Mapping[str, Ref], convert: Callable[[str, Ref], ConversionResult], on_slide: OnSlide
) -> list[ConversionResult]:
    """Convert slides one by one; only an OutputError stops the others."""
    results = []
    for slide_id in refs:
        try:
            result = convert(slide_id, refs[slide_id])
        except OutputError:
            raise
        except MilError as error:
            result = ConversionResult(slide_id=slide_id, problem=str(error))
        results.append(result)
        on_slide(len(results), len(refs))
    return results


def _make_new_folder(path: Path) -> None:
    why = why_no_folder(path)
    if why or (path.is_dir() and any(path.iterdir())):
        raise OutputError(
            path,
            actual=why or "there is something already",
            expected="a new or empty folder",
            hint="Name another folder." if why else "Name another folder, or empty this one.",
        )
    make_folder(path)
