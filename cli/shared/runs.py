"""The run that a command works with, and the prior that its probabilities are for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mil.inference.bundle import ModelBundle

__all__ = ["newest_run", "resolve_prior"]


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


def resolve_prior(run: ModelBundle, stated: str) -> npt.NDArray[np.float64]:
    """Shares of the run's classes that ``--prior`` states, shape (classes,)."""
    from mil.calibration.priors import parse_prior

    counts = dict(zip(run.classes, run.cohort_counts, strict=True))
    return parse_prior(stated, run.classes, counts)
