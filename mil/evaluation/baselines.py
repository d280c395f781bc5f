"""Baselines of a run: mean embeddings without attention, and variables other than tissue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.arrays import Bools, Floats
from mil.calibration import clipped_log, cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Patient
from mil.data.patient_groups import group_ids
from mil.evaluation.shortcut_model import ALL_SHORTCUTS, shortcut_features, shortcut_model
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["SHORTCUT", "mean_logistic_probabilities", "shortcut_probabilities"]

SHORTCUT = "shortcut: "
"""Prefix of the names of predictions from variables other than tissue."""

_MAX_COMPONENTS = 32
_C = 0.1


def mean_logistic_probabilities(
    bags: PatientBags, oof: OutOfFoldPredictions, *, calibrator: str, seed: int
) -> Floats:
    """Return cross-fitted probabilities of a logistic regression on mean embeddings.

    They have shape (repeats, patients, classes), at the balanced prior. Patients, folds and
    calibrator are those of the run's own probabilities, so that only the head differs. Scaling,
    principal components (at most 32, whitened) and regression are fitted inside each training fold;
    nothing is tuned.
    """
    all_means = _means(bags, oof.patient_ids)

    def columns(excluded: Bools) -> Floats:
        refit = bags.refit_without(np.array(oof.patient_ids)[excluded].tolist())
        means = all_means if refit is bags else _means(refit, oof.patient_ids)
        empty = np.isnan(means[:, 0])  # the fold's tile filter dropped all tiles
        return np.where(empty[:, None], means[~excluded & ~empty].mean(axis=0), means)

    def model(n_patients: int) -> Pipeline:
        n_components = min(_MAX_COMPONENTS, all_means.shape[1], n_patients // 2)
        return make_pipeline(
            StandardScaler(),
            PCA(n_components, whiten=True, random_state=seed),
            LogisticRegression(C=_C, class_weight="balanced", max_iter=2000),
        )

    return _cross_fitted(oof, columns=columns, model=model, calibrator=calibrator)


def shortcut_probabilities(
    patients: Sequence[Patient], bags: PatientBags, oof: OutOfFoldPredictions, *, calibrator: str
) -> dict[str, Floats]:
    """Return cross-fitted probabilities from variables other than tissue.

    These are centre, number of slides, number of tiles, and all of them together, without those
    that do not vary. As for :func:`mean_logistic_probabilities`, probabilities have shape (repeats,
    patients, classes); names have the prefix :data:`SHORTCUT`. Further ``patients`` are ignored.
    """
    by_id = {patient.patient_id: patient for patient in patients}
    n_tiles: Counter[str] = Counter()
    for slide in bags.slides:
        n_tiles[slide.patient_id] += slide.n_tiles
    columns = shortcut_features([by_id[name] for name in oof.patient_ids])
    tiles = np.log1p([[n_tiles[name]] for name in oof.patient_ids])
    if np.ptp(tiles) > 0:
        columns["tiles"] = tiles
    if len(columns) > 1:
        columns[ALL_SHORTCUTS] = np.concatenate(list(columns.values()), axis=1)

    def predict_from(name: str) -> Floats:
        return _cross_fitted(
            oof, columns=lambda _: columns[name],
            model=lambda _: shortcut_model(name), calibrator=calibrator,
        )  # fmt: skip

    return {SHORTCUT + name: predict_from(name) for name in columns}


def _cross_fitted(
    oof: OutOfFoldPredictions,
    *,
    columns: Callable[[Bools], Floats],
    model: Callable[[int], Pipeline],
    calibrator: str,
) -> Floats:
    """Return cross-fitted probabilities of a model per fold, shape (repeats, patients, classes).

    ``columns`` returns the features of all patients, shape (patients, columns), computed without
    the patients of a mask: those held out, and those who share a slide with one of them. ``model``
    returns an unfitted model for a number of patients.
    """
    logits = np.full(oof.logits.shape, np.nan)
    groups = group_ids(oof.patient_ids, oof.linked)
    for repeat, folds in enumerate(oof.fold):
        for fold in np.unique(folds):
            held_out = folds == fold
            excluded = np.isin(groups, groups[held_out])
            values = columns(excluded)
            fitted = model(int((~excluded).sum())).fit(values[~excluded], oof.labels[~excluded])
            logits[repeat, held_out] = clipped_log(fitted.predict_proba(values[held_out]))
    return cross_fit(logits, oof.labels, oof.fold, calibrator=calibrator, groups=groups)


def _means(bags: PatientBags, patient_ids: Sequence[str]) -> Floats:
    """Return mean embeddings, shape (patients, dim); NaN for a patient without tiles."""
    means = np.full((len(patient_ids), bags.fingerprint.dim), np.nan)
    for row, patient_id in zip(means, patient_ids, strict=True):
        if len(tiles := bags.features[patient_id]):
            row[:] = tiles.mean(axis=0, dtype=np.float64)
    return means
