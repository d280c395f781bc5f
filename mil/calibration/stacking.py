"""Stacked generalisation: shrunken non-negative weights of several learners, and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration.base import Calibrator, read_array, register_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    CalibrationData,
    bias_terms,
    fit_penalized_softmax,
)
from mil.errors import CalibrationError

__all__ = ["StackedPlattScaling"]

_RIDGE_SLOPE = 0.125  # of each learner, in units of 1 / standard deviation of its logits


@register_calibrator("platt", stacked=True)
class StackedPlattScaling(Calibrator):
    """One slope per learner and one bias per class, shrunken towards the uniform distribution.

    Probabilities are ``softmax(sum_j slopes_[j] * logits[:, j] + bias_)``, shape (n, classes), with
    ``slopes_ >= 0``: Platt scaling (Platt, 1999) of a log-linear combination of learners whose
    weights are fitted on out-of-fold logits, which is stacked generalisation (Wolpert, 1992; as
    the super learner, van der Laan, Polley and Hubbard, 2007). Logits have shape (n, learners,
    classes).

    Targets, weights and biases are those of :class:`mil.calibration.platt.PlattScaling`. Each
    learner's logits are standardised for the fit, and each slope has a ridge of its own; slopes
    are not pulled together, so a learner without signal gets a weight near 0.

    Attributes
    ----------
    slopes_
        Factors of the logits, shape (learners,), at least 0.
    bias_
        Shape (classes,), sums to 0.
    weights_
        Shape (learners,): each slope times the standard deviation of the logits it was fitted on,
        divided by their sum; all 0 where no learner carries a signal.
    """

    kind = "stacked_platt"

    def __init__(
        self,
        *,
        slopes: Sequence[float] = (1.0,),
        bias: Sequence[float] = (0.0, 0.0),
        weights: Sequence[float] = (1.0,),
    ) -> None:
        self.slopes_: Floats = np.array(slopes, np.float64)
        self.bias_: Floats = np.array(bias, np.float64)
        self.weights_: Floats = np.array(weights, np.float64)

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit to logits of shape (n, learners, classes), see :meth:`Calibrator.fit`."""
        data = [CalibrationData.of(own, labels, groups=groups) for own in np.moveaxis(logits, 1, 0)]
        n, n_learners, n_classes = logits.shape
        weight = data[0].sample_weight[:, None] / data[0].sample_weight.sum()
        means = np.stack([(weight * own.centred).sum(axis=0) for own in data])
        centred = np.stack([own.centred for own in data]) - means[:, None]  # (learners, n, classes)
        spreads = np.sqrt((weight * centred**2).sum(axis=1).mean(axis=1))
        spreads[spreads < 1e-9] = 1.0  # a learner that says the same of everyone
        coefficients = fit_penalized_softmax(
            np.concatenate([centred / spreads[:, None, None], bias_terms(n, n_classes)]),
            data[0],
            ridge=np.array([*[_RIDGE_SLOPE] * n_learners, *[RIDGE_BIAS] * n_classes]),
            nonnegative=np.arange(n_learners),
        )
        standard = coefficients[:n_learners]
        self.slopes_ = standard / spreads
        bias = coefficients[n_learners:] - self.slopes_ @ means
        self.bias_ = bias - bias.mean()
        varies = centred.any(axis=(1, 2))
        self.weights_ = standard * varies / max(float(standard[varies].sum()), 1e-12)
        return self

    def combine(self, logits: Floats) -> Floats:
        """Return logits before the biases, shape (n, classes), centred: the weighted sum."""
        centred = logits - logits.mean(axis=-1, keepdims=True)
        return np.asarray(np.einsum("l,nlc->nc", self.slopes_, centred), np.float64)

    def parts(self, logits: Floats) -> Floats:
        """Return what each learner adds to :meth:`combine`, shape (n, learners, classes)."""
        centred = logits - logits.mean(axis=-1, keepdims=True)
        return np.asarray(self.slopes_[:, None] * centred, np.float64)

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        return np.asarray(softmax(self.combine(logits) + self.bias_, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file: slopes and weights (learners,), bias (classes,)."""
        return {
            "kind": self.kind,
            "slopes": self.slopes_.tolist(),
            "bias": self.bias_.tolist(),
            "weights": self.weights_.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a calibrator from the result of :meth:`as_dict`."""
        slopes, bias, weights = (
            read_array(values, key, n_axes=1) for key in ("slopes", "bias", "weights")
        )
        if slopes.shape != weights.shape or min(slopes.min(), weights.min()) < 0:
            raise CalibrationError(
                "calibrator", actual=f"slopes {slopes.tolist()}, weights {weights.tolist()}",
                expected="as many of both, at least 0",
            )  # fmt: skip
        return cls(slopes=slopes.tolist(), bias=bias.tolist(), weights=weights.tolist())
