"""Files written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from features.errors import OutputError

__all__ = [
    "OPEN_FILES_HINT",
    "atomic_folder",
    "atomic_write",
    "find_temporary_files",
    "make_folder",
    "path_exists",
    "write_error",
]

OPEN_FILES_HINT = "Raise the limit with 'ulimit -n 4096' and give the same command again."
"""What to do where a process has too many files open."""

_FULL = "Free some space; what is finished is kept, and the same command goes on."
_LOCKED = "Make the folder writable, or name another."
_GONE = "Bring the folder back, or make it; what is finished is kept, and the same command goes on."
_ADVICE = {
    errno.ENOENT: _GONE,
    errno.ENOTDIR: _GONE,
    errno.ESTALE: _GONE,
    errno.ENODEV: _GONE,
    errno.EMFILE: OPEN_FILES_HINT,
    errno.ENFILE: OPEN_FILES_HINT,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _LOCKED,
    errno.EACCES: _LOCKED,
    errno.EPERM: _LOCKED,
}
_LONGEST_STEM = 80
_PART = re.compile(r"\.(?P<stem>.+)\.\d+\.part(?P<suffix>\.\w+)")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it when the block ends well.

    A reader therefore sees the old file or the whole new one, never a part. The temporary name
    keeps the suffix (some writers look at it), starts with a dot (listings skip it) and holds the
    process id (two processes never share it). The bytes are on disk before the name is.

    Parameters
    ----------
    path
        The final file; its folder must exist.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OutputError
        If the file cannot be written or replaced; the old file is then untouched.
    """
    beside = path.with_name(f".{path.stem[:_LONGEST_STEM]}.{os.getpid()}.part{path.suffix}")
    try:
        beside.unlink(missing_ok=True)  # a link that somebody put there would be written through
        yield beside
        _flush(beside)
        beside.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a new hidden folder beside ``path`` that replaces it when the block ends well.

    Its files are on disk before it has the name. An older folder of that name stays until then.

    Parameters
    ----------
    path
        The final folder.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    OutputError
        If it cannot be written or replaced; the old folder is then untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = beside.with_suffix(".old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except OSError as error:
        raise write_error(path, error) from error
    except OutputError as error:
        where = error.where.replace(str(beside), str(path))
        raise OutputError(where, actual=error.actual, hint=error.hint) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def find_temporary_files(folder: Path) -> dict[str, list[Path]]:
    """What processes that were killed, or are at work now, left beside files, by the file's name.

    Whoever alone may write a file now may remove what lies beside it.
    """
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        match = _PART.fullmatch(path.name)
        if match and len(match["stem"]) < _LONGEST_STEM:  # else cut short, and perhaps another's
            found.setdefault(match["stem"] + match["suffix"], []).append(path)
    return found


def path_exists(path: Path) -> bool:
    """Whether a path leads to anything; one that no file system could hold does not.

    ``Path.exists`` raises an error where a name is too long.
    """
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def make_folder(path: Path) -> Path:
    """Return ``path`` as an existing folder.

    Raises
    ------
    OutputError
        If it is a file or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            path,
            actual=f"cannot be used as a folder ({error.strerror or error})",
            hint="Name another folder, or make this one writable.",
        ) from error
    return path


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_error(path: Path, error: OSError) -> OutputError:
    """The error that says why a file or folder cannot be written, and what to do about it."""
    return OutputError(
        path,
        actual=f"cannot be written ({error.strerror or error})",
        hint=_ADVICE.get(error.errno or 0, "Check free space and permissions of the folder."),
    )
