"""Values of options: slides and their resolutions, folders, settings of tiles."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from cli.console import in_thread, options_elsewhere, warn
from cli.options import EngineName
from features.utils.files import is_device

if TYPE_CHECKING:
    from features.slides.search import SlideSearch
    from features.tiling.grid import TileSettings
    from mil.data.cohort import Cohort

__all__ = [
    "check_output",
    "files_of",
    "folder_for_bags",
    "given_options",
    "only_folder",
    "parse_columns",
    "path_beside",
    "reject_options",
    "require_one_resolution",
    "require_ray_for_address",
    "resolve_mpp_table",
    "resolve_slides",
    "select_shard",
    "tile_settings",
]

T = TypeVar("T")

_ALSO = {".html": ".htm", ".csv": ".txt"}
"""Another suffix of the same kind of file."""
_SUFFIXES = frozenset({
    ".csv", ".docx", ".feather", ".gz", ".h5", ".hdf5", ".htm", ".html", ".jpeg", ".jpg", ".json",
    ".npz", ".parquet", ".pdf", ".pkl", ".png", ".pt", ".pth", ".safetensors", ".svg", ".tif",
    ".tiff", ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".zip",
})  # fmt: skip
"""Suffixes that say the kind of a file; others, as of ``fold0.5``, are a part of its name."""


def folder_for_bags(bags: Path) -> Path:
    """Return the folder to write bags to; raise for a packed store."""
    from features.bags.store import is_bag_store

    if is_bag_store(bags):
        raise typer.BadParameter(
            f"{str(bags)!r} is a packed store, to which no bag can be added: name a folder",
            param_hint="--bags",
        )
    return bags


def given_options(context: typer.Context, *names: str) -> list[str]:
    """Return these options of a command, by parameter, as they were given: for the next command."""
    words: list[str] = []
    for parameter in context.command.params:
        name = str(parameter.name)
        source = getattr(context.get_parameter_source(name), "name", "")
        if name in names and source == "COMMANDLINE":
            value = context.params[name]
            for one in value if isinstance(value, list | tuple) else [value]:
                words.append(parameter.opts[0])
                words += [] if one is True else [str(getattr(one, "value", one))]
    return words


def tile_settings(
    *, mpp: float, tile_px: int, overlap: int, min_tissue: float, max_tiles: int | None, rules: str
) -> TileSettings:
    """Return the settings of tiles, in px and µm/px, that options state."""
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


def resolve_slides(paths: list[Path], *, has_mpp: bool = False) -> SlideSearch:
    """Find the slides that files, folders, URLs and CSV tables name, and what is passed over.

    Warn of resolutions in such a table, unless options state some (``has_mpp``).
    """
    from features.slides.manifest import read_slide_table, states_resolutions
    from features.slides.search import search_slides

    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    listed = [slide for path in tables for slide in read_slide_table(path)]
    for table in tables:
        if not has_mpp and states_resolutions(table):
            text = f"its resolutions are read with --mpp-table {shlex.quote(str(table))} only"
            warn(f"warning: {table}: {text}. {options_elsewhere(text)}".rstrip())
    named = [path for path in paths if path not in tables]
    return in_thread(lambda: search_slides([*named, *listed]))


def select_shard(slides: list[T], shard: str | None) -> list[T]:
    """Return part I of N of the slides or series, every Nth from the Ith on; all without shard."""
    if shard is None:
        return slides
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, n_parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= n_parts:
        raise typer.BadParameter(f"{shard!r} is not I/N with I from 1 to N", param_hint="--shard")
    return slides[number - 1 :: n_parts]


def reject_options(given: Mapping[str, object], why: str) -> None:
    """Raise for the first of these options that was given."""
    for option, value in given.items():
        if value:
            raise typer.BadParameter(why, param_hint=option)


def path_beside(out: Path, suffix: str) -> Path:
    """Return the path of a file that is written beside another, as ``p.v2.csv`` beside ``p.v2``."""
    stem = out.stem if out.suffix.lower() in _SUFFIXES else out.name
    return out.parent / f"{stem}{suffix}"


def check_output(
    out: Path,
    inputs: Iterable[Path | None],
    *,
    suffix: str,
    beside: Sequence[Path] = (),
    makes_folder: bool = False,
) -> None:
    """Raise if a file that a command is to write is one that it reads, or cannot be there.

    ``out`` is the one that ``--out`` names, ``beside`` are tables that are written with it. Its
    name may not end as that of another kind of file than ``suffix``, the only one that the command
    writes. Its folder must be there, unless the command makes it. A device, such as ``/dev/null``,
    would be replaced.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    why = next(filter(None, map(_why_no_file, (out, *beside))), "")
    taken = None if why else next(
        (path for path in beside if path.is_dir() or os.path.realpath(path) in read), None
    )  # fmt: skip
    if why:
        fault = why
    elif not (makes_folder or out.parent.is_dir()):
        fault = f"there is no folder {out.parent}; make it first"
    elif out.is_dir():
        fault = f"{out} is a folder; name a file in it"
    elif os.path.realpath(out) in read:
        fault = f"it would replace {out}, which is read; name another"
    elif out.suffix.lower() in _SUFFIXES - {suffix, _ALSO.get(suffix)}:
        fault = f"{out.name} would be written as {suffix}, the only kind; let its name end so"
    elif taken is not None:
        why = "is a folder" if taken.is_dir() else "is read"
        fault = f"a table beside {out.name} would replace {taken}, which {why}; name another"
    else:
        return
    raise typer.BadParameter(fault, param_hint="--out")


def _why_no_file(path: Path) -> str:
    """Return why a path can be no file that is written; empty if it can, or is a folder."""
    if str(path) == "-":
        return "standard output cannot be named; name a file"
    try:
        path.stat()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"{path.name} cannot be written ({reason}); name another file"
    return f"{path} is no file; name one" if is_device(path) else ""


def only_folder(folders: Sequence[Path]) -> Path:
    """Return the only folder of bags; raise for several, which only combined runs take."""
    if len(folders) > 1:
        raise typer.BadParameter("one folder for a run of one encoder", param_hint="--bags")
    return folders[0]


def parse_columns(given: Sequence[str] | None) -> dict[str, str]:
    """Return the names of columns by role, from texts such as ``label=diagnosis``.

    A usual name of a column, such as ``patient_id``, stands for its role.
    """
    from mil.data.cohort import ROLES

    roles = {usual: role for role, names in ROLES.items() for usual in (role, *names)}
    roles |= {"centre": "center", "centre_id": "center", "image": "slide"}
    columns: dict[str, str] = {}
    for text in given or ():
        stated, _, name = (part.strip() for part in text.partition("="))
        role = roles.get(stated.casefold(), "")
        if not role or not name:
            raise typer.BadParameter(
                f"{text!r} is not ROLE=NAME with one of the roles {', '.join(ROLES)}",
                param_hint="--column",
            )
        if role in columns:
            raise typer.BadParameter(f"two columns of the {role}", param_hint="--column")
        columns[role] = name
    return columns


def require_one_resolution(*, slide_mpp: float | None, mpp_table: Path | None) -> None:
    """Raise for two sources of the slides' resolution, µm/px."""
    if slide_mpp is not None and mpp_table is not None:
        raise typer.BadParameter("give either --slide-mpp or --mpp-table", param_hint="--mpp-table")


def require_ray_for_address(engine: EngineName, address: str | None) -> None:
    """Raise for the address of a cluster that would not be used."""
    if address is not None and engine is not EngineName.ray:
        raise typer.BadParameter("goes with --engine ray", param_hint="--address")


def resolve_mpp_table(
    slides: list[Path], *, slide_mpp: float | None, mpp_table: Path | None
) -> dict[str, float]:
    """Return µm per level-0 px by slide id, as far as options state it.

    Warn of a row whose id is another spelling of that of a slide without a row, or if no row is of
    any slide; note how many are of none.
    """
    from features.slides.manifest import read_mpp_table
    from features.slides.reader import slide_id_of
    from features.utils.text import list_names, pluralize, spelling_hint

    if mpp_table is not None:
        stated = read_mpp_table(mpp_table)
        slide_ids = {slide_id_of(path) for path in slides}
        others = sorted(stated.keys() - slide_ids)
        if hint := spelling_hint(others, slide_ids - stated.keys()):
            warn(f"warning: {mpp_table}, a row of no slide: {hint}")
        elif slide_ids.isdisjoint(stated):
            warn(f"warning: {mpp_table}: no row is of a slide given")
        elif others:
            count = pluralize(len(others), "rows")
            warn(f"note: {mpp_table}: {count} of no slide given: {list_names(others)}")
        return stated
    return {slide_id_of(path): slide_mpp for path in slides} if slide_mpp is not None else {}


def files_of(cohort: Cohort, folder: Path, *, option: str) -> dict[str, Path]:
    """Return the files of a cohort's slides by slide id, as far as they are in the folder.

    Raises
    ------
    SlideError
        If there is none, or two have the same name, which makes ``option`` ambiguous.
    """
    from features.errors import SlideError
    from features.slides.manifest import match_files
    from features.slides.search import find_slides

    slide_ids = {slide for patient in cohort.patients for slide in patient.slide_ids}
    files = match_files(find_slides([folder]), slide_ids, option=option)
    if not files:
        raise SlideError(
            folder,
            actual=f"none of the {len(slide_ids)} slides (first: {min(slide_ids)!r}) is in it",
            expected="files named after the slide ids",
        )  # fmt: skip
    return files
