"""Atomic writes of files and folders."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from features.errors import OutputError

__all__ = [
    "OPEN_FILES_HINT",
    "ZARR_METADATA",
    "atomic_folder",
    "atomic_write",
    "check_folder",
    "find_temporary_files",
    "ignores_case",
    "is_device",
    "is_zarr_folder",
    "make_folder",
    "missing_folder",
    "path_exists",
    "unzip_hint",
    "why_no_folder",
    "write_error",
]

OPEN_FILES_HINT = "Raise the limit with 'ulimit -n 4096' and give the same command again."
"""Hint for a process with too many open files."""

_FULL = "Free some space; what is finished is kept, and the same command goes on."
_LOCKED = "Make the folder writable, or name another."
_GONE = "Bring the folder back, or make it; what is finished is kept, and the same command goes on."
_HINTS = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV), _GONE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), OPEN_FILES_HINT),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _LOCKED),
    errno.EISDIR: "Move the folder of that name elsewhere, or name another file.",
}
_MAX_STEM = 80
ZARR_METADATA = (".zgroup", "zarr.json")
"""Names of the files at the root of a zarr store, of version 2 and 3."""
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.\d+\.part(?P<suffix>\.\w+)")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends without an error.

    A reader therefore sees the old file or the whole new one, never a part. The temporary name, in
    the same folder, keeps the suffix (some writers need it), starts with a dot (listings skip it)
    and holds the process id (processes never share it). The bytes are on disk before the rename.
    Raises OutputError if the file cannot be written or replaced; the old file is then untouched. So
    is a device, such as ``/dev/null``, which root would replace by a file.
    """
    if is_device(path):
        raise OutputError(path, actual="is a device or pipe", expected="the name of a file")
    temporary = path.with_name(f".{path.stem[:_MAX_STEM]}.{os.getpid()}.part{path.suffix}")
    try:
        temporary.unlink(missing_ok=True)  # else a link of that name would be written through
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder that replaces ``path`` when the block ends without an error.

    Its bytes are on disk before the rename. An older folder of that name stays until then, and for
    good where an OutputError is raised because the new one cannot be written. That is at once where
    a file has that name.
    """
    check_folder(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = temporary.with_suffix(".old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise write_error(path, error) from error
    except OutputError as error:
        where = error.where.replace(str(temporary), str(path))
        raise OutputError(where, actual=error.actual, hint=error.hint) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def is_device(path: Path) -> bool:
    """Return whether a path is a device or pipe, or stands for one, as ``/dev/stdout`` does."""
    folder = os.path.realpath(path.parent)  # A link may lead on to a file that is redirected to.
    if folder == "/dev" or folder.startswith(("/dev/fd", "/proc/")):
        return True
    return path_exists(path) and not (path.is_file() or path.is_dir())


def find_temporary_files(folder: Path) -> dict[str, list[Path]]:
    """Return temporary files of killed or running processes, by the name of their final file.

    Only the process that holds the lock of a file may remove them.
    """
    leftovers: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and len(match["stem"]) < _MAX_STEM:  # else it is shortened, and ambiguous
            leftovers.setdefault(match["stem"] + match["suffix"], []).append(path)
    return leftovers


def path_exists(path: Path) -> bool:
    """Return whether a path exists; False for names too long for the file system.

    ``Path.exists`` raises an error for such names.
    """
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def unzip_hint(path: Path) -> str:
    """Return what to do about a path that leads into a zip; empty for any other."""
    with suppress(OSError, ValueError):  # names too long for the file system
        for parent in path.parents:
            if parent.is_file() and zipfile.is_zipfile(parent):
                return f"Unzip {parent}, and name {path.relative_to(parent).as_posix()} in it."
    return ""


def missing_folder(path: Path) -> str:
    """Return why a path is no folder, for an error."""
    return "a file, no folder" if path_exists(path) else "there is no such folder"


def why_no_folder(path: Path) -> str:
    """Return why a path can be no folder to write, for an error; empty if it is one or is free."""
    try:
        path.stat()
    except FileNotFoundError:
        return "a link that leads nowhere" if path.is_symlink() else ""
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long
        return f"no path of a folder ({getattr(error, 'strerror', None) or error})"
    if path.is_dir():
        return ""
    return "a device or pipe" if is_device(path) else "a file"


def check_folder(path: Path) -> None:
    """Raise OutputError for a path that can be no folder: a file, a device, a link to nowhere."""
    if why := why_no_folder(path):
        raise OutputError(
            path,
            actual=f"cannot be used as a folder ({why})",
            hint="Name another folder, or make this one writable.",
        )


def ignores_case(folder: Path) -> bool:
    """Return whether names in a folder are found in any case, as on Windows, macOS and many shares.

    Tried with the name of the folder, or of the nearest one above that exists and has letters.
    """
    path = folder.absolute()
    while path.name and (path.name.swapcase() == path.name or not path_exists(path)):
        path = path.parent
    if not path.name:
        return False
    other = path.with_name(path.name.swapcase())
    return path_exists(other) and other.samefile(path)


def make_folder(path: Path) -> Path:
    """Make a folder and its parents if they are missing, and return its path.

    Raises OutputError if it is a file or cannot be made.
    """
    if path.is_symlink():  # of one that leads nowhere, the system says that it exists
        check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError)
        reason = "Not a directory" if is_file else error.strerror or error
        raise OutputError(
            path,
            actual=f"cannot be used as a folder ({reason})",
            hint="Name another folder, or make this one writable.",
        ) from error
    return path


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_error(path: Path, error: OSError) -> OutputError:
    """Return the error for a file or folder that cannot be written, with a hint."""
    return OutputError(
        path,
        actual=f"cannot be written ({error.strerror or error})",
        hint=_HINTS.get(error.errno or 0, "Check free space and permissions of the folder."),
    )


def is_zarr_folder(path: Path) -> bool:
    """Return whether a folder is a zarr store, by its suffix or the metadata at its root."""
    return path.is_dir() and (
        path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in ZARR_METADATA)
    )
