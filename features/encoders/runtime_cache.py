"""Cache of what encoders are slow to make: ONNX exports, choices of runtime, hashes of weights.

Everything lies in the user's cache folder, or in the one that ``MIL_CACHE`` names, and may be
deleted at any time. A folder that cannot be written to costs time, not results; why it could not is
kept for :func:`take_write_error`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from features.errors import CONTENT_ERRORS, OutputError
from features.utils.files import atomic_write, make_folder, write_error

__all__ = [
    "EncoderRecord",
    "cache_folder",
    "cache_key",
    "exists",
    "load",
    "read_encoder_record",
    "store",
    "take_write_error",
    "write_encoder_record",
]

_MOST_FILES = 16
"""Exports that are kept; the oldest are removed."""

_write_errors: list[str] = []
"""Why entries could not be written, since the last call of :func:`take_write_error`."""


def cache_folder() -> Path:
    """Return the folder of the cache; it need not exist."""
    return Path(os.environ.get("MIL_CACHE") or platformdirs.user_cache_path("mil-slides"))


def cache_key(*parts: object) -> str:
    """Return the name of an entry, 32 hexadecimal characters, from all that determines it."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def load(name: str) -> bytes | None:
    """Return the bytes of an entry, None if there is none that can be read."""
    try:
        return (cache_folder() / name).read_bytes()
    except OSError:
        return None


def exists(name: str) -> bool:
    """Return whether there is such an entry."""
    return (cache_folder() / name).is_file()


def store(name: str, content: bytes) -> str:
    """Write an entry whole or not at all; return why it could not be written, else no text."""
    folder = cache_folder()
    try:
        make_folder(folder)
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    except (OutputError, OSError) as error:
        known = write_error(folder, error) if isinstance(error, OSError) else error
        _write_errors.append(
            f"the cache {folder} {known.actual}; the next start takes as long again. "
            "Free space there, or name another folder in MIL_CACHE."
        )
        return _write_errors[-1]
    _remove_oldest(folder, Path(name).suffix)
    return ""


def take_write_error() -> str:
    """Return why the cache could not be written since the last call, else no text."""
    first = _write_errors[0] if _write_errors else ""
    _write_errors.clear()
    return first


def _remove_oldest(folder: Path, suffix: str) -> None:
    with suppress(OSError):
        files = sorted(folder.glob(f"*{suffix}"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_MOST_FILES]:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """What the fingerprint of bags needs to know of an encoder, without loading it.

    ``preprocessing`` returns the JSON text of an encoder's preprocessing by ``as_json()``,
    ``preprocessing_source`` says where its mean and standard deviation come from; ``dim`` is the
    length of an embedding.
    """

    name: str
    weights_sha256: str
    dim: int
    transform: str
    preprocessing_source: str

    @property
    def preprocessing(self) -> EncoderRecord:
        """The record itself, which knows its preprocessing."""
        return self

    def as_json(self) -> str:
        """Return the preprocessing as one line of JSON."""
        return self.transform


def read_encoder_record(name: str, weights: Sequence[Path | None]) -> EncoderRecord | None:
    """Return what is known of an encoder; None if it was never loaded or its files have changed."""
    content = load(_record_name(name, weights))
    try:
        entry: Mapping[str, Any] = json.loads(content or b"")
        if not entry["files"] or any(
            _state(path) != entry["files"][path] for path in entry["files"]
        ):
            return None
        return EncoderRecord(**entry["encoder"])
    except CONTENT_ERRORS:
        return None


def write_encoder_record(
    name: str, weights: Sequence[Path | None], record: EncoderRecord, files: Sequence[Path]
) -> None:
    """Remember an encoder that was loaded from files; not one whose files are unknown.

    A ``config.json`` beside weights, which may state their preprocessing, is watched as well, also
    one that is not there yet.
    """
    watched = {*files, *(file.with_name("config.json") for file in files)}
    states = {str(path): _state(str(path)) for path in sorted(watched)}
    if files and all(states[str(path)] for path in files):
        entry = {"encoder": record.__dict__, "files": states}
        store(_record_name(name, weights), json.dumps(entry).encode())


def _record_name(name: str, weights: Sequence[Path | None]) -> str:
    versions = [metadata.version(package) for package in ("mil-slides", "timm")]
    given = weights if any(weights) else ()
    return f"{cache_key('encoder', name, *given, *versions)}.json"


def _state(path: str) -> list[int]:
    """Return size in bytes and time of change of a file; empty if it is gone."""
    try:
        stat = Path(path).stat()
    except OSError:
        return []
    return [stat.st_size, stat.st_mtime_ns]
