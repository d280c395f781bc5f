"""Combination of finished runs: checks, weights, cross-fitted scores, and the bundle."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from features.utils.files import atomic_folder
from features.utils.tables import write_table
from features.utils.text import pluralize
from mil.arrays import Floats, Ints
from mil.calibration import clipped_log, cross_fit
from mil.combination.bundle import Combination, load_combination, save_combination
from mil.combination.weights import fit_weights
from mil.comparison.differences import Comparison, compare_models
from mil.comparison.models import (
    AlignedModels,
    ModelPredictions,
    align_runs,
    changed_slides,
    same_folds,
    short_names,
)
from mil.data.patient_groups import group_ids
from mil.data.splits import stratified_fold_ids
from mil.errors import InputError, RunError
from mil.evaluation.abstention import choose_abstention
from mil.evaluation.run_predictions import (
    RunPredictions,
    read_run_predictions,
    write_held_out_predictions,
)
from mil.inference.bundle import ModelBundle, check_apart, load_bundle, write_json
from mil.inference.conformal import COVERAGE, CrossConformal
from mil.inference.training_slides import linked_patients

__all__ = [
    "COMBINATION",
    "MEAN",
    "CombinationSummary",
    "combine_predictions",
    "combine_runs",
    "summarize_combination",
]

COMBINATION, MEAN = "combination", "equal weights"
"""Names of the combination, and of equal weights, in comparisons with the runs."""

N_FOLDS, N_REPEATS = 5, 5
"""Folds of the cross-fits of weights, and their repeats for files."""

_CROSS_FITTED = (
    "the combination is cross-fitted: its weights were fitted on other patients, whose predictions "
    "come from heads that may have been trained on the patient"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CombinationSummary:
    """Weights of a combination, and its cross-fitted scores beside those of its members.

    ``weights`` are by name and sum to 1; ``comparison`` holds the combination, equal weights, and
    the members; ``path`` is None for a report on files. ``guaranteed`` is the coverage of each
    class that prediction sets keep on average over cohorts; None for nothing.
    """

    path: Path | None
    weights: Mapping[str, float]
    comparison: Comparison
    guaranteed: Mapping[str, float] | None = None

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "run": None if self.path is None else str(self.path),
            "weights": dict(self.weights),
            "guaranteed": self.guaranteed,
            "kind": "cross-fitted: weights and calibrator of a patient were fitted on others",
            **self.comparison.as_dict(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _AlignedRuns:
    """Runs on the same patients and folds.

    ``run`` is the first, ``fold`` has shape (repeats, patients), ``proba`` (repeats, patients,
    runs, classes), and ``groups`` of patients who share a slide (patients,).
    """

    names: tuple[str, ...]
    run: RunPredictions
    fold: Ints
    proba: Floats
    groups: Ints


def combine_runs(
    paths: Sequence[Path], run_dir: Path, *, seed: int = 0, n_resamples: int | None = None
) -> CombinationSummary:
    """Combine finished runs on the same patients and folds into one model in ``run_dir``.

    The weights are fitted on the log of the runs' calibrated out-of-fold probabilities, shape
    (repeats, patients, runs, classes). Scores and out-of-fold probabilities use weights fitted on
    other patients, in five drawn folds, none of whom shares a slide with the patient. Prediction
    sets compare the mean log probability of the runs' learners of each fold, so that they guarantee
    what those of the runs do.

    Raises
    ------
    InputError
        If there are fewer than two runs.
    RunError
        If a run cannot be read, or saw a patient differently: other folds, labels, slides, classes.
    CalibrationError
        If a class has too few patients.
    OutputError
        If the folder cannot be written.
    """
    if len({os.path.realpath(path) for path in paths}) < max(2, len(paths)):
        raise InputError(
            "runs", actual=f"{', '.join(map(str, paths))}", expected="two or more different ones"
        )
    check_apart(run_dir, paths)
    names = [name.replace("/", "-") for name in short_names(paths)]
    for path in paths:
        if (path / "combination.json").is_file():
            raise RunError(
                path, actual="a combination", expected="a single run",
                hint="Name the runs that it combines.",
            )  # fmt: skip
    bundles = {name: load_bundle(path) for name, path in zip(names, paths, strict=True)}
    aligned = _align(paths, bundles)
    first, fold, logits = aligned.run, aligned.fold, clipped_log(aligned.proba)
    n_patients = len(first.labels)
    calibrator = fit_weights(
        logits.reshape(-1, *logits.shape[2:]), np.tile(first.labels, len(fold)),
        groups=np.tile(np.arange(n_patients), len(fold)),
    )  # fmt: skip
    combined, comparison = _score(aligned, seed=seed, n_resamples=n_resamples)
    by_fold = _sets_by_fold(list(bundles.values()), first)
    combination = Combination(
        path=run_dir,
        classes=first.classes,
        members=bundles,
        calibrator=calibrator,
        conformal=by_fold
        or CrossConformal.fit(
            clipped_log(combined[0]), first.labels, np.zeros(n_patients, np.int64)
        ),
        sets_by_fold=by_fold is not None,
        cohort_counts=tuple(np.bincount(first.labels, minlength=len(first.classes)).tolist()),
        out_of_fold=dict(zip(first.patient_ids, combined.mean(axis=0), strict=True)),
        seed=seed,
        abstention=choose_abstention(combined[0], first.labels, fold[0], groups=aligned.groups),
    )
    summary = _summarize(combination, comparison)
    with atomic_folder(run_dir) as temporary:
        scores = {
            metric: score.as_dict() for metric, score in comparison.scores[COMBINATION].items()
        }
        write_json(temporary / "scores.json", {"kind": "cross-fitted", "calibrated": scores})
        _write_tables(temporary, first, fold, combined, aligned.proba.mean(axis=2))
        save_combination(replace(combination, path=temporary), dict(zip(names, paths, strict=True)))
    return summary


def summarize_combination(path: Path) -> CombinationSummary:
    """Return the summary of a finished combination, from its files.

    Raises
    ------
    RunError
        If the folder is not a combination, or is damaged.
    """
    model = load_combination(path)
    aligned = _align([member.path for member in model.members.values()], model.members)
    _, comparison = _score(aligned, seed=model.seed)
    return _summarize(model, comparison)


def _summarize(model: Combination, comparison: Comparison) -> CombinationSummary:
    return CombinationSummary(
        path=model.path, weights=model.weights, comparison=comparison,
        guaranteed=model.guaranteed_coverage(COVERAGE),
    )  # fmt: skip


def combine_predictions(
    models: AlignedModels, *, seed: int = 0, n_resamples: int | None = None
) -> CombinationSummary:
    """Return how files of out-of-fold predictions would do combined, for a report only.

    Their folds are unknown, so weights are cross-fitted on folds drawn for that. Probabilities have
    shape (repeats, patients, classes), of which the first repeat is used.

    Raises
    ------
    CalibrationError
        If a class has too few patients.
    """
    labels = models.labels
    proba = np.stack([model.proba[0] for model in models.models], axis=1)
    logits = clipped_log(proba)
    fold = _draw_folds(labels, N_REPEATS, seed=seed)
    repeated = np.broadcast_to(logits, (N_REPEATS, *logits.shape))
    combined = cross_fit(repeated, labels, fold, calibrator=fit_weights)
    calibrator = fit_weights(logits, labels)
    added = (
        ModelPredictions(name=COMBINATION, proba=combined),
        ModelPredictions(name=MEAN, proba=_mean_calibrated(logits, labels, fold)),
    )
    together = replace(
        models, models=(*added, *models.models), n_left_out=(0, 0, *models.n_left_out)
    )
    names = [model.name for model in models.models]
    return CombinationSummary(
        path=None,
        weights=dict(zip(names, calibrator.weights_.tolist(), strict=True)),
        comparison=compare_models(together, seed=seed, n_resamples=n_resamples),
    )


def _draw_folds(labels: Ints, n_repeats: int, *, seed: int) -> Ints:
    """Return folds to cross-fit weights on, shape (repeats, patients).

    They are not those of the runs. The calibrators of a run differ by fold: without a fold's
    mistakes one is bolder, and those of the other folds, which saw them, are more cautious. Weights
    of cautious predictions alone are too large for bold ones, and the scores are then far too bad.
    """
    repeats = [
        stratified_fold_ids(labels, n_folds=N_FOLDS, seed=(seed, r)) for r in range(n_repeats)
    ]
    return np.stack(repeats)


def _same_patients(runs: Sequence[RunPredictions]) -> tuple[RunPredictions, ...]:
    """Return runs on their shared patients; raise for one that saw a patient differently."""
    aligned = align_runs(runs)
    first = aligned[0]
    for whole in runs:
        if len(whole.patient_ids) != len(first.patient_ids):
            missing = sorted(set(whole.patient_ids) - set(first.patient_ids))
            raise RunError(
                whole.path,
                actual=f"trained on {pluralize(len(missing), 'patients')} that another run lacks, "
                f"first {missing[0]!r}",
                expected="the same patients in all runs",
                hint="Embed the missing slides and train again, or leave the patients out of both.",
            )
    for whole, run in zip(runs[1:], aligned[1:], strict=True):
        if not same_folds(first.fold, run.fold):
            raise RunError(
                whole.path,
                actual=f"other folds than those of {first.path}",
                expected="the same, or a patient is out-of-fold in one run and trained on in the "
                "other",
                hint=f"Train it on them: mil train --folds-of {shlex.quote(str(first.path))}",
            )
        if changed := changed_slides([first, run]):
            raise RunError(
                whole.path,
                actual=f"other slides of {pluralize(len(changed), 'patients')} than in "
                f"{first.path}, first {changed[0]!r}",
                expected="the same slides of each patient",
                hint="Embed the missing slides for both encoders and train again.",
            )
    return aligned


def _sets_by_fold(bundles: Sequence[ModelBundle], run: RunPredictions) -> CrossConformal | None:
    """Return the sets of the runs' learners of each fold, with equal weights.

    Fitted weights would have seen the fold's patients by way of the other folds' learners. None
    where a run does not hold the logits of its held-out patients, or numbers its folds otherwise.
    """
    held_out = [bundle.sets.held_out for bundle in bundles]
    if any(set(own) != set(run.patient_ids) for own in held_out):
        return None
    folds = np.array([[own[name].fold for name in run.patient_ids] for own in held_out], np.int64)
    if (folds != folds[0]).any():
        return None
    logits = np.array([[own[name].logits for name in run.patient_ids] for own in held_out])
    return CrossConformal.fit(log_softmax(logits, axis=-1).mean(axis=0), run.labels, folds[0])


def _numbered(fold: Ints) -> Ints:
    """Return folds numbered from 0 in each repeat, shape (repeats, patients)."""
    return np.stack([np.unique(own, return_inverse=True)[1] for own in fold]).astype(np.int64)


def _mean_calibrated(
    logits: Floats, labels: Ints, fold: Ints, *, groups: Ints | None = None
) -> Floats:
    """Return cross-fitted probabilities of equal weights, shape (repeats, patients, classes)."""
    mean = logits.mean(axis=-2, keepdims=True)
    repeated = np.broadcast_to(mean, (len(fold), *mean.shape[-3:]))
    return cross_fit(repeated, labels, fold, calibrator=fit_weights, groups=groups)


def _align(paths: Sequence[Path], bundles: Mapping[str, ModelBundle]) -> _AlignedRuns:
    """Return the predictions of runs for the same patients; raise for one that saw another."""
    runs = _same_patients([read_run_predictions(path) for path in paths])
    n_repeats = min(len(run.fold) for run in runs)
    linked = [pair for own in bundles.values() for pair in linked_patients(own.training_slides)]
    return _AlignedRuns(
        names=tuple(bundles),
        run=runs[0],
        fold=_numbered(runs[0].fold[:n_repeats]),
        proba=np.stack([run.proba[:n_repeats] for run in runs], axis=2),
        groups=group_ids(runs[0].patient_ids, linked),
    )


def _score(
    aligned: _AlignedRuns, *, seed: int, n_resamples: int | None = None
) -> tuple[Floats, Comparison]:
    """Return cross-fitted probabilities, shape (repeats, patients, classes), and their scores.

    The combination is compared with equal weights and with each run.
    """
    run, fold, logits = aligned.run, aligned.fold, clipped_log(aligned.proba)
    drawn = _draw_folds(run.labels, len(fold), seed=seed)
    combined = cross_fit(logits, run.labels, drawn, calibrator=fit_weights, groups=aligned.groups)
    mean = _mean_calibrated(logits, run.labels, drawn, groups=aligned.groups)
    models = [(COMBINATION, combined), (MEAN, mean)]
    models += [(name, aligned.proba[:, :, index]) for index, name in enumerate(aligned.names)]
    together = AlignedModels(
        classes=run.classes,
        patient_ids=run.patient_ids,
        centres=run.centres,
        labels=run.labels,
        models=tuple(ModelPredictions(name=name, proba=p, fold=fold) for name, p in models),
        n_left_out=(0,) * len(models),
        notes=(_CROSS_FITTED,),
    )
    return combined, compare_models(together, seed=seed, n_resamples=n_resamples)


def _write_tables(
    folder: Path, run: RunPredictions, fold: Ints, combined: Floats, mean: Floats
) -> None:
    """Write ``judged.csv`` and ``slides.csv``, as ``mil compare`` reads them."""
    write_held_out_predictions(
        folder,
        {"calibrated": combined, "raw": mean},
        classes=run.classes, patient_ids=run.patient_ids, labels=run.labels, centres=run.centres,
        fold=fold,
    )  # fmt: skip
    slides = [
        (slide_id, slide.patient_id, slide.content_id) for slide_id, slide in run.slides.items()
    ]
    write_table(
        folder / "slides.csv",
        pd.DataFrame(slides, columns=["slide_id", "patient_id", "content_id"]),
    )
