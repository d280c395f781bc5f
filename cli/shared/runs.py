"""Runs of a command: the default one, a free folder, and the covariates that a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mil.data.cohort import Cohort
    from mil.inference.bundle import ModelBundle

__all__ = [
    "add_run_covariates",
    "free_run",
    "is_combination",
    "newest_run",
    "report_of",
    "require_free",
    "training_cohort",
]


def is_combination(run: Path) -> bool:
    """Return whether a folder is that of runs combined by ``mil combine``."""
    return (run / "combination.json").is_file()


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
        files += runs_dir.glob("*/combination.json")
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


def report_of(file: Path) -> Path | None:
    """Return the report of the run whose out-of-fold probabilities a file holds; else None."""
    page = file.parent / "report.html"
    return page if file.name == "out_of_fold.csv" and page.is_file() else None


def free_run(name: str) -> Path:
    """Return the first of ``runs/name``, ``runs/name-2`` and so on that does not exist."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def require_free(run: Path, *, overwrite: bool) -> None:
    """Raise for a folder that is not empty, unless it holds a finished run to replace."""
    from features.utils.files import why_no_folder
    from mil.errors import RunError

    if why := why_no_folder(run):
        raise RunError(
            run, actual=why, expected="a folder for the run", hint="Name another with --run."
        )
    if run.is_dir() and any(run.iterdir()):
        if not overwrite:
            raise RunError(
                run,
                actual="a folder that is not empty",
                expected="a new one",
                hint="Name another with --run, or replace it with --overwrite.",
            )
        if not any(
            (run / name).is_file() for name in ("model.json", "labels.json", "combination.json")
        ):
            raise RunError(
                run,
                actual="a folder with other things in it",
                expected="a finished run to overwrite",
                hint="Name another with --run.",
            )


def add_run_covariates(
    run: ModelBundle, cohort: Cohort, *, columns: Mapping[str, str], has_table: bool = True
) -> Cohort:
    """Return the cohort with the covariates of a run; all missing where there is no table."""
    from mil.data.covariates import with_covariates, without_values

    if run.covariates is None:
        return cohort
    needed = run.covariates.covariates
    if not has_table:
        return without_values(cohort, needed)
    return with_covariates(cohort, needed, columns=columns)


def training_cohort(run: ModelBundle) -> Cohort:
    """Return the training patients stored in a run, with their slides."""
    from mil.data.cohort import Cohort, Patient

    slides: dict[str, tuple[str, ...]] = {}
    for slide in run.training_slides:
        slides[slide.patient_id] = (*slides.get(slide.patient_id, ()), slide.slide_id)
    patients = tuple(
        Patient(patient_id=patient_id, slide_ids=ids, label=None, center_id=None)
        for patient_id, ids in slides.items()
    )
    return Cohort(path=run.path / "slides.csv", patients=patients, classes=())
