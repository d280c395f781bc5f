"""Which classes cannot be ruled out: cross-conformal p-values, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from mil.errors import CalibrationError

__all__ = ["COVERAGE", "CrossConformal", "cross_fitted_sets", "min_calibration_size"]

COVERAGE = 0.9
"""Aimed at where nothing else is asked for."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DIGITS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossConformal:
    """How strange patients of each class looked to the heads of the fold they were kept from.

    A class stays in a patient's set unless the patient looks stranger for it than nearly all
    patients of that class do, each compared under the heads of one fold, which saw neither. These
    are cross-conformal predictors (Vovk, 2015), that is CV+ (Barber et al., 2021; Romano et al.,
    2020), taken for each class by itself (label-conditional or Mondrian; Vovk et al., 2005).
    """

    strangeness: tuple[tuple[Floats, ...], ...]
    """By fold and class, sorted: minus the log probability of their own class that raw logits give
    patients judged there, in nats."""

    def __post_init__(self) -> None:
        whole = all(np.isfinite(of_class).all() for of in self.strangeness for of_class in of)
        if not self.strangeness or not whole or len({len(of) for of in self.strangeness}) != 1:
            raise CalibrationError(
                "prediction sets", actual="gaps", expected="finite numbers for every fold and class"
            )

    @classmethod
    def fit(cls, logits: Floats, labels: Ints, folds: Ints) -> Self:
        """Take the patients of one cross-validation.

        Parameters
        ----------
        logits
            Out-of-fold logits, shape (patients, classes).
        labels
            Index of the true class, shape (patients,).
        folds
            Fold in which each was judged, from 0, shape (patients,).
        """
        own = _nonconformity(logits)[np.arange(len(labels)), labels]
        return cls(
            strangeness=tuple(
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
        of_folds = [[len(own) for own in of_fold] for of_fold in self.strangeness]
        return np.asarray(np.sum(of_folds, axis=0), np.int64)

    def p_values(self, logits: Floats) -> Floats:
        """For each class, how usual the patient would be in it: 1 / (patients + 1) to 1.

        Parameters
        ----------
        logits
            Shape (folds, n, classes): what the heads of each fold say of patients that none saw.

        Returns
        -------
        numpy.ndarray
            Shape (n, classes).
        """
        stranger = np.ones(logits.shape[1:])
        for of_fold, own in zip(self.strangeness, _nonconformity(logits), strict=True):
            for index, known in enumerate(of_fold):
                # Ties count as stranger, which can only make sets larger.
                stranger[:, index] += len(known) - np.searchsorted(known, own[:, index])
        return np.asarray(stranger / (self.counts + 1), np.float64)

    def sets(self, logits: Floats, *, coverage: float) -> Bools:
        """Which classes cannot be ruled out, shape (n, classes).

        All of them where any class has fewer than :func:`min_calibration_size`: it could never be
        ruled out, and would seem to be found where the others are.

        Parameters
        ----------
        logits
            As for :meth:`p_values`.
        coverage
            Aimed at, above 0 and below 1.
        """
        if self.undersized(coverage).any():
            return np.ones(logits.shape[1:], np.bool_)
        return np.asarray(self.p_values(logits) > _alpha(coverage))

    def undersized(self, coverage: float) -> Bools:
        """Which classes have too few patients ever to be ruled out, shape (classes,)."""
        return np.asarray(self.counts < min_calibration_size(coverage))

    def guaranteed_coverage(self, coverage: float) -> Floats:
        """Coverage of each class below which no heads can bring the sets, shape (classes,).

        It is that of new patients drawn like these, on average over cohorts, and of folds dealt by
        class and chance alone; folds that are spread over centres as well come near it only. The
        p-value of a single fold is exact then, and twice a mean of p-values is one (Rüschendorf,
        1982; Vovk and Wang, 2020). With n patients of a class in K folds that mean is at most
        (m + K − 1) / (n + K) where the class is ruled out, m being what the level leaves of n + 1,
        rounded down; at most twice as many are missed.
        """
        counts, n_folds = self.counts, len(self.strangeness)
        if self.undersized(coverage).any():
            return np.ones(len(counts))
        most = np.floor(np.round(_alpha(coverage) * (counts + 1), _DIGITS))
        return np.asarray(np.clip(1 - 2 * (most + n_folds - 1) / (counts + n_folds), 0, 1))

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain values for a file: by class, the sorted numbers of each fold."""
        return {
            name: [of_fold[index].tolist() for of_fold in self.strangeness]
            for index, name in enumerate(classes)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], classes: Sequence[str]) -> Self:
        """Read what :meth:`as_dict` gave.

        Raises
        ------
        CalibrationError
            If a class is absent, or folds differ between classes.
        ValueError
            If what stands there are no numbers.
        """
        if set(values) != set(classes) or len({len(of) for of in values.values()}) != 1:
            raise CalibrationError(
                "prediction sets", actual=", ".join(values), expected=f"folds of {classes}"
            )
        folds = zip(*(values[name] for name in classes), strict=True)
        return cls(
            strangeness=tuple(
                tuple(np.sort(np.asarray(own, np.float64)) for own in of_fold) for of_fold in folds
            )
        )


def min_calibration_size(coverage: float) -> int:
    """Patients of a class that it takes to ever rule it out: 9 for 0.9, 19 for 0.95."""
    return int(np.ceil(np.round(1 / _alpha(coverage), _DIGITS))) - 1


def cross_fitted_sets(proba: Floats, labels: Ints, folds: Ints, *, coverage: float) -> Bools:
    """Sets for the patients of a cross-validation themselves, each by the patients of other folds.

    Unlike in :class:`CrossConformal`, patients are compared although heads of different folds
    judged them, so that no guarantee goes with these. They show how large sets come out.

    Parameters
    ----------
    proba
        Calibrated out-of-fold probabilities, shape (patients, classes).
    labels, folds
        As for :meth:`CrossConformal.fit`.
    coverage
        Aimed at.

    Returns
    -------
    numpy.ndarray
        Shape (patients, classes), bool.
    """
    logits = np.log(np.clip(proba, np.finfo(np.float64).tiny, None))
    found = np.empty(proba.shape, np.bool_)
    for fold in np.unique(folds):
        judged = folds == fold
        others = CrossConformal.fit(
            logits[~judged], labels[~judged], np.zeros(int((~judged).sum()), np.int64)
        )
        found[judged] = others.sets(logits[None, judged], coverage=coverage)
    return found


def _nonconformity(logits: Floats) -> Floats:
    """Of any shape (..., classes), in nats.

    Raw logits suffice, and need no calibrator that would have seen the patients: of two classes any
    calibrator that keeps the order keeps that of these numbers.
    """
    return np.asarray(-log_softmax(logits, axis=-1), np.float64)


def _alpha(coverage: float) -> float:
    """Share that may be missed, freed of what binary fractions add: 1 − 0.9 is 0.1."""
    return round(1 - coverage, _DIGITS)
