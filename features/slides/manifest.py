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
from features.utils.files import path_exists
from features.utils.paths import parse_url
from features.utils.tables import find_column, read_table

__all__ = ["check_unique_ids", "match_files", "read_mpp_table", "read_slide_table"]


_DECIMAL_COMMA = re.compile(r"\d*,\d+")


def read_mpp_table(path: Path) -> dict[str, float]:
    """Read µm per level-0 px by slide id, from a CSV with columns ``slide_id`` and ``mpp``.

    Raises TableError if a column is missing, a value is not a positive number, or a slide has two.
    """
    table = read_table(path)
    slide_column = find_column(table, ["slide_id", "image_id"], where=path, what="slide ids")
    mpp_column = find_column(table, ["mpp"], where=path, what="µm per level-0 pixel")
    values: dict[str, float] = {}
    columns = zip(table.index + 2, table[slide_column], table[mpp_column], strict=True)
    for row, slide, text in columns:
        if not slide:
            raise _empty_cell(path, row, slide_column)
        with suppress(ValueError):
            mpp = float(text)
            if math.isfinite(mpp) and mpp > 0:
                if values.setdefault(slide_id_of(Path(slide)), mpp) != mpp:
                    raise TableError(
                        f"{path}, row {row}",
                        actual=f"mpp {text!r} of slide {slide!r}, which has another above",
                        expected="one per slide",
                    )
                continue
        raise TableError(
            f"{path}, row {row}",
            actual=f"mpp {text!r}",
            expected="a number of µm per pixel, above 0",
            hint="Write it with a decimal point, such as 0.25."
            if _DECIMAL_COMMA.fullmatch(text)
            else "Write one number without a unit, such as 0.25 for a 40x scan.",
        )
    return values


def read_slide_table(path: Path) -> list[Path]:
    """Read the slides listed in a CSV; paths are relative to its folder, URLs are kept.

    Raises TableError if there is no column of paths, or a listed file does not exist.
    """
    table = read_table(path)
    column = find_column(
        table, ["path", "slide_path", "file"], where=path, what="paths of slides",
        otherwise="Name the folder of the slides instead, or add a column 'path' of their files.",
    )  # fmt: skip
    if (table[column] == "").any():
        raise _empty_cell(path, table.index[table[column] == ""][0] + 2, column)
    slides = [Path(text) if parse_url(text) else path.parent / text for text in table[column]]
    for row, slide in zip(table.index + 2, slides, strict=True):
        if parse_url(slide) is None and not path_exists(slide):
            raise TableError(f"{path}, row {row}", actual=f"no file {slide}", expected="a slide")
    return slides


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


def check_unique_ids(paths: Sequence[Path], *, option: str) -> None:
    """Raise SlideError for slides of the same id, whose results would have the same name.

    The message names ``option``, the command-line option of the results folder.
    """
    counts = Counter(slide_id_of(path) for path in paths)
    for slide_id, n_paths in counts.items():
        if n_paths > 1:
            same = [str(path) for path in paths if slide_id_of(path) == slide_id]
            raise SlideError(
                f"slide {slide_id!r}",
                actual=f"{n_paths} files of that name: {', '.join(same[:3])}",
                expected="one file per slide id",
                hint=f"Rename one, or write into different folders with {option}.",
            )
