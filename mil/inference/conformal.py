"""Prediction sets from class-conditional cross-conformal p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.special import betaincinv, log_softmax

from mil.arrays import Bools, Floats, Ints
from mil.errors import CalibrationError

__all__ = ["COVERAGE", "CrossConformal", "cross_fitted_sets", "min_calibration_size"]

COVERAGE = 0.9
"""Default target coverage."""

_DIGITS = 12
_FEW_COHORTS = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossConformal:
    """Class-conditional cross-conformal predictor, from out-of-fold logits.

    A class stays in a patient's set unless the patient's nonconformity score for it is above those
    of nearly all patients of that class, each compared under the heads of a fold that was trained
    on neither. These are cross-conformal predictors (Vovk, 2015), that is CV+ (Barber et al., 2021;
    Romano et al., 2020), label-conditional or Mondrian (Vovk et al., 2005). ``scores`` are the
    sorted nonconformity scores of the held-out patients by fold and class, each of shape
    (patients,): the negative log probability of the true class under raw logits, in nats.
    """

    scores: tuple[tuple[Floats, ...], ...]

    def __post_init__(self) -> None:
        whole = all(np.isfinite(of_class).all() for of in self.scores for of_class in of)
        if not self.scores or not whole or len({len(of) for of in self.scores}) != 1:
            raise CalibrationError(
                "prediction sets", actual="gaps", expected="finite numbers for every fold and class"
            )

    @classmethod
    def fit(cls, logits: Floats, labels: Ints, folds: Ints) -> Self:
        """Collect the nonconformity scores of one cross-validation.

        ``logits`` are out-of-fold, shape (patients, classes); ``labels`` and ``folds`` (from 0),
        shape (patients,), are the true class and the fold in which a patient was held out.
        """
        own = _nonconformity(logits)[np.arange(len(labels)), labels]
        return cls(
            scores=tuple(
                tuple(
                    np.sort(own[(folds == fold) & (labels == index)])
                    for index in range(logits.shape[1])
                )
                for fold in range(folds.max() + 1)
            )
        )

    @property
    def counts(self) -> Ints:
        """Patients of each class, shape (classes,)."""
        of_folds = [[len(own) for own in of_fold] for of_fold in self.scores]
        return np.asarray(np.sum(of_folds, axis=0), np.int64)

    def p_values(self, logits: Floats) -> Floats:
        """Return the p-value of each class, 1 / (patients + 1) to 1, shape (n, classes).

        ``logits``, shape (folds, n, classes), are those of new patients by the heads of each fold.
        """
        at_least = np.ones(logits.shape[1:])
        for of_fold, own in zip(self.scores, _nonconformity(logits), strict=True):
            for index, calibration in enumerate(of_fold):
                # Ties count as more extreme, which can only make sets larger.
                at_least[:, index] += len(calibration) - np.searchsorted(calibration, own[:, index])
        return np.asarray(at_least / (self.counts + 1), np.float64)

    def sets(self, logits: Floats, *, coverage: float) -> Bools:
        """Return which classes cannot be ruled out, bool, shape (n, classes).

        All of them where any class has fewer patients than :func:`min_calibration_size`: it could
        never be ruled out, and sets of that class alone would look like a prediction. ``logits``
        have shape (folds, n, classes); ``coverage`` is above 0 and below 1.
        """
        if self.undersized(coverage).any():
            return np.ones(logits.shape[1:], np.bool_)
        return np.asarray(self.p_values(logits) > _alpha(coverage))

    def undersized(self, coverage: float) -> Bools:
        """Return which classes have too few patients to be ruled out, bool, shape (classes,)."""
        return np.asarray(self.counts < min_calibration_size(coverage))

    def guaranteed_coverage(self, coverage: float) -> Floats:
        """Return the lower bound of each class's coverage, whatever the heads, shape (classes,).

        It holds for new patients from the same distribution, on average over cohorts, and for folds
        drawn at random within classes; folds that are balanced over centres as well come close. It
        is the better of two bounds, with n patients of a class in K folds, and m what the level
        leaves of n + 1, rounded down:

        - The p-value of a single fold is exact, and twice a mean of p-values is one (Rüschendorf,
          1982; Vovk and Wang, 2020). That mean is at most (m + K - 1) / (n + K) where the class is
          ruled out, and at most twice as many are missed.
        - CV+ (Barber et al., 2021, theorem 4): had the new patient been held out with others, in a
          fold of its own, the patients of all folds could be exchanged. Of those that the others
          make look strange, at most (2 (m - 1) + n / K) / (n + n / K) in all, the new patient is
          one as probably as any. Folds of unequal size can be exchanged only with their equals.

        Of a single fold, whose heads were fitted on none of its patients, the p-value is exact:
        m / (n + 1) are missed at most (split conformal prediction; Papadopoulos et al., 2002).
        """
        if self.undersized(coverage).any():
            return np.ones(len(self.counts))
        counts, n_folds = self.counts, len(self.scores)
        most = self._most_as_high(coverage)
        if n_folds == 1:
            return np.asarray(1 - most / (counts + 1), np.float64)
        by_mean = 2 * (most + n_folds - 1) / (counts + n_folds)
        of_folds = np.array([[len(own) for own in of_fold] for of_fold in self.scores])
        sizes, n_alike = np.unique(of_folds[of_folds.min(axis=1) > 0], axis=0, return_counts=True)
        by_exchange = (2 * (most - 1) + sizes) / ((n_alike[:, None] + 1) * sizes)
        missed = np.minimum(by_mean, by_exchange.min(axis=0, initial=1.0))
        return np.asarray(np.clip(1 - missed, 0, 1))

    def coverage_of_most_cohorts(self, coverage: float) -> Floats:
        """Return the coverage of each class that nine in ten cohorts reach, shape (classes,).

        The coverage of the sets that one cohort gives varies with its patients. For sets of a fixed
        model it has the distribution Beta(n + 1 - m, m) (Vovk, 2012, proposition 2), and this is
        its lower tenth; n and m are those of :meth:`guaranteed_coverage`. Heads of several folds
        do not follow this law exactly; simulated trainings of the default learner follow it about
        (``tests/benchmarks/coverage.py``).
        """
        if self.undersized(coverage).any():
            return np.ones(len(self.counts))
        most = self._most_as_high(coverage)
        return np.asarray(betaincinv(self.counts + 1 - most, most, _FEW_COHORTS), np.float64)

    def _most_as_high(self, coverage: float) -> Floats:
        """Return m for each class: ruled out where fewer than m patients score as high."""
        return np.asarray(np.floor(np.round(_alpha(coverage) * (self.counts + 1), _DIGITS)))

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return plain values for a file: by class, sorted scores, shape (patients,), per fold."""
        return {
            name: [of_fold[index].tolist() for of_fold in self.scores]
            for index, name in enumerate(classes)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: Sequence[str]) -> Self:
        """Build a predictor from the result of :meth:`as_dict`.

        Raises
        ------
        CalibrationError
            If a class is missing, or classes have different numbers of folds.
        ValueError
            If a value is not a number.
        """
        if set(values) != set(classes) or len({len(of) for of in values.values()}) != 1:
            raise CalibrationError(
                "prediction sets", actual=", ".join(values), expected=f"folds of {classes}"
            )
        folds = zip(*(values[name] for name in classes), strict=True)
        return cls(
            scores=tuple(
                tuple(np.sort(np.asarray(own, np.float64)) for own in of_fold) for of_fold in folds
            )
        )


def min_calibration_size(coverage: float) -> int:
    """Return the fewest patients of a class to rule it out at all: 9 for 0.9, 19 for 0.95."""
    return int(np.ceil(np.round(1 / _alpha(coverage), _DIGITS))) - 1


def cross_fitted_sets(proba: Floats, labels: Ints, folds: Ints, *, coverage: float) -> Bools:
    """Return prediction sets of the patients of a cross-validation, from those of other folds.

    Unlike :class:`CrossConformal`, this compares scores by heads of different folds, so there is no
    guarantee. It shows the sizes of the sets. ``proba``, the calibrated out-of-fold probabilities,
    and the result have shape (patients, classes), ``labels`` and ``folds`` shape (patients,).
    """
    logits = np.log(np.clip(proba, np.finfo(np.float64).tiny, None))
    sets = np.empty(proba.shape, np.bool_)
    for fold in np.unique(folds):
        held_out = folds == fold
        others = CrossConformal.fit(
            logits[~held_out], labels[~held_out], np.zeros(int((~held_out).sum()), np.int64)
        )
        sets[held_out] = others.sets(logits[None, held_out], coverage=coverage)
    return sets


def _nonconformity(logits: Floats) -> Floats:
    """Return the nonconformity score of each class, shape (..., classes), in nats.

    Raw logits suffice: with two classes any calibrator that preserves ranks preserves those of the
    scores, and a calibrator would have been fitted on the patients.
    """
    return np.asarray(-log_softmax(logits, axis=-1), np.float64)


def _alpha(coverage: float) -> float:
    """Return 1 - coverage without rounding error of binary fractions: 0.1 for 0.9."""
    return round(1 - coverage, _DIGITS)
