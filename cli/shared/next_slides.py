"""Slides and series of the commands that others propose: folders that are known, or placeholders.

A placeholder stands in capitals, as ``SLIDES``.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from features.utils.paths import has_slide_suffix, parse_url

if TYPE_CHECKING:
    from features.bags.bag import Fingerprint

__all__ = ["embedded_files", "repeat_paths", "source_option"]

_N_REPEATED = 5


def repeat_paths(paths: Sequence[Path]) -> Sequence[Path | str]:
    """Return the slides of a command for the next one: as given, or their folders if many."""
    if len(paths) <= _N_REPEATED:
        return paths
    folders = dict.fromkeys(
        path.parent if has_slide_suffix(path.name) and parse_url(path) is None else path
        for path in paths
    )
    return [*folders] if len(folders) <= _N_REPEATED else ["SLIDES"]


def source_option(
    fingerprint: Fingerprint,
    bags: Path,
    slide_ids: Collection[str],
    *,
    slides: Path | None = None,
    series: Path | None = None,
) -> list[str]:
    """Return ``--slides`` or ``--series``, whichever bags of a fingerprint need, and its value.

    The value is the one given; else the folder of those of ``slide_ids`` that ``embed.csv`` beside
    the bags names; else a placeholder.
    """
    from features.series.config import is_series_fingerprint

    if is_series_fingerprint(fingerprint):
        return ["--series", str(series or "SERIES")]
    if slides is None:
        files = embedded_files(bags)
        slides = _common_folder([files[name] for name in files.keys() & set(slide_ids)])
    return ["--slides", str(slides or "SLIDES")]


def embedded_files(bags: Path) -> dict[str, Path]:
    """Return the files of slides by id that ``embed.csv`` beside bags names and that are there."""
    from features.errors import TableError
    from features.utils.tables import read_table
    from features.utils.text import normalize_name

    with suppress(TableError):
        rows = read_table(bags / "embed.csv").to_dict("records")
        paths = {normalize_name(str(row["slide_id"])): str(row.get("path", "")) for row in rows}
        return {name: Path(path) for name, path in paths.items() if path and Path(path).exists()}
    return {}


def _common_folder(files: Collection[Path]) -> Path | None:
    """Return the innermost folder that holds all files; None without one below the root."""
    with suppress(ValueError):  # no files, or relative and absolute ones
        common = Path(os.path.commonpath([file.parent for file in files]))
        return None if common == Path(os.sep) else common
    return None
