"""Combination of finished runs: checks, weights, cross-fitted scores, and the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from features.utils.files import atomic_folder
from features.utils.tables import write_table
from features.utils.text import pluralize
from mil.arrays import Floats, Ints
from mil.calibration import clipped_log
from mil.combination.bundle import Combination, save_combination
from mil.combination.weights import cross_fit_weights, fit_weights
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
from mil.evaluation.run_predictions import RunPredictions, read_run_predictions
from mil.inference.bundle import load_bundle, write_json
from mil.inference.conformal import CrossConformal
from mil.inference.training_slides import linked_patients

__all__ = ["COMBINATION", "MEAN", "CombinationSummary", "combine_predictions", "combine_runs"]

COMBINATION, MEAN = "combination", "equal weights"
"""Names of the combination, and of equal weights, in comparisons with the runs."""

N_FOLDS, N_REPEATS = 5, 5
"""Folds and repeats of the cross-fits of files, whose folds are unknown."""

_CROSS_FITTED = (
    "the combination is cross-fitted: its weights were fitted on other patients, whose predictions "
    "come from heads that may have been trained on the patient"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CombinationSummary:
    """Weights of a combination, and its cross-fitted scores beside those of its members.

    ``weights`` are by name and sum to 1; ``comparison`` holds the combination, equal weights, and
    the members; ``path`` is None for a report on files.
    """

    path: Path | None
    weights: Mapping[str, float]
    comparison: Comparison

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "run": None if self.path is None else str(self.path),
            "weights": dict(self.weights),
            "kind": "cross-fitted: weights and calibrator of a patient were fitted on others",
            **self.comparison.as_dict(),
        }


def combine_runs(
    paths: Sequence[Path], run_dir: Path, *, seed: int = 0, n_resamples: int | None = None
) -> CombinationSummary:
    """Combine finished runs on the same patients and folds into one model in ``run_dir``.

    The weights are fitted on the log of the runs' calibrated out-of-fold probabilities, shape
    (repeats, patients, runs, classes). Scores, out-of-fold probabilities and prediction sets use
    weights fitted on the other folds, without patients that share a slide with one of the fold.

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
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise InputError(
            "runs", actual=f"{', '.join(map(str, paths))}", expected="two or more different ones"
        )
    names = [name.replace("/", "-") for name in short_names(paths)]
    for path in paths:
        if (path / "combination.json").is_file():
            raise RunError(
                path, actual="a combination", expected="a single run",
                hint="Name the runs that it combines.",
            )  # fmt: skip
    bundles = {name: load_bundle(path) for name, path in zip(names, paths, strict=True)}
    runs = _same_patients([read_run_predictions(path) for path in paths])
    first = runs[0]
    n_repeats = min(len(run.fold) for run in runs)
    fold = _numbered(first.fold[:n_repeats])
    proba = np.stack([run.proba[:n_repeats] for run in runs], axis=2)
    logits = clipped_log(proba)
    linked = [pair for own in bundles.values() for pair in linked_patients(own.training_slides)]
    groups = group_ids(first.patient_ids, linked)
    combined, _ = cross_fit_weights(logits, first.labels, fold, groups=groups)
    n_patients = len(first.labels)
    calibrator = fit_weights(
        logits.reshape(-1, *logits.shape[2:]), np.tile(first.labels, n_repeats),
        groups=np.tile(np.arange(n_patients), n_repeats),
    )  # fmt: skip
    mean = _mean_calibrated(logits, first.labels, fold, groups=groups)
    comparison = _compare(names, proba, combined, mean, first, fold, seed, n_resamples)
    combination = Combination(
        path=run_dir,
        classes=first.classes,
        members=bundles,
        calibrator=calibrator,
        conformal=CrossConformal.fit(
            clipped_log(combined[0]), first.labels, np.zeros(n_patients, np.int64)
        ),
        cohort_counts=tuple(np.bincount(first.labels, minlength=len(first.classes)).tolist()),
        out_of_fold=dict(zip(first.patient_ids, combined.mean(axis=0), strict=True)),
        abstention=choose_abstention(combined[0], first.labels, fold[0], groups=groups),
    )
    summary = CombinationSummary(path=run_dir, weights=combination.weights, comparison=comparison)
    with atomic_folder(run_dir) as temporary:
        scores = {
            metric: score.as_dict() for metric, score in comparison.scores[COMBINATION].items()
        }
        write_json(temporary / "scores.json", {"kind": "cross-fitted", "calibrated": scores})
        _write_tables(temporary, first, fold, combined, proba.mean(axis=2))
        save_combination(replace(combination, path=temporary), dict(zip(names, paths, strict=True)))
    return summary


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
    fold = np.stack(
        [
            stratified_fold_ids(labels, n_folds=N_FOLDS, seed=(seed, repeat))
            for repeat in range(N_REPEATS)
        ]
    )
    combined, _ = cross_fit_weights(
        np.broadcast_to(logits, (N_REPEATS, *logits.shape)), labels, fold
    )
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


def _same_patients(runs: Sequence[RunPredictions]) -> tuple[RunPredictions, ...]:
    """Return runs on their shared patients; raise for one that saw a patient differently."""
    aligned = align_runs(runs)
    first = aligned[0]
    for whole, run in zip(runs[1:], aligned[1:], strict=True):
        if not same_folds(first.fold, run.fold):
            raise RunError(
                whole.path,
                actual=f"other folds than those of {first.path}",
                expected="the same, or a patient is out-of-fold in one run and trained on in the "
                "other",
                hint=f"Train it with 'mil train --folds-of {first.path}'.",
            )
        if changed := changed_slides([first, run]):
            raise RunError(
                whole.path,
                actual=f"other slides of {pluralize(len(changed), 'patients')} than in "
                f"{first.path}, first {changed[0]!r}",
                expected="the same slides of each patient",
                hint="Embed the missing slides for both encoders and train again.",
            )
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
    return aligned


def _numbered(fold: Ints) -> Ints:
    """Return folds numbered from 0 in each repeat, shape (repeats, patients)."""
    return np.stack([np.unique(own, return_inverse=True)[1] for own in fold]).astype(np.int64)


def _mean_calibrated(
    logits: Floats, labels: Ints, fold: Ints, *, groups: Ints | None = None
) -> Floats:
    """Return cross-fitted probabilities of equal weights, shape (repeats, patients, classes)."""
    mean = logits.mean(axis=-2, keepdims=True)
    repeated = np.broadcast_to(mean, (len(fold), *mean.shape[-3:]))
    return cross_fit_weights(repeated, labels, fold, groups=groups)[0]


def _compare(
    names: Sequence[str],
    proba: Floats,
    combined: Floats,
    mean: Floats,
    run: RunPredictions,
    fold: Ints,
    seed: int,
    n_resamples: int | None,
) -> Comparison:
    """Return the comparison of the combination with equal weights and with each run."""
    models = [(COMBINATION, combined), (MEAN, mean)]
    models += [(name, proba[:, :, index]) for index, name in enumerate(names)]
    aligned = AlignedModels(
        classes=run.classes,
        patient_ids=run.patient_ids,
        centres=run.centres,
        labels=run.labels,
        models=tuple(ModelPredictions(name=name, proba=p, fold=fold) for name, p in models),
        n_left_out=(0,) * len(models),
        notes=(_CROSS_FITTED,),
    )
    return compare_models(aligned, seed=seed, n_resamples=n_resamples)


def _write_tables(
    folder: Path, run: RunPredictions, fold: Ints, combined: Floats, mean: Floats
) -> None:
    """Write ``judged.csv`` and ``slides.csv``, as ``mil compare`` reads them."""
    of_repeats = []
    for repeat, of_fold in enumerate(fold):
        columns: dict[str, object] = {
            "repeat": repeat,
            "fold": of_fold,
            "patient_id": run.patient_ids,
            "label": [run.classes[label] for label in run.labels],
            "center_id": run.centres,
        }
        for kind, proba in (("calibrated", combined[repeat]), ("raw", mean[repeat])):
            columns |= {f"{kind}_{n}": proba[:, index] for index, n in enumerate(run.classes)}
        of_repeats.append(pd.DataFrame(columns))
    write_table(folder / "judged.csv", pd.concat(of_repeats))
    slides = [
        (slide_id, slide.patient_id, slide.content_id) for slide_id, slide in run.slides.items()
    ]
    write_table(
        folder / "slides.csv",
        pd.DataFrame(slides, columns=["slide_id", "patient_id", "content_id"]),
    )
