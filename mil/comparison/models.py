"""Predictions of several runs and files, aligned on the patients that all of them predict."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features.utils.text import pluralize
from mil.arrays import Floats, Ints
from mil.calibration.priors import balanced, parse_prior, shift_prior
from mil.data.cohort import Cohort, Patient
from mil.errors import InputError, PredictionsError, RunError
from mil.evaluation.bootstrap import MIN_RESAMPLED_PATIENTS
from mil.evaluation.predictions import predicted_patients, read_predictions
from mil.evaluation.run_predictions import RunPredictions, read_run_predictions
from mil.evaluation.scoring import CROSS_FITTED_NOTE, ScoreSettings, calibrate_predictions

__all__ = [
    "AlignedModels",
    "ModelPredictions",
    "align_runs",
    "changed_slides",
    "read_models",
    "same_folds",
    "short_names",
]

N_FOLDS, N_REPEATS = 5, 20
"""Folds and repeats of the cross-fits that calibrate files."""

_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPredictions:
    """Predictions of one model for the shared patients.

    ``proba``, shape (repeats, patients, classes), is at the balanced prior. ``fold``, shape
    (repeats, patients), is None for a file, whose folds are unknown.
    """

    name: str
    proba: Floats
    fold: Ints | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignedModels:
    """Models on the patients that all of them predict, in one order.

    ``labels`` are class indices, shape (patients,); ``n_left_out`` are the patients of each model
    that another lacks, shape (models,). ``notes`` say what limits the comparison.
    """

    classes: tuple[str, ...]
    patient_ids: tuple[str, ...]
    centres: tuple[str, ...]
    labels: Ints
    models: tuple[ModelPredictions, ...]
    n_left_out: tuple[int, ...]
    notes: tuple[str, ...]


def read_models(
    runs: Sequence[Path],
    files: Sequence[Path] = (),
    *,
    cohort: Cohort | None = None,
    class_name: str | None = None,
    file_prior: str = "balanced",
    calibrator: str | None = None,
    seed: int = 0,
) -> AlignedModels:
    """Read runs and prediction files, shape (repeats, patients, classes) each, and align them.

    Parameters
    ----------
    runs
        Folders of finished runs; their calibrated out-of-fold predictions are compared.
    files
        Prediction files of any model, see :func:`mil.evaluation.predictions.read_predictions`.
    cohort
        Labels; needed where there are only files, else those of the runs are used and must agree.
    class_name
        Class that files with a single column are for.
    file_prior
        Class shares that the files' probabilities are for, see
        :func:`mil.calibration.priors.parse_prior`.
    calibrator
        Calibrator to cross-fit to each file, see :func:`mil.evaluation.scoring
        .calibrate_predictions`; None compares files as they are. Runs are calibrated already.
    seed
        Seeds the folds of the cross-fits.

    Raises
    ------
    CalibrationError
        If the calibrator is unknown.
    InputError
        If there are fewer than two models, or no labels.
    RunError, PredictionsError, TableError
        If a run or file cannot be read, or they have no patients, labels or classes in common.
    """
    _check_given(runs, files, cohort)
    read = [read_run_predictions(path) for path in runs]
    if read:
        _check_classes(read)
        _check_labels(read, cohort)
    labelled = cohort or _as_cohort(read)
    shared = _shared_patients([
        *((str(run.path), run.patient_ids) for run in read),
        *((str(path), predicted_patients(path, labelled)) for path in files),
        *([] if cohort is None else [(str(cohort.path), cohort.patient_ids)]),
    ])  # fmt: skip
    part = _part(labelled, shared)
    if read and set(read[0].classes) != set(part.classes):
        missing = sorted(set(read[0].classes) - set(part.classes))
        raise _too_few(part, missing[0] if missing else part.classes[0], 0)
    for name, count in part.class_counts().items():
        if count < MIN_RESAMPLED_PATIENTS:
            raise _too_few(part, name, count)
    settings = ScoreSettings(
        file_prior=parse_prior(file_prior, part.classes, part.class_counts()),
        prior=balanced(part.classes), calibrator=calibrator, n_folds=N_FOLDS, n_repeats=N_REPEATS,
        reliability=False, n_resamples=0, seed=seed,
    )  # fmt: skip
    names = short_names([*runs, *files])
    of_runs = [_of_run(run, part, name) for run, name in zip(read, names, strict=False)]
    of_files = [
        _of_file(path, part, name, settings, class_name=class_name, known=labelled.classes)
        for path, name in zip(files, names[len(read) :], strict=True)
    ]
    n_all = [len(run.patient_ids) for run in read]
    n_all += [len(predicted_patients(path, labelled)) for path in files]
    return AlignedModels(
        classes=part.classes,
        patient_ids=part.patient_ids,
        centres=tuple(patient.center_id or "" for patient in part.patients),
        labels=part.labels,
        models=(*of_runs, *of_files),
        n_left_out=tuple(n - len(shared) for n in n_all),
        notes=tuple(_notes(read, of_runs, of_files, part)),
    )


def align_runs(runs: Sequence[RunPredictions]) -> tuple[RunPredictions, ...]:
    """Return runs on the patients that all of them predict, shape (repeats, n, classes), in order.

    Classes are in the order of the first run.

    Raises
    ------
    RunError
        If they have no patient in common, other classes, or other labels of a patient.
    """
    _check_classes(runs)
    _check_labels(runs, None)
    shared = _shared_patients([(str(run.path), run.patient_ids) for run in runs])
    first = runs[0]
    aligned = []
    for run in runs:
        own = run.select(shared)
        order = [run.classes.index(name) for name in first.classes]
        new_label = np.argsort(order)
        aligned.append(
            replace(
                own, classes=first.classes, proba=own.proba[:, :, order],
                labels=new_label[own.labels],
            )
        )  # fmt: skip
    return tuple(aligned)


def same_folds(first: Ints, other: Ints) -> bool:
    """Return whether two sets of folds, shape (repeats, patients), split the patients alike.

    Only the repeats that both have are compared, and the numbers of the folds do not matter.
    """
    n_repeats = min(len(first), len(other))
    return all(
        len(np.unique(np.stack([a, b]), axis=1).T) == len(np.unique(a)) == len(np.unique(b))
        for a, b in zip(first[:n_repeats], other[:n_repeats], strict=True)
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the last part of each path, or all of it where two would have the same name.

    Examples
    --------
    >>> short_names([Path("runs/a"), Path("oof/b.csv"), Path("other/a")])
    ['runs/a', 'b', 'other/a']
    """
    short = [Path(os.path.realpath(path)).name.removesuffix(".csv") for path in paths]
    return [
        name if short.count(name) == 1 else path.as_posix()
        for path, name in zip(paths, short, strict=True)
    ]


def _check_given(runs: Sequence[Path], files: Sequence[Path], cohort: Cohort | None) -> None:
    paths = [*runs, *files]
    resolved = [os.path.realpath(path) for path in paths]
    if len(paths) < 2:
        raise InputError(
            "models", actual=pluralize(len(paths), "models"), expected="two or more",
            hint="Name another run, or a file of predictions.",
        )  # fmt: skip
    if twice := [
        path for path, own in zip(paths, resolved, strict=True) if resolved.count(own) > 1
    ]:
        raise InputError(twice[0], actual="named twice", expected="each model once")
    if not runs and cohort is None:
        raise InputError(
            "labels", actual="files of predictions only", expected="the true classes as well",
            hint="Give the table of labels with --cohort.",
        )  # fmt: skip


def _check_classes(runs: Sequence[RunPredictions]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if set(run.classes) != set(first.classes):
            raise RunError(
                run.path,
                actual=f"classes {', '.join(run.classes)}",
                expected=f"{', '.join(first.classes)}, as in {first.path}",
                hint="Take runs that predict the same classes.",
            )


def _check_labels(runs: Sequence[RunPredictions], cohort: Cohort | None) -> None:
    """Raise for a patient that is of one class here and of another there."""
    label_of = {} if cohort is None else {p.patient_id: str(p.label) for p in cohort.patients}
    source = dict.fromkeys(label_of, str(cohort.path) if cohort else "")
    for run in runs:
        of_run = [run.classes[label] for label in run.labels.tolist()]
        changed = [
            (name, label) for name, label in zip(run.patient_ids, of_run, strict=True)
            if label_of.setdefault(name, label) != label
        ]  # fmt: skip
        if changed:
            name, label = changed[0]
            raise RunError(
                run.path,
                actual=f"patient {name!r} is {label!r}, and "
                f"{pluralize(len(changed), 'patients')} in all have another label",
                expected=f"{label_of[name]!r}, as in {source[name]}",
                hint="Train both on the same table of labels.",
            )
        source |= {name: str(run.path) for name in run.patient_ids if name not in source}


def _as_cohort(runs: Sequence[RunPredictions]) -> Cohort:
    """Return the patients of the first run as a cohort, with the slides that it used."""
    run = runs[0]
    slides_of: dict[str, list[str]] = {name: [] for name in run.patient_ids}
    for slide_id, slide in run.slides.items():
        if slide.patient_id in slides_of:
            slides_of[slide.patient_id].append(slide_id)
    patients = tuple(
        Patient(
            patient_id=name, slide_ids=tuple(slides_of[name]),
            label=run.classes[label], center_id=centre or None,
        )
        for name, label, centre in zip(
            run.patient_ids, run.labels.tolist(), run.centres, strict=True
        )
    )  # fmt: skip
    return Cohort(path=run.path, patients=patients, classes=tuple(sorted(run.classes)))


def _shared_patients(of_models: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, ...]:
    """Return the patients that all models have, in the order of the first."""
    source, first = of_models[0]
    shared = set(first)
    for other, ids in of_models[1:]:
        if not shared.intersection(ids):
            few = ", ".join(sorted(ids)[:_MAX_NAMED]) or "none"
            raise RunError(
                other,
                actual=f"none of the patients of {source} (its first: {few})",
                expected=f"patients such as {', '.join(sorted(shared)[:_MAX_NAMED])}",
                hint="Compare models of the same patients.",
            )
        shared &= set(ids)
    return tuple(name for name in first if name in shared)


def _part(cohort: Cohort, patient_ids: Iterable[str]) -> Cohort:
    """Return the cohort of some patients, in their order, with the classes that they have."""
    by_id = {patient.patient_id: patient for patient in cohort.patients}
    patients = tuple(by_id[name] for name in patient_ids)
    present = {patient.label for patient in patients}
    return Cohort(
        path=cohort.path,
        patients=patients,
        classes=tuple(name for name in cohort.classes if name in present),
    )


def _too_few(part: Cohort, name: str, count: int) -> RunError:
    return RunError(
        "shared patients",
        actual=f"{pluralize(count, 'patients')} of class {name!r} among {len(part.patients)}",
        expected=f"at least {MIN_RESAMPLED_PATIENTS} of each class",
        hint="Compare models that share more patients.",
    )


def _of_run(run: RunPredictions, part: Cohort, name: str) -> ModelPredictions:
    own = run.select(part.patient_ids)
    order = [run.classes.index(class_name) for class_name in part.classes]
    return ModelPredictions(name=name, proba=own.proba[:, :, order], fold=own.fold)


def _of_file(
    path: Path,
    part: Cohort,
    name: str,
    settings: ScoreSettings,
    *,
    class_name: str | None,
    known: Sequence[str],
) -> ModelPredictions:
    read = read_predictions(path, part, class_name=class_name, known_classes=known, is_part=True)
    if read.other_classes:
        raise PredictionsError(
            path,
            actual=f"probabilities of {', '.join(read.other_classes)} as well",
            expected=f"of {', '.join(part.classes)}, as in the other models",
        )
    if settings.calibrator is not None:
        calibrated = calibrate_predictions(read.proba, part.labels, settings)
        return ModelPredictions(name=name, proba=calibrated)
    at_even = shift_prior(read.proba, old=settings.file_prior, new=settings.prior)
    return ModelPredictions(name=name, proba=at_even[None])


def _notes(
    read: Sequence[RunPredictions],
    runs: Sequence[ModelPredictions],
    files: Sequence[ModelPredictions],
    part: Cohort,
) -> list[str]:
    notes = []
    folded = [(run.name, run.fold) for run in runs if run.fold is not None]
    if folded:
        name, fold = folded[0]
        if other := [n for n, own in folded[1:] if not same_folds(fold, own)]:
            notes.append(
                f"folds of {', '.join(other)} differ from those of {name}: their differences hold "
                "the choice of folds as well; 'mil train --folds-of' gives both the same"
            )
        counts = [len(own) for _, own in folded]
        if len(set(counts)) > 1:
            of = ", ".join(f"{n} {len(own)}" for n, own in folded)
            notes.append(f"runs have other numbers of repeats ({of}): scores are means over them")
    if len({run.is_nested for run in read}) > 1:
        nested = ", ".join(m.name for m, run in zip(runs, read, strict=True) if run.is_nested)
        notes.append(
            f"probabilities of {nested} are nested, those of the other runs cross-fitted, which "
            "may be slightly optimistic"
        )
    if changed := changed_slides([run.select(part.patient_ids) for run in read]):
        notes.append(
            f"slides of {pluralize(len(changed), 'patients')} differ between runs, first "
            f"{changed[0]}"
        )
    if files:
        notes.append(
            f"{', '.join(m.name for m in files)}: whether the model was trained on the patients "
            "that it predicts cannot be checked in a file"
        )
        if any(len(m.proba) > 1 for m in files):
            notes.append(f"files are calibrated: {CROSS_FITTED_NOTE}")
    if all(len(run.proba) == 1 for run in runs):
        notes.append(
            "every model was trained once: the intervals hold the choice of patients, not the "
            "variance of training; 'mil train --repeats' adds that"
        )
    return notes


def changed_slides(runs: Sequence[RunPredictions]) -> list[str]:
    """Return the patients whose slides, by id or content, are not the same in all runs."""
    changed: dict[str, None] = {}
    first = runs[0].slides if runs else {}
    for run in runs[1:]:
        for slide_id in first.keys() | run.slides.keys():
            one, other = first.get(slide_id), run.slides.get(slide_id)
            if one is None or other is None:
                changed[(one or other or first[slide_id]).patient_id] = None
            elif one.content_id != other.content_id and one.content_id and other.content_id:
                changed[one.patient_id] = None
    return sorted(changed)
