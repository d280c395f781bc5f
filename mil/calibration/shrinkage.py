"""Shrinkage of a fitted calibrator towards no calibration and towards equal probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, softmax

from mil.arrays import Floats
from mil.calibration.penalized_fit import CalibrationData

__all__ = ["akaike_weights"]


def akaike_weights(
    maps: Sequence[Floats], n_parameters: Sequence[float], data: CalibrationData
) -> Floats:
    """Return the weights of several maps of the same logits in their average, shape (maps,).

    They sum to 1 and are proportional to ``exp(log likelihood - parameters)``, a measure of how
    probable it is that a map is the best of them for new patients (Akaike, 1978; Burnham and
    Anderson, 2002). A fitted map has to gain more than its parameters explain by chance, so with
    few patients a map without parameters keeps most of the weight; with many the best map has all
    of it.

    The likelihood is that of the labels at equal class shares, and counts as many patients as are
    worth the weighted ones (Kish, 1965): k² / (1 / n_1 + ... + 1 / n_k) for k classes.

    Parameters
    ----------
    maps
        Logits of each map, shape (n, classes).
    n_parameters
        Number of fitted parameters of each map; an effective number where they are penalised.
    data
        What they were fitted on.
    """
    rows = np.arange(len(data.labels))
    n_worth = len(data.n_per_class) ** 2 / (1 / data.n_per_class).sum()
    weight = data.sample_weight * n_worth / data.sample_weight.sum()
    log_likelihoods = [weight @ log_softmax(own, axis=1)[rows, data.labels] for own in maps]
    return np.asarray(softmax(np.array(log_likelihoods) - n_parameters), np.float64)
