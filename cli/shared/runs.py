"""The default run of a command."""

from __future__ import annotations

from pathlib import Path

__all__ = ["newest_run"]


def newest_run(runs_dir: Path = Path("runs"), *, several_labels: bool = False) -> Path:
    """Return the newest finished run; runs of several labels count on request only.

    Raises
    ------
    RunError
        If there is none.
    """
    from mil.errors import RunError

    files = list(runs_dir.glob("*/model.json"))
    if several_labels:
        files += runs_dir.glob("*/labels.json")
    finished = [file for file in files if not file.parent.name.startswith(".")]
    runs = sorted(finished, key=lambda file: file.stat().st_mtime)
    if not runs:
        raise RunError(
            runs_dir,
            actual="no finished run in it",
            expected="a folder that 'mil train' wrote",
            hint="Train one, or name another with --run.",
        )
    return runs[-1].parent
