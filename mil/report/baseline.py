"""The baseline that looks at tissue without attention: logistic regression on mean embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.calibration import cross_fit, logits_of
from mil.data import PatientBags
from mil.validation import OutOfFold

__all__ = ["mean_logistic_probabilities"]

_MOST_COMPONENTS = 32
_STRENGTH = 0.1


def mean_logistic_probabilities(
    bags: PatientBags, found: OutOfFold, *, calibrator: str, seed: int
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
    logits = np.full(found.logits.shape, np.nan)
    for repeat, of_repeat in enumerate(found.fold):
        for fold in np.unique(of_repeat):
            judged = of_repeat == fold
            seen = bags.held_out(np.array(found.patient_ids)[judged].tolist())
            means = whole if seen is bags else _means(seen, found.patient_ids)
            empty = np.isnan(means[:, 0])  # left without a tile by the fold's tile filter
            means = np.where(empty[:, None], means[~judged & ~empty].mean(axis=0), means)
            n_components = min(_MOST_COMPONENTS, means.shape[1], int((~judged).sum()) // 2)
            model = make_pipeline(
                StandardScaler(),
                PCA(n_components, whiten=True, random_state=seed),
                LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=2000),
            )
            model.fit(means[~judged], found.labels[~judged])
            logits[repeat, judged] = logits_of(model.predict_proba(means[judged]))
    return cross_fit(logits, found.labels, found.fold, calibrator=calibrator).proba


def _means(bags: PatientBags, patient_ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean embedding of each patient, shape (patients, dim); NaN where there is no tile."""
    means = np.full((len(patient_ids), bags.fingerprint.dim), np.nan)
    for row, patient_id in zip(means, patient_ids, strict=True):
        if len(tiles := bags.features[patient_id]):
            row[:] = tiles.mean(axis=0, dtype=np.float64)
    return means
