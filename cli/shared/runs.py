"""The run that a command works with, and the prior that its probabilities are for."""

from __future__ import annotations

from pathlib import Path

__all__ = ["newest_run"]


def newest_run(runs_dir: Path = Path("runs"), *, several_labels: bool = False) -> Path:
    """The finished run that was written last; of those of several labels only where asked for.

    Raises
    ------
    RunError
        If there is none.
    """
    from mil.errors import RunError

    marks = list(runs_dir.glob("*/model.json"))
    if several_labels:
        marks += runs_dir.glob("*/labels.json")
    whole = [file for file in marks if not file.parent.name.startswith(".")]  # not being written
    found = sorted(whole, key=lambda file: file.stat().st_mtime)
    if not found:
        raise RunError(
            runs_dir,
            actual="no finished run in it",
            expected="a folder that 'mil train' wrote",
            hint="Train one, or name another with --run.",
        )
    return found[-1].parent
