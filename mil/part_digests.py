"""Digests that tie the parts of a run together, and the errors that damaged parts raise."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from features.errors import TableError, one_line
from features.utils.files import missing_folder
from features.utils.text import list_names
from mil.errors import CalibrationError, RunError

__all__ = [
    "DAMAGE",
    "FIRST_VERSION",
    "MARKERS",
    "check_digests",
    "check_run",
    "damaged_run",
    "hash_description",
    "hash_file",
    "no_run_error",
    "with_digests",
]

DAMAGE = (
    ArithmeticError, AttributeError, CalibrationError, LookupError, MemoryError, OSError,
    RecursionError, RuntimeError, SafetensorError, TableError, TypeError, ValueError,
)  # fmt: skip
"""Errors of readers that were given other bytes than the writer wrote."""

MARKERS = ("model.json", "combination.json", "labels.json")
"""Files that mark the folder of a finished run; each holds the digests of the other files."""

FIRST_VERSION = {"mil-run": 3, "mil-combination": 1, "mil-label-run": 2}
"""First version of each format that holds digests; earlier runs are not checked."""

_PARTS = "parts_sha256"
_DIGEST = "sha256"
_SUFFIXES = frozenset({".csv", ".json", ".npz", ".safetensors"})


def no_run_error(path: Path) -> RunError:
    """Return the error on a path that is no folder of a finished run, with runs that are near."""
    near = [path.parent] if path.name in MARKERS else []
    near += sorted(file.parent for name in MARKERS for file in path.glob(f"*/{name}"))
    names = [shlex.quote(str(run)) for run in near]
    return RunError(
        path,
        actual="no model.json in it" if path.is_dir() else missing_folder(path),
        expected="the folder of a finished run",
        hint=f"Name {'one of ' if len(names) > 1 else ''}{list_names(names)}."
        if near
        else "Make one with 'mil train', or name the folder of another run.",
    )


def with_digests(described: Mapping[str, object], path: Path) -> dict[str, object]:
    """Return a description with the SHA-256 of each part in the folder, and of itself.

    Parts are all files of tensors and tables, so these are written before. The settings for a
    further training are none: they name the table's path, and the same run elsewhere is the same.
    """
    parts = {
        file.name: hash_file(file)
        for file in sorted(path.iterdir())
        if file.suffix in _SUFFIXES and file.name not in MARKERS and file.name[0] != "."
    }
    content = {**described, _PARTS: parts}
    return {**content, _DIGEST: hash_description(content)}


def check_digests(path: Path, described: Mapping[str, Any]) -> None:
    """Raise RunError if the description or a part that it names is not as it was written.

    A description of an earlier version is checked if it holds a digest all the same.
    """
    first = FIRST_VERSION.get(described.get("format", ""), 1)
    if described.get("format_version", 0) < first and not {_PARTS, _DIGEST} & described.keys():
        return
    if described.get(_DIGEST) != hash_description(described):
        raise _changed(path, described, f"{_marker_of(path)} was changed afterwards")
    for name, digest in described.get(_PARTS, {}).items():
        file = path / Path(name).name
        if not file.is_file():
            raise _changed(path, described, f"{name} is missing")
        if hash_file(file) != digest:
            raise _changed(path, described, f"{name} was changed afterwards")


def check_run(path: Path) -> None:
    """Raise RunError if a file of a run is not as it was written; the model is not read."""
    try:
        check_digests(path, _read_marker(path))
    except DAMAGE as error:
        raise damaged_run(path, str(error)) from error


def _read_marker(path: Path) -> dict[str, Any]:
    marker = _marker_of(path)
    try:
        described = json.loads((path / marker).read_text(encoding="utf-8"))
        return dict(described)
    except DAMAGE as error:
        raise damaged_run(path, f"{marker}: {error}") from error


def _marker_of(path: Path) -> str:
    return next((name for name in MARKERS if (path / name).is_file()), MARKERS[0])


def hash_file(file: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal text."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def hash_description(described: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a description without its own, whatever its layout."""
    content = {name: value for name, value in described.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def damaged_run(
    path: Path,
    reason: str,
    *,
    expected: str = "a whole run",
    again: str = "train again with 'mil train'",
) -> RunError:
    """Return the error on a damaged run, and on how to make it again."""
    return RunError(
        path,
        actual=f"damaged ({one_line(reason, max_chars=200)})",
        expected=expected,
        hint=f"Copy it again, or {again}.",
    )


def _changed(path: Path, described: Mapping[str, Any], actual: str) -> RunError:
    settings = described.get("settings")
    if described.get("format") == "mil-combination":
        command, again = "mil combine", "combine the runs again"
    elif isinstance(settings, dict) and settings.get("recalibration"):
        command, again = "mil recalibrate", "recalibrate again"
    else:
        command, again = "mil train", "train again"
    return RunError(
        path,
        actual=f"damaged ({actual})",
        expected=f"all parts as '{command}' wrote them",
        hint=f"Copy the run again, or {again} with '{command}'.",
    )
