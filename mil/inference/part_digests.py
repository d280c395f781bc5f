"""Digests that tie the parts of a run together, and the errors that damaged parts raise."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from features.errors import TableError
from mil.errors import CalibrationError, RunError

__all__ = [
    "DAMAGE",
    "FIRST_VERSION",
    "check_digests",
    "damaged_run",
    "hash_description",
    "hash_file",
    "with_digests",
]

DAMAGE = (
    ArithmeticError, AttributeError, CalibrationError, LookupError, MemoryError, OSError,
    RecursionError, RuntimeError, SafetensorError, TableError, TypeError, ValueError,
)  # fmt: skip
"""Errors of readers that were given other bytes than the writer wrote."""

FIRST_VERSION = 3
"""First version of ``model.json`` that holds digests; earlier runs are not checked."""

_PARTS = "parts_sha256"
_DIGEST = "sha256"
_SUFFIXES = frozenset({".csv", ".json", ".npz", ".safetensors"})
_NOT_PARTS = frozenset({"history.csv", "judged.csv", "model.json"})
"""Files for reports, which a prediction does not depend on."""


def with_digests(described: Mapping[str, object], path: Path) -> dict[str, object]:
    """Return a description with the SHA-256 of each part in the folder, and of itself.

    Parts are all files of tensors and tables that were written before.
    """
    parts = {
        file.name: hash_file(file)
        for file in sorted(path.iterdir())
        if file.suffix in _SUFFIXES and file.name not in _NOT_PARTS and file.name[0] != "."
    }
    content = {**described, _PARTS: parts}
    return {**content, _DIGEST: hash_description(content)}


def check_digests(path: Path, described: Mapping[str, Any]) -> None:
    """Raise RunError if ``model.json`` or a part that it names is not as it was written."""
    if described["format_version"] < FIRST_VERSION:
        return
    if described.get(_DIGEST) != hash_description(described):
        raise _changed(path, "model.json was changed")
    for name, sha256 in described[_PARTS].items():
        file = path / Path(name).name
        if not file.is_file():
            raise _changed(path, f"{name} is missing, which was there")
        if hash_file(file) != sha256:
            raise _changed(path, f"{name} was changed")


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
        actual=f"damaged ({' '.join(reason.split())[:200]})",
        expected=expected,
        hint=f"Copy it again, or {again}.",
    )


def _changed(path: Path, actual: str) -> RunError:
    return RunError(
        path,
        actual=f"damaged ({actual} after training)",
        expected="all parts as 'mil train' wrote them",
        hint="Copy the run again, or train again with 'mil train'.",
    )
