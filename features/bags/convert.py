"""A whole folder of another program's bags into ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from features.bags.bag import TILE, Bag, BagPlace, Fingerprint, require_same_fingerprint
from features.bags.formats.base import Given, as_bag, unknown_of
from features.bags.formats.registry import LAYOUTS
from features.bags.h5 import bag_path, read_bag_of, write_bag
from features.bags.store import open_bags
from features.errors import BagError, KnownError, OutputError
from features.utils.files import make_folder

__all__ = ["Exchanged", "OnSlide", "export_bags", "import_bags"]

Place = TypeVar("Place")

OnSlide = Callable[[int, int], None]
"""Told how many slides are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Exchanged:
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
    source: Path, bags_dir: Path, *, layout: str, given: Given, on_slide: OnSlide
) -> list[Exchanged]:
    """Read another program's bags and write each as a bag of ours.

    One that cannot be read does not stop the others.

    Parameters
    ----------
    source
        Folder of the other program.
    bags_dir
        New or empty folder for the bags.
    layout
        A name of :data:`features.bags.formats.registry.LAYOUTS`.
    given
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
    form = LAYOUTS[layout]
    if not source.is_dir():
        raise BagError(source, found="there is no such folder", expected=f"bags of {layout}")
    paths = form.find(source)
    _new_folder(bags_dir)

    def bring(slide_id: str, path: Path) -> Exchanged:
        target = bag_path(bags_dir, slide_id)
        foreign = form.read(path, encoder=given.encoder)
        bag = as_bag(foreign, path=path, slide_id=slide_id, layout=layout, given=given)
        write_bag(target, bag)
        return Exchanged(slide_id=slide_id, n_tiles=len(bag.features), unknown=unknown_of(bag.meta))

    return _each(paths, bring, on_slide)


def export_bags(bags_dir: Path, out: Path, *, layout: str, on_slide: OnSlide) -> list[Exchanged]:
    """Write a folder of bags as another program wants them.

    Parameters
    ----------
    bags_dir
        Folder of bags.
    out
        New or empty folder.
    layout
        A name of :data:`features.bags.formats.registry.LAYOUTS` that can be written.
    on_slide
        Told after each slide.

    Raises
    ------
    BagError
        If ``bags_dir`` holds no bag, or ``layout`` can only be read.
    OutputError
        If ``out`` holds anything, or cannot be written.
    """
    form = LAYOUTS[layout]
    write = form.write
    if write is None:
        raise BagError(layout, found="a layout that can be imported only")
    paths = open_bags(bags_dir)
    _new_folder(out)
    made: list[Fingerprint] = []

    def bring(slide_id: str, path: BagPlace) -> Exchanged:
        bag = read_bag_of(slide_id, path)
        made.append(bag.meta.fingerprint)
        require_same_fingerprint(made[0], [(path, made[-1])], source="the first bag exported")
        unknown = unknown_of(bag.meta)
        _refuse_unfit(path, bag, lacking=form.needs & set(unknown), layout=layout)
        write(out, bag)
        return Exchanged(slide_id=slide_id, n_tiles=len(bag.features), unknown=unknown)

    return _each(paths, bring, on_slide)


def _each(
    places: Mapping[str, Place], bring: Callable[[str, Place], Exchanged], on_slide: OnSlide
) -> list[Exchanged]:
    """Bring slides over one by one; what is wrong with one stays with it."""
    outcomes = []
    for slide_id in places:
        try:
            outcome = bring(slide_id, places[slide_id])
        except OutputError:
            raise
        except KnownError as error:
            outcome = Exchanged(slide_id=slide_id, problem=str(error))
        outcomes.append(outcome)
        on_slide(len(outcomes), len(places))
    return outcomes


def _new_folder(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            path,
            found="there is something already",
            expected="a new or empty folder",
            advice="Name another folder, or empty this one.",
        )
    make_folder(path)


def _refuse_unfit(path: BagPlace, bag: Bag, *, lacking: Collection[str], layout: str) -> None:
    if bag.meta.kind != TILE:
        raise BagError(path, found=f"a bag of kind {bag.meta.kind!r}", expected="one of tiles")
    if lacking:
        raise BagError(
            path,
            found=f"{', '.join(sorted(lacking))} unknown",
            expected=f"known, as {layout} needs it",
            advice="Import the bags again and give what is missing.",
        )
