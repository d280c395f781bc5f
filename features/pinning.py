"""How the backbone runs for a folder of bags: chosen once, so that all its bags are made alike."""

from __future__ import annotations

import os
from pathlib import Path

from features.errors import OutputError

__all__ = ["pin_execution", "pinned_execution"]

_NAME = "execution.txt"


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
        try:
            os.link(beside, bags_dir / _NAME)  # fails where there is one; a link is whole at once
        except FileExistsError:
            pass
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            bags_dir,
            found=f"cannot be written ({error.strerror or error})",
            advice="Check free space and permissions of the folder.",
        ) from error
    return pinned_execution(bags_dir) or execution
