"""Files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from features.errors import OutputError

__all__ = ["make_folder", "written_beside"]


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
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
    beside = path.with_name(f".{path.stem[:80]}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise OutputError(
            path,
            found=f"cannot be written ({error.strerror or error})",
            advice="Check free space and permissions of the folder.",
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


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
            found=f"cannot be used as a folder ({error.strerror or error})",
            advice="Name another folder, or make this one writable.",
        ) from error
    return path
