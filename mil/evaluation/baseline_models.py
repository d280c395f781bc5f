"""Simple models of a patient's pooled embeddings: what attention has to be better than.

Each is fitted in closed form or to a convex loss, with fixed settings, and sees a patient only as
the mean, or the smallest and largest value, of each dimension of its tiles' embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mil.arrays import Floats, Ints
from mil.calibration import clipped_log
from mil.data.features import Features

__all__ = ["BASELINE_MODELS", "MEAN_LOGISTIC", "baseline_logits", "pool_embeddings"]

MEAN_LOGISTIC = "mean + logistic"
"""Name of the logistic regression on principal components of mean embeddings."""

_MAX_COMPONENTS = 32
_C_COMPONENTS = 0.1
_C_SCALED = 7.0
_RIDGE_SCALED = 16.0
_MEAN_SQUARED_NORM = 16.0
_LARGEST = 3.0  # standard deviations; a few outliers would else outweigh all other dimensions

_Model = Callable[[Floats, Ints, Floats, int], Floats]


def pool_embeddings(
    features: Mapping[str, Features], patient_ids: Sequence[str], *, dim: int
) -> dict[str, Floats]:
    """Return the pooled embeddings of patients by name of the pooling; reads one bag at a time.

    ``mean`` has shape (patients, dim), ``min-max`` shape (patients, 2 * dim), largest values first.
    The rows of a patient without tiles are NaN.
    """
    mean = np.full((len(patient_ids), dim), np.nan)
    extremes = np.full((len(patient_ids), 2 * dim), np.nan)
    for row, patient_id in enumerate(patient_ids):
        if len(tiles := features[patient_id]):
            single = tiles.astype(np.float32, copy=False)  # much faster to compare than float16
            mean[row] = single.mean(axis=0, dtype=np.float64)
            extremes[row] = np.concatenate([single.max(axis=0), single.min(axis=0)])
    return {"mean": mean, "min-max": extremes}


def baseline_logits(
    name: str, train: Mapping[str, Floats], labels: Ints, test: Mapping[str, Floats], *, seed: int
) -> Floats:
    """Fit a model of :data:`BASELINE_MODELS` and return the logits of other patients.

    Parameters
    ----------
    name
        Name of the model.
    train, test
        Pooled embeddings of the patients to fit on and to predict, each of shape (patients,
        columns), as :func:`pool_embeddings` returns them.
    labels
        Class index of each patient to fit on, shape (patients,); every class occurs.
    seed
        Seeds the principal components.

    Returns
    -------
    Floats
        Shape (patients to predict, classes). A patient without tiles gets the logits of a patient
        whose pooled embeddings are the mean of those fitted on. All logits are 0 where the pooled
        embeddings are alike.
    """
    pooling, model = BASELINE_MODELS[name]
    known = ~np.isnan(train[pooling][:, 0])
    values = train[pooling][known]
    if not np.ptp(values, axis=0).any():  # principal components would not be defined
        return np.zeros((len(test[pooling]), int(labels.max()) + 1))
    unknown = np.isnan(test[pooling][:, :1])
    return model(values, labels[known], np.where(unknown, values.mean(axis=0), test[pooling]), seed)


def _mean_logistic(train: Floats, labels: Ints, test: Floats, seed: int) -> Floats:
    """Standardise, keep at most 32 whitened principal components, regress."""
    n_components = min(_MAX_COMPONENTS, train.shape[1], len(train) // 2)
    model = make_pipeline(
        StandardScaler(),
        PCA(n_components, whiten=True, random_state=seed),
        LogisticRegression(C=_C_COMPONENTS, class_weight="balanced", max_iter=2000),
    )
    return clipped_log(model.fit(train, labels).predict_proba(test))


def _scaled_logistic(train: Floats, labels: Ints, test: Floats, _seed: int) -> Floats:
    """Regress on all columns, scaled as a whole, so that one penalty suits any dimension."""
    train, test = _scale(train, test)
    model = LogisticRegression(C=_C_SCALED, class_weight="balanced", max_iter=2000)
    return clipped_log(model.fit(train, labels).predict_proba(test))


def _scaled_ridge(train: Floats, labels: Ints, test: Floats, _seed: int) -> Floats:
    """Regress indicators of the classes, each class with the same total weight."""
    train, test = _scale(train, test)
    weights = len(labels) / np.bincount(labels)[labels] / (labels.max() + 1)
    model = Ridge(alpha=_RIDGE_SCALED).fit(
        train, np.eye(labels.max() + 1)[labels], sample_weight=weights
    )
    return np.asarray(model.predict(test), np.float64)


def _scale(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Standardise, cut at three deviations, and scale to a mean squared norm of 16."""
    scaler = StandardScaler().fit(train)
    train, test = (scaler.transform(part).clip(-_LARGEST, _LARGEST) for part in (train, test))
    squared_norm = float((train**2).sum(axis=1).mean())
    factor = np.sqrt(_MEAN_SQUARED_NORM / squared_norm) if squared_norm else 1.0
    return train * factor, test * factor


BASELINE_MODELS: Mapping[str, tuple[str, _Model]] = MappingProxyType({
    MEAN_LOGISTIC: ("mean", _mean_logistic),
    "min-max logistic": ("min-max", _scaled_logistic),
    "mean + ridge": ("mean", _scaled_ridge),
})  # fmt: skip
"""Models by name: the pooling that each reads, and its fit."""
