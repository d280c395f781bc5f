"""A whole folder of another program's bags into ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from features.bags.bag import TILE, Bag, BagRef, Fingerprint, check_fingerprint
from features.bags.formats.base import ImportDefaults, to_bag, unknown_fields
from features.bags.formats.registry import BAG_FORMATS
from features.bags.h5 import bag_path, read_slide_bag, write_bag
from features.bags.store import open_bags
from features.errors import BagError, MilError, OutputError
from features.utils.files import make_folder

__all__ = ["ConversionResult", "OnSlide", "export_bags", "import_bags"]

Place = TypeVar("Place")

OnSlide = Callable[[int, int], None]
"""Told how many slides are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class ConversionResult:
    """What became of one slide."""

    slide_id: str
    """Its name."""
    n_tiles: int = 0
    """Embeddings in its bag."""
    unknown: tuple[str, ...] = ()
    """What the bag does not know about its making."""
    problem: str = ""
    """Why nothing was written; empty if all went well."""


def import_bags(
    source: Path, bags_dir: Path, *, layout: str, defaults: ImportDefaults, on_slide: OnSlide
) -> list[ConversionResult]:
    """Read another program's bags and write each as a bag of ours.

    One that cannot be read does not stop the others.

    Parameters
    ----------
    source
        Folder of the other program.
    bags_dir
        New or empty folder for the bags.
    layout
        A name of :data:`features.bags.formats.registry.BAG_FORMATS`.
    defaults
        What the user adds to what the files say.
    on_slide
        Told after each slide.

    Raises
    ------
    BagError
        If ``source`` holds no bag of that layout.
    OutputError
        If ``bags_dir`` holds anything, or cannot be written.
    """
    form = BAG_FORMATS[layout]
    if not source.is_dir():
        raise BagError(source, actual="there is no such folder", expected=f"bags of {layout}")
    paths = form.find(source)
    _new_folder(bags_dir)

    def bring(slide_id: str, path: Path) -> ConversionResult:
        target = bag_path(bags_dir, slide_id)
        foreign = form.read(path, encoder=defaults.encoder)
        bag = to_bag(foreign, path=path, slide_id=slide_id, layout=layout, defaults=defaults)
        write_bag(target, bag)
        return ConversionResult(
            slide_id=slide_id, n_tiles=len(bag.features), unknown=unknown_fields(bag.meta)
        )

    return _convert_each(paths, bring, on_slide)


def export_bags(
    bags_dir: Path, out: Path, *, layout: str, on_slide: OnSlide
) -> list[ConversionResult]:
    """Write a folder of bags as another program wants them.

    Parameters
    ----------
    bags_dir
        Folder of bags.
    out
        New or empty folder.
    layout
        A name of :data:`features.bags.formats.registry.BAG_FORMATS` that can be written.
    on_slide
        Told after each slide.

    Raises
    ------
    BagError
        If ``bags_dir`` holds no bag, or ``layout`` can only be read.
    OutputError
        If ``out`` holds anything, or cannot be written.
    """
    form = BAG_FORMATS[layout]
    write = form.write
    if write is None:
        raise BagError(layout, actual="a layout that can be imported only")
    paths = open_bags(bags_dir)
    _new_folder(out)
    made: list[Fingerprint] = []

    def bring(slide_id: str, path: BagRef) -> ConversionResult:
        bag = read_slide_bag(slide_id, path)
        made.append(bag.meta.fingerprint)
        check_fingerprint(made[0], [(path, made[-1])], source="the first bag exported")
        unknown = unknown_fields(bag.meta)
        _check_exportable(path, bag, lacking=form.needs & set(unknown), layout=layout)
        write(out, bag)
        return ConversionResult(slide_id=slide_id, n_tiles=len(bag.features), unknown=unknown)

    return _convert_each(paths, bring, on_slide)


def _convert_each(
    places: Mapping[str, Place], bring: Callable[[str, Place], ConversionResult], on_slide: OnSlide
) -> list[ConversionResult]:
    """Bring slides over one by one; what is wrong with one stays with it."""
    outcomes = []
    for slide_id in places:
        try:
            outcome = bring(slide_id, places[slide_id])
        except OutputError:
            raise
        except MilError as error:
            outcome = ConversionResult(slide_id=slide_id, problem=str(error))
        outcomes.append(outcome)
        on_slide(len(outcomes), len(places))
    return outcomes


def _new_folder(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            path,
            actual="there is something already",
            expected="a new or empty folder",
            hint="Name another folder, or empty this one.",
        )
    make_folder(path)


def _check_exportable(path: BagRef, bag: Bag, *, lacking: Collection[str], layout: str) -> None:
    if bag.meta.kind != TILE:
        raise BagError(path, actual=f"a bag of kind {bag.meta.kind!r}", expected="one of tiles")
    if lacking:
        raise BagError(
            path,
            actual=f"{', '.join(sorted(lacking))} unknown",
            expected=f"known, as {layout} needs it",
            hint="Import the bags again and give what is missing.",
        )
