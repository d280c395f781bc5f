"""What options name: slides and their resolutions, folders, and the settings made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from cli.options import EngineName

if TYPE_CHECKING:
    from features.tiling.grid import TileSettings
    from mil.data.cohort import Cohort

__all__ = [
    "files_of",
    "folder_for_bags",
    "reject_options",
    "require_one_resolution",
    "require_ray_for_address",
    "resolve_mpp_table",
    "resolve_slides",
    "select_shard",
    "tile_settings",
]

T = TypeVar("T")


def folder_for_bags(bags: Path) -> Path:
    """The folder to write bags to; a packed store takes none."""
    from features.bags.store import is_bag_store

    if is_bag_store(bags):
        raise typer.BadParameter(
            f"{str(bags)!r} is a packed store, to which no bag can be added: name a folder",
            param_hint="--bags",
        )
    return bags


def tile_settings(
    *, mpp: float, tile_px: int, overlap: int, min_tissue: float, max_tiles: int | None, rules: str
) -> TileSettings:
    """Settings from the options that name them."""
    from features.tiling.artifacts import parse_rules
    from features.tiling.grid import TileSettings

    if overlap >= tile_px:
        raise typer.BadParameter(
            f"{overlap} px is not less than the tile's {tile_px} px", param_hint="--overlap"
        )
    return TileSettings(
        tile_px=tile_px, target_mpp=mpp, overlap_px=overlap, min_tissue=min_tissue,
        max_tiles=max_tiles, rules=parse_rules(rules),
    )  # fmt: skip


def resolve_slides(paths: list[Path]) -> list[Path]:
    """Slides named by files, folders, URLs and CSV tables."""
    from features.slides.manifest import read_slide_table
    from features.slides.reader import find_slides

    listed = [slide for p in paths if p.suffix == ".csv" for slide in read_slide_table(p)]
    found = find_slides([p for p in paths if p.suffix != ".csv"])
    return sorted(dict.fromkeys([*listed, *found]))


def select_shard(slides: list[T], shard: str | None) -> list[T]:
    """Part I of N of the slides or series: every Nth from the Ith on; all where shard is None."""
    if shard is None:
        return slides
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, n_parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= n_parts:
        raise typer.BadParameter(f"{shard!r} is not I/N with I from 1 to N", param_hint="--shard")
    return slides[number - 1 :: n_parts]


def reject_options(given: Mapping[str, object], why: str) -> None:
    """Refuse the first option of these that was given."""
    for option, value in given.items():
        if value:
            raise typer.BadParameter(why, param_hint=option)


def require_one_resolution(*, slide_mpp: float | None, mpp_table: Path | None) -> None:
    """Refuse two sources of the slides' resolution."""
    if slide_mpp is not None and mpp_table is not None:
        raise typer.BadParameter("give either --slide-mpp or --mpp-table", param_hint="--mpp-table")


def require_ray_for_address(engine: EngineName, address: str | None) -> None:
    """Refuse the address of a cluster that would not be used."""
    if address is not None and engine is not EngineName.ray:
        raise typer.BadParameter("goes with --engine ray", param_hint="--address")


def resolve_mpp_table(
    slides: list[Path], *, slide_mpp: float | None, mpp_table: Path | None
) -> dict[str, float]:
    """µm per level-0 px by slide id, where the user knows better than the files."""
    from features.slides.manifest import read_mpp_table
    from features.slides.reader import slide_id_of

    if mpp_table is not None:
        return read_mpp_table(mpp_table)
    return {slide_id_of(path): slide_mpp for path in slides} if slide_mpp is not None else {}


def files_of(cohort: Cohort, folder: Path, *, option: str) -> dict[str, Path]:
    """Files of a cohort's slides by slide id, as far as they are in the folder.

    Parameters
    ----------
    cohort
        The patients and the ids of their slides.
    folder
        Folder of slides, or one slide.
    option
        Option that two files of one name make ambiguous.

    Raises
    ------
    SlideError
        If none of them is there, or two have the same name.
    """
    from features.errors import SlideError
    from features.slides.manifest import check_unique_ids
    from features.slides.reader import find_slides, slide_id_of

    wanted = {slide for patient in cohort.patients for slide in patient.slide_ids}
    found = [path for path in find_slides([folder]) if slide_id_of(path) in wanted]
    if not found:
        raise SlideError(
            folder, actual=f"none of the {len(wanted)} slides (first: {min(wanted)!r}) is in it",
            expected="files named after the slide ids",
        )  # fmt: skip
    check_unique_ids(found, option=option)
    return {slide_id_of(path): path for path in found}
