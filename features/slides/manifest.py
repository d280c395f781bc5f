"""Tables that list slides or their resolution, and the check for unique slide ids."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from features.errors import SlideError, TableError
from features.slides.reader import slide_id_of, split_scene
from features.slides.resolution import SQUARE_FACTOR
from features.utils.files import ignores_case
from features.utils.paths import parse_url
from features.utils.tables import column_key, find_column, find_listed_file, read_table, stated_path

__all__ = [
    "check_unique_ids",
    "match_files",
    "read_mpp_table",
    "read_slide_table",
    "states_resolutions",
]


_AXES = ("mpp_x", "mpp_y")
_PATH_COLUMNS = ("path", "slide_path", "file")
_DECIMAL_COMMA = re.compile(r"\d*,\d+")


def read_mpp_table(path: Path) -> dict[str, float]:
    """Read µm per level-0 px by slide id, from a CSV with columns ``slide_id`` and ``mpp``.

    Instead of ids there may be paths, as in a table of slides, and instead of ``mpp`` the columns
    ``mpp_x`` and ``mpp_y``, of which the geometric mean counts. Raises TableError if a column is
    missing, a value is not a positive number, a slide has two, or pixels are no squares.
    """
    table = read_table(path)
    slide_column = find_column(
        table, ["slide_id", "image_id", *_PATH_COLUMNS], where=path, what="slide ids"
    )
    stated = set(map(column_key, table.columns))
    along_axes = "mpp" not in stated and stated >= set(_AXES)
    names = [
        find_column(table, [name], where=path, what="µm per level-0 pixel")
        for name in (_AXES if along_axes else ["mpp"])
    ]
    has_paths = column_key(slide_column) in _PATH_COLUMNS
    values: dict[str, float] = {}
    rows = zip(table.index + 2, table[slide_column], table[names].to_numpy().tolist(), strict=True)
    for row, slide, cells in rows:
        if not slide:
            raise _empty_cell(path, row, slide_column)
        where = f"{path}, row {row}"
        along = [_parse_mpp(where, *pair) for pair in zip(names, cells, strict=True)]
        if max(along) >= SQUARE_FACTOR * min(along):
            raise TableError(
                where,
                actual=f"{along[0]:g} x {along[1]:g} µm per pixel",
                expected="squares, as scanners have",
                hint="Write one column 'mpp' with the right number.",
            )
        mpp = along[0] if len(set(along)) == 1 else math.sqrt(math.prod(along))
        slide_id = slide_id_of(stated_path(path, slide) if has_paths else slide)
        if values.setdefault(slide_id, mpp) != mpp:
            raise TableError(
                where,
                actual=f"{names[0]} {cells[0]!r} of slide {slide!r}, which has another above",
                expected="one per slide",
            )
    return values


def states_resolutions(path: Path) -> bool:
    """Return whether a table of slides has a column of µm per px, see :func:`read_mpp_table`."""
    return not {"mpp", *_AXES}.isdisjoint(map(column_key, read_table(path).columns))


def _parse_mpp(where: str, name: str, text: str) -> float:
    with suppress(ValueError):
        mpp = float(text)
        if math.isfinite(mpp) and mpp > 0:
            return mpp
    raise TableError(
        where,
        actual=f"{name} {text!r}",
        expected="a number of µm per pixel, above 0",
        hint="Write it with a decimal point, such as 0.25."
        if _DECIMAL_COMMA.fullmatch(text)
        else "Write one number without a unit, such as 0.25 for a 40x scan.",
    )


def read_slide_table(path: Path) -> list[Path]:
    """Read the slides listed in a CSV; paths are relative to its folder, URLs are kept.

    Raises TableError if there is no column of paths, or a listed file does not exist.
    """
    table = read_table(path)
    column = find_column(
        table, _PATH_COLUMNS, where=path, what="paths of slides",
        otherwise="Name the folder of the slides instead, or add a column 'path' of their files.",
    )  # fmt: skip
    if (table[column] == "").any():
        raise _empty_cell(path, table.index[table[column] == ""][0] + 2, column)
    return [
        Path(text) if parse_url(text) else find_listed_file(path, row, text, expected="a slide")
        for row, text in zip(table.index + 2, table[column], strict=True)
    ]


def _empty_cell(path: Path, row: int, column: str) -> TableError:
    return TableError(
        f"{path}, row {row}", actual=f"no {column}", expected="one in every row",
        hint="Fill it in or delete the row.",
    )  # fmt: skip


def match_files(
    paths: Sequence[Path], slide_ids: Collection[str], *, option: str
) -> dict[str, Path]:
    """Return the file of each slide id, as far as there is one; a scene's is that of its slide.

    Raises SlideError if a slide has several files; the message names ``option``.
    """
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(slide_id_of(path), []).append(path)
    matched: dict[str, list[Path]] = {}
    for slide_id in slide_ids:
        found = files.get(slide_id) or files.get(split_scene(slide_id)[0])
        if found:
            matched[slide_id] = found
    named = sorted({path for found in matched.values() for path in found})
    check_unique_ids(named, option=option)
    return {slide_id: found[0] for slide_id, found in matched.items()}


def check_unique_ids(
    paths: Sequence[Path], *, option: str, results_dir: Path | None = None
) -> None:
    """Raise SlideError for slides of the same id, whose results would have the same name.

    So have those of ``a`` and ``A`` if the file system of ``results_dir`` ignores case. The message
    names ``option``, the command-line option of that folder.
    """
    has_one_case = results_dir is not None and ignores_case(results_dir)
    names = [
        slide_id.casefold() if has_one_case else slide_id for slide_id in map(slide_id_of, paths)
    ]
    for slide_id, n_paths in Counter(names).items():
        if n_paths > 1:
            same = [str(path) for path, name in zip(paths, names, strict=True) if name == slide_id]
            raise SlideError(
                f"slide {slide_id!r}",
                actual=f"{n_paths} files of that name: {', '.join(same[:3])}",
                expected="one file per slide id",
                hint=f"Rename one, or write into different folders with {option}.",
            )
