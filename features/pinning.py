"""How the backbone runs for a folder of bags: chosen once, so that all its bags are made alike."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from features.files import not_written

__all__ = ["pin_execution", "pinned_execution"]

_NAME = "execution.txt"
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What FAT and some network file systems answer, which have no hard links."""


def pinned_execution(bags_dir: Path) -> str | None:
    """The way in which the bags of a folder are made, e.g. ``onnx float32 batch 64``.

    None where nothing was chosen yet.
    """
    try:
        return (bags_dir / _NAME).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def pin_execution(bags_dir: Path, execution: str) -> str:
    """Choose for a folder; where another process was first, its choice stands.

    Returns
    -------
    str
        What holds for the folder from now on.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    beside = bags_dir / f".{_NAME}.{os.getpid()}.part"
    try:
        beside.write_text(execution + "\n", encoding="utf-8")
        with suppress(FileExistsError):
            _name(beside, bags_dir / _NAME)
    except OSError as error:
        raise not_written(bags_dir, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return pinned_execution(bags_dir) or execution


def _name(beside: Path, path: Path) -> None:
    """Give a file its name; fails where there is one of that name."""
    try:
        os.link(beside, path)  # a link is whole at once
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(beside.read_bytes())
