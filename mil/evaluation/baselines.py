"""What a run must beat: means of tissue without attention, and what is no tissue at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.calibration import clipped_log, cross_fit
from mil.data.bags import PatientBags
from mil.data.cohort import Patient
from mil.data.patient_groups import group_ids
from mil.evaluation.shortcut_model import ALL_SHORTCUTS, shortcut_features, shortcut_model
from mil.training.cross_validation import OutOfFoldPredictions

__all__ = ["SHORTCUT", "mean_logistic_probabilities", "shortcut_probabilities"]

SHORTCUT = "shortcut: "
"""How names of predictions begin that come from no tissue."""

_MOST_COMPONENTS = 32
_STRENGTH = 0.1

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def mean_logistic_probabilities(
    bags: PatientBags, found: OutOfFoldPredictions, *, calibrator: str, seed: int
) -> npt.NDArray[np.float64]:
    """Cross-fitted probabilities of a logistic regression on each patient's mean embedding.

    The same patients, folds and calibrator as the run's own probabilities, so that what differs is
    the head alone. Scaling, principal components (at most 32, whitened) and regression are fitted
    inside each training fold; nothing is tuned.

    Parameters
    ----------
    bags
        Bags of the cohort.
    found
        The run's out-of-fold logits; patients, labels and folds are taken from it.
    calibrator
        Name, see :func:`mil.calibration.build_calibrator`.
    seed
        Of the principal components.

    Returns
    -------
    numpy.ndarray
        At the balanced prior, shape (repeats, patients, classes), float64.
    """
    whole = _means(bags, found.patient_ids)

    def columns(barred: Bools) -> Floats:
        seen = bags.refit_without(np.array(found.patient_ids)[barred].tolist())
        means = whole if seen is bags else _means(seen, found.patient_ids)
        empty = np.isnan(means[:, 0])  # left without a tile by the fold's tile filter
        return np.where(empty[:, None], means[~barred & ~empty].mean(axis=0), means)

    def model(n_patients: int) -> Pipeline:
        n_components = min(_MOST_COMPONENTS, whole.shape[1], n_patients // 2)
        return make_pipeline(
            StandardScaler(),
            PCA(n_components, whiten=True, random_state=seed),
            LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=2000),
        )

    return _cross_fitted(found, columns=columns, model=model, calibrator=calibrator)


def shortcut_probabilities(
    patients: Sequence[Patient], bags: PatientBags, found: OutOfFoldPredictions, *, calibrator: str
) -> dict[str, Floats]:
    """Cross-fitted probabilities from what goes along with a patient's slides and is no tissue.

    Centre, number of slides, number of tiles in their bags, and all of them together; the same
    patients, folds and calibrator as the run's own probabilities. What all patients have alike is
    left out.

    Parameters
    ----------
    patients
        The cohort; may hold more patients than were judged.
    bags
        Their bags.
    found, calibrator
        As for :func:`mean_logistic_probabilities`.

    Returns
    -------
    dict
        By name, which begins with :data:`SHORTCUT`, at the balanced prior, shape (repeats,
        patients, classes), float64.
    """
    named = {patient.patient_id: patient for patient in patients}
    n_tiles: Counter[str] = Counter()
    for note in bags.slides:
        n_tiles[note.patient_id] += note.n_tiles
    columns = shortcut_features([named[name] for name in found.patient_ids])
    tiles = np.log1p([[n_tiles[name]] for name in found.patient_ids])
    if np.ptp(tiles) > 0:
        columns["tiles"] = tiles
    if len(columns) > 1:
        columns[ALL_SHORTCUTS] = np.concatenate(list(columns.values()), axis=1)

    def judged_by(name: str) -> Floats:
        return _cross_fitted(
            found, columns=lambda _: columns[name],
            model=lambda _: shortcut_model(name), calibrator=calibrator,
        )  # fmt: skip

    return {SHORTCUT + name: judged_by(name) for name in columns}


def _cross_fitted(
    found: OutOfFoldPredictions,
    *,
    columns: Callable[[Bools], Floats],
    model: Callable[[int], Pipeline],
    calibrator: str,
) -> Floats:
    """Probabilities by a model of each fold, and by a calibrator that had not seen the patient.

    ``columns`` gives numbers of all patients, shape (patients, columns), that know nothing of
    those in a mask: the judged, and who shares a slide with one of them; ``model`` gives one to fit
    to so many patients.
    """
    logits = np.full(found.logits.shape, np.nan)
    groups = group_ids(found.patient_ids, found.linked)
    for repeat, of_repeat in enumerate(found.fold):
        for fold in np.unique(of_repeat):
            judged = of_repeat == fold
            barred = np.isin(groups, groups[judged])
            values = columns(barred)
            fitted = model(int((~barred).sum())).fit(values[~barred], found.labels[~barred])
            logits[repeat, judged] = clipped_log(fitted.predict_proba(values[judged]))
    return cross_fit(logits, found.labels, found.fold, calibrator=calibrator, groups=groups)


def _means(bags: PatientBags, patient_ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean embedding of each patient, shape (patients, dim); NaN where there is no tile."""
    means = np.full((len(patient_ids), bags.fingerprint.dim), np.nan)
    for row, patient_id in zip(means, patient_ids, strict=True):
        if len(tiles := bags.features[patient_id]):
            row[:] = tiles.mean(axis=0, dtype=np.float64)
    return means
