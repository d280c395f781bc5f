"""From bags and labels to a finished run: validate, calibrate, fit what is deployed, write it."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.bags import UNKNOWN
from features.errors import OutputError
from features.files import make_folder, written_beside
from mil.calibration import build_calibrator
from mil.card import write_card
from mil.cohort import Cohort
from mil.data import PatientBags
from mil.errors import SplitError
from mil.metrics import Interval, auroc, stratified_bootstrap, weighted_log_loss
from mil.model import Run, TrainingSlide, save_run, write_json
from mil.splits import Fold, SplitBy, make_folds, split_notes, write_folds
from mil.training import LEAST_TO_STOP_ON, Ensemble, TrainSettings, train_ensemble
from mil.validation import OutOfFold, cross_fitted_probabilities, cross_validate, fit_calibrator

__all__ = ["FitSummary", "fit_run"]

Scores = Mapping[str, Mapping[str, Interval]]

_N_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class FitSummary:
    """What a training came to."""

    path: Path
    """Folder of the run."""
    head: str
    """Kind of head."""
    n_patients: int
    """Patients with tiles."""
    n_tiles: int
    """Tiles of all of them."""
    scores: Scores
    """Scores with intervals, by kind of prediction and by metric; all out-of-fold."""
    notes: tuple[str, ...]
    """What a reader must know: slides without bags, fixed steps."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "run": str(self.path),
            "head": self.head,
            "n_patients": self.n_patients,
            "n_tiles": self.n_tiles,
            "scores": _plain(self.scores),
            "notes": list(self.notes),
        }


def fit_run(
    cohort: Cohort,
    bags: PatientBags,
    run_dir: Path,
    *,
    n_folds: int,
    n_repeats: int,
    seed: int,
    settings: TrainSettings,
    calibrator: str = "platt",
    on_head: Callable[[int, int], None],
    by: SplitBy = "patient",
) -> FitSummary:
    """Train, calibrate and write a run.

    The folder appears whole when all is done; an older run of that name is replaced only then.

    Parameters
    ----------
    cohort
        Patients and labels.
    bags
        Their bags.
    run_dir
        Folder of the run.
    n_folds, n_repeats
        Folds of a cross-validation, and cross-validations with other folds.
    seed
        Decides everything random.
    settings
        How ensembles are trained.
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.
    on_head
        Called with heads done and heads in all.
    by
        Whether folds are stratified folds of patients or leave one centre out.

    Raises
    ------
    SplitError
        If a class has too few patients with tiles.
    CalibrationError
        If the calibrator is unknown or not for so many classes, or too few patients of a class are
        left to calibrate on.
    OutputError
        If the folder cannot be written.
    """
    usable = _with_tiles(cohort, bags)
    build_calibrator(calibrator, n_classes=len(usable.classes))  # refused before hours of training
    folds = make_folds(usable, by=by, n_folds=n_folds, n_repeats=n_repeats, seed=seed)
    n_folds = len(folds) // n_repeats
    settings = replace(settings, early_stopping=_enough_to_stop_on(usable, folds, settings))
    total = (len(folds) + 1) * settings.n_members
    n_done = 0

    def one_more() -> None:
        nonlocal n_done
        n_done += 1
        on_head(n_done, total)

    found = cross_validate(bags, usable, folds, settings=settings, seed=seed, on_head=one_more)
    proba = cross_fitted_probabilities(found, calibrator=calibrator)
    final = train_ensemble(
        bags.restricted_to(usable.patient_ids),
        dict(zip(usable.patient_ids, usable.labels.tolist(), strict=True)),
        n_classes=len(usable.classes),
        settings=settings,
        seed=(seed, 2),
        on_head=one_more,
    )
    scores = _score(found, proba, seed=seed)
    run = Run(
        path=run_dir,
        classes=usable.classes,
        fingerprint=bags.fingerprint,
        head_name=settings.head,
        heads=final.heads,
        calibrator=fit_calibrator(found, np.ones(found.fold.shape, bool), calibrator=calibrator),
        cohort_counts=tuple(usable.class_counts().values()),
        training_slides=tuple(TrainingSlide(**asdict(note)) for note in bags.slides),
        out_of_fold=dict(zip(found.patient_ids, proba.mean(axis=0), strict=True)),
        settings={
            **asdict(settings),
            "by": by,
            "n_folds": n_folds,
            "n_repeats": n_repeats,
            "seed": seed,
            "calibrator": calibrator,
        },
        versions=_versions(),
    )
    notes = (*_notes(cohort, bags, found, settings), *split_notes(usable, folds, by=by))
    with _whole_folder(run_dir) as beside:
        write_folds(beside / "folds.csv", folds)
        _write_history(beside / "history.csv", found, final)
        write_json(beside / "scores.json", {"kind": "cross-fitted", **_plain(scores)})
        write_card(beside / "MODEL_CARD.md", run, scores)
        save_run(replace(run, path=beside))
    return FitSummary(
        path=run_dir,
        head=settings.head,
        n_patients=len(found.patient_ids),
        n_tiles=sum(len(bags.features[name]) for name in found.patient_ids),
        scores=scores,
        notes=notes,
    )


class _whole_folder:  # noqa: N801 - used like a function
    """A folder that is filled beside and takes its place when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._beside, ignore_errors=True)
        return make_folder(self._beside)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                if self._path.exists():
                    shutil.rmtree(self._path)
                self._beside.rename(self._path)
        except OSError as failure:
            raise OutputError(
                self._path, found=f"cannot be replaced ({failure.strerror or failure})"
            ) from failure
        finally:
            shutil.rmtree(self._beside, ignore_errors=True)


def _with_tiles(cohort: Cohort, bags: PatientBags) -> Cohort:
    """The cohort without patients that have no tile: they can teach nothing."""
    filled = set(bags.filled())
    patients = tuple(p for p in cohort.patients if p.patient_id in filled)
    left = {patient.label for patient in patients}
    if gone := [name for name in cohort.classes if name not in left]:
        raise SplitError(
            cohort.path,
            found=f"no patient of class {gone[0]!r} has a tile",
            expected="patients of every class",
            advice="Look at embed.csv beside the bags.",
        )
    return replace(cohort, patients=patients)


def _score(found: OutOfFold, proba: npt.NDArray[np.float64], *, seed: int) -> Scores:
    """Scores of the mean over repeats, beside what one gets without looking."""
    n_classes = proba.shape[2]
    raw = np.exp(found.logits - found.logits.max(axis=2, keepdims=True))
    raw /= raw.sum(axis=2, keepdims=True)
    shares = np.bincount(found.labels, minlength=n_classes) / len(found.labels)
    kinds = {
        "calibrated": proba.mean(axis=0),
        "raw": raw.mean(axis=0),
        "constant": np.full(proba.shape[1:], 1 / n_classes),
        "cohort prior": np.tile(shares, (len(found.labels), 1)),
    }
    metrics = {"weighted_log_loss": weighted_log_loss, "auroc": auroc}
    return {
        name: stratified_bootstrap(
            metrics, values, found.labels, n_resamples=_N_RESAMPLES, seed=seed
        )
        for name, values in kinds.items()
    }


def _enough_to_stop_on(cohort: Cohort, folds: Sequence[Fold], settings: TrainSettings) -> bool:
    """Whether every ensemble of the run has patients enough for early stopping."""
    labels = dict(zip(cohort.patient_ids, cohort.labels.tolist(), strict=True))
    fewest = min(min(Counter(labels[name] for name in fold.train_ids).values()) for fold in folds)
    return fewest >= LEAST_TO_STOP_ON * settings.n_members


def _notes(
    cohort: Cohort, bags: PatientBags, found: OutOfFold, settings: TrainSettings
) -> tuple[str, ...]:
    notes = []
    if bags.missing_slides:
        names = ", ".join(bags.missing_slides[:3])
        notes.append(f"{len(bags.missing_slides)} slides have no bag, first: {names}")
    n_left_out = len(cohort.patients) - len(found.patient_ids)
    if n_left_out:
        notes.append(f"{n_left_out} patients have no tile and were left out")
    if bags.fingerprint.weights_sha256 == UNKNOWN:
        notes.append(
            "the bags were imported: weights and preprocessing of their backbone are unknown, so "
            "that they belong together rests on your word, and no new slide can be embedded alike"
        )
    if not settings.early_stopping:
        notes.append(
            f"patients to stop on would be fewer than {LEAST_TO_STOP_ON} of a class: every head "
            f"was trained for {settings.fixed_steps} steps instead of being stopped early"
        )
    return tuple(notes)


def _write_history(path: Path, found: OutOfFold, final: Ensemble) -> None:
    rows: list[dict[str, object]] = [
        {"repeat": repeat, "fold": fold, **asdict(record)}
        for (repeat, fold), records in found.history.items()
        for record in records
    ]
    rows += [{"repeat": "", "fold": "deployed", **asdict(record)} for record in final.history]
    with written_beside(path) as beside:
        pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g", lineterminator="\n")


def _plain(scores: Scores) -> dict[str, object]:
    return {
        name: {
            metric: {"value": score.value, "interval": [score.low, score.high]}
            for metric, score in of_kind.items()
        }
        for name, of_kind in scores.items()
    }


def _versions() -> dict[str, str]:
    names: Sequence[str] = ("mil-slides", "torch", "numpy", "scipy", "h5py")
    versions = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}
