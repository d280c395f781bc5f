"""Stacked generalisation: shrunken non-negative weights of several learners, and biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from mil.arrays import Floats, Ints
from mil.calibration.base import Calibrator, read_array, register_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    CalibrationData,
    bias_terms,
    fit_penalized_softmax,
    leave_one_out_logits,
    log_loss,
)
from mil.errors import CalibrationError

__all__ = ["StackedPlattScaling"]

_RIDGE_OF_STACK = 0.125  # of each learner, in units of 1 / standard deviation of its logits
_TEMPERING = 0.5  # decision 0030
_PRIOR_OF_NONE = 0.3  # that no learner carries a signal, decisions 0038 and 0048
_RIDGE_OF_FACTOR = 2.0  # towards 1, decision 0047
_LIMIT = 2.0  # of logits, in units of their root mean square, decision 0048
_LEAST_SIZE = 1e-9
_NONE_AT_MOST = 0.1  # weight of no learner from which the factor is 1, decision 0047


@register_calibrator("platt", stacked=True)
class StackedPlattScaling(Calibrator):
    """One slope per learner and one bias per class, averaged over several ways to combine them.

    Probabilities are ``softmax(sum_j slopes_[j] * saturated[:, j] + bias_)``, shape (n, classes),
    with ``slopes_ >= 0``. Logits have shape (n, learners, classes). What a learner says of one
    patient, centred over classes and of size s (root mean square), is saturated to the size
    l * tanh(s / l), where l is twice the size that its logits have in the fit: what lies far
    beyond the patients of the fit counts little more than what it says of them. Slopes and biases
    are weighted means of those of several fits of that form:

    - all learners with a slope each: stacked generalisation (Wolpert, 1992; as the super learner,
      van der Laan, Polley and Hubbard, 2007);
    - each learner by itself, and the mean of all standardised ones: Platt scaling (Platt, 1999);
    - none of them.

    The weight of a fit is proportional to its prior times exp(-loss / 2), where the loss is its log
    loss on patients left out of it, summed over patients: pseudo-Bayesian model averaging (Geisser
    and Eddy, 1979; Yao et al., 2018), tempered. None has a prior of 0.3 and the others share the
    rest: among so many fits, one may tell few patients apart by chance. Few patients can neither
    choose one learner nor fit a slope for each.

    Ridge, targets and averaging all draw logits towards 0. Where left-out patients bear out more,
    slopes and biases are multiplied by one factor above 1, fitted to the average of their logits.

    Targets, weights of patients, biases and their ridge are those of
    :func:`mil.calibration.platt.fit_platt`, whose ridge on the slope holds where there is one.
    Each learner's logits are standardised for the fits.

    Attributes
    ----------
    slopes_
        Factors of the logits, shape (learners,), at least 0.
    bias_
        Shape (classes,), sums to 0.
    weights_
        Shape (learners,): each slope times the standard deviation of the logits it was fitted on,
        divided by their sum; all 0 where no learner carries a signal.
    limits_
        Sizes at which logits saturate, shape (learners,); infinite in runs trained before format
        version 8 and in combinations.
    """

    kind = "stacked_platt"

    def __init__(
        self,
        *,
        slopes: Sequence[float] = (1.0,),
        bias: Sequence[float] = (0.0, 0.0),
        weights: Sequence[float] = (1.0,),
        limits: Sequence[float] | None = None,
    ) -> None:
        self.slopes_: Floats = np.array(slopes, np.float64)
        self.bias_: Floats = np.array(bias, np.float64)
        self.weights_: Floats = np.array(weights, np.float64)
        self.limits_: Floats = (
            np.full(len(self.slopes_), np.inf) if limits is None else np.array(limits, np.float64)
        )

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit to logits of shape (n, learners, classes), see :meth:`Calibrator.fit`."""
        n_learners, n_classes = logits.shape[1:]
        with np.errstate(invalid="ignore"):  # Infinite logits are refused below.
            sizes = np.sqrt((_sizes(logits) ** 2).mean(axis=0))
            self.limits_ = np.where(sizes > _LEAST_SIZE, _LIMIT * sizes, 1.0)
            saturated = self._gains(logits)[..., None] * logits
        data = [
            CalibrationData.of(own, labels, groups=groups) for own in np.moveaxis(saturated, 1, 0)
        ]
        weight = data[0].sample_weight[:, None] / data[0].sample_weight.sum()
        means = np.stack([(weight * own.centred).sum(axis=0) for own in data])
        centred = np.stack([own.centred for own in data]) - means[:, None]  # (learners, n, classes)
        spreads = np.sqrt((weight * centred**2).sum(axis=1).mean(axis=1))
        varies = spreads > _LEAST_SIZE  # else a learner says the same of everyone
        spreads[~varies] = 1.0
        terms = centred / spreads[:, None, None]
        of_fits = [
            _fit_combination(terms, own, data[0], groups=groups)
            for own in _combinations(terms, varies)
        ]
        none = (np.zeros(n_learners), np.zeros(n_classes), np.zeros_like(data[0].targets))
        slopes, biases, left_out = (np.array(values) for values in zip(*of_fits, none, strict=True))
        losses = np.array([log_loss(own, data[0]) for own in left_out])
        averaging = softmax(_log_prior(len(losses)) - _TEMPERING * losses)
        factor = _fit_factor(
            np.tensordot(averaging, left_out, axes=1), data[0], of_none=float(averaging[-1])
        )
        standard = factor * averaging @ slopes
        self.slopes_ = standard / spreads
        bias = factor * averaging @ biases - self.slopes_ @ means
        self.bias_ = bias - bias.mean()
        self.weights_ = standard / max(float(standard.sum()), 1e-12)
        return self

    def combine(self, logits: Floats) -> Floats:
        """Return logits before the biases, shape (n, classes), centred: the weighted sum."""
        return np.asarray(self.parts(logits).sum(axis=1), np.float64)

    def parts(self, logits: Floats) -> Floats:
        """Return what each learner adds to :meth:`combine`, shape (n, learners, classes)."""
        centred = logits - logits.mean(axis=-1, keepdims=True)
        return np.asarray(self.factors(logits)[..., None] * centred, np.float64)

    def factors(self, logits: Floats) -> Floats:
        """Return what each learner's centred logits are multiplied by, shape (n, learners)."""
        return np.asarray(self.slopes_ * self._gains(logits), np.float64)

    def _gains(self, logits: Floats) -> Floats:
        """Return saturated sizes over sizes, above 0 and at most 1, shape (n, learners)."""
        excess = np.maximum(_sizes(logits) / self.limits_, _LEAST_SIZE)
        return np.asarray(np.tanh(excess) / excess, np.float64)

    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        return np.asarray(softmax(self.combine(logits) + self.bias_, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: slopes, weights and limits (learners,), bias (classes,).

        Infinite limits, which JSON does not know, are left out.
        """
        limits = {"limits": self.limits_.tolist()} if np.isfinite(self.limits_).all() else {}
        return {
            "kind": self.kind,
            "slopes": self.slopes_.tolist(),
            "bias": self.bias_.tolist(),
            "weights": self.weights_.tolist(),
            **limits,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a calibrator from the result of :meth:`as_dict`."""
        slopes, bias, weights = (
            read_array(values, key, n_axes=1) for key in ("slopes", "bias", "weights")
        )
        limits = (
            read_array(values, "limits", n_axes=1)
            if "limits" in values
            else np.full(len(slopes), np.inf)
        )
        if not slopes.shape == weights.shape != (0,) or min(*slopes, *weights) < 0:
            raise CalibrationError(
                "calibrator", actual=f"slopes {slopes.tolist()}, weights {weights.tolist()}",
                expected="as many of both, at least one, none below 0",
            )  # fmt: skip
        if limits.shape != slopes.shape or limits.min() <= 0:
            raise CalibrationError(
                "calibrator", actual=f"limits {limits.tolist()}",
                expected="one number above 0 per slope",
            )  # fmt: skip
        return cls(
            slopes=slopes.tolist(), bias=bias.tolist(), weights=weights.tolist(),
            limits=limits.tolist(),
        )  # fmt: skip


def _sizes(logits: Floats) -> Floats:
    """Return root mean squares over classes of centred logits, shape (n, learners)."""
    centred = logits - logits.mean(axis=-1, keepdims=True)
    return np.asarray(np.sqrt((centred**2).mean(axis=-1)), np.float64)


def _combinations(terms: Floats, varies: npt.NDArray[np.bool_]) -> list[Floats]:
    """Return matrices of slopes, shape (coefficients, learners), one for each way to combine.

    ``terms`` are standardised logits, shape (learners, n, classes); ``varies``, shape (learners,),
    says which of them differ between patients: the others have no slope.
    """
    if not varies.any():
        return []
    alone = np.eye(len(terms))[varies]
    spread = float(np.sqrt((terms[varies].mean(axis=0) ** 2).mean())) or 1.0
    return [alone, *alone[:, None], alone.mean(axis=0, keepdims=True) / spread]


def _fit_combination(
    terms: Floats, combination: Floats, data: CalibrationData, *, groups: Ints | None
) -> tuple[Floats, Floats, Floats]:
    """Return slopes (learners,), biases (classes,), and left-out patients' logits (n, classes)."""
    n_slopes, n_classes = len(combination), terms.shape[2]
    ridge_of_slope = _RIDGE_OF_STACK if n_slopes > 1 else RIDGE_SLOPE
    ridge = np.array([*[ridge_of_slope] * n_slopes, *[RIDGE_BIAS] * n_classes])
    combined = np.concatenate([
        np.tensordot(combination, terms, axes=1), bias_terms(terms.shape[1], n_classes),
    ])  # fmt: skip
    nonnegative = np.arange(n_slopes)
    coefficients = fit_penalized_softmax(combined, data, ridge=ridge, nonnegative=nonnegative)
    n_rows = np.ones(terms.shape[1])
    if groups is not None:
        _, patient, counts = np.unique(groups, return_inverse=True, return_counts=True)
        n_rows = counts[patient].astype(np.float64)
    left_out = leave_one_out_logits(
        combined, coefficients, data, ridge=ridge, nonnegative=nonnegative, n_rows=n_rows
    )
    return coefficients[:n_slopes] @ combination, coefficients[n_slopes:], left_out


def _log_prior(n_fits: int) -> Floats:
    """Return the log prior of each fit, shape (fits,), the last of which is that of no learner."""
    others = max(n_fits - 1, 1)
    return np.log([(1 - _PRIOR_OF_NONE) / others] * (n_fits - 1) + [_PRIOR_OF_NONE])


def _fit_factor(left_out: Floats, data: CalibrationData, *, of_none: float) -> float:
    """Return what to multiply logits by, at least 1, from those of left-out patients.

    ``left_out`` have shape (n, classes). The excess over 1 falls linearly with the weight of no
    learner, ``of_none``, without a step: few patients may bear out too much by chance.
    """
    fitted = fit_penalized_softmax(
        left_out[None], data, ridge=np.array([_RIDGE_OF_FACTOR]), nonnegative=np.array([0]),
        towards=1.0,
    )  # fmt: skip
    return 1 + max(float(fitted[0]) - 1, 0.0) * max(1 - of_none / _NONE_AT_MOST, 0.0)
