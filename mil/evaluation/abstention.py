"""Risk against coverage: how many errors are left where the least certain patients are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from scipy.stats import beta

from mil.arrays import Bools, Floats, Ints

__all__ = ["AbstentionPoint", "RiskCoverage", "choose_abstention", "risk_coverage"]

_RISK_SHARE = 0.5
_MIN_PATIENTS = 10
_CONFIDENCE = 0.99  # in weak cohorts, the points that are found hold a limit of 95 % too rarely
_BOOTSTRAP_LIMITS = ("risk_low", "risk_high")  # of earlier versions, too narrow


@dataclass(frozen=True, kw_only=True, eq=False)
class RiskCoverage:
    """Risk of the patients kept, by the least confidence that is kept, from highest to lowest.

    Confidence is the largest probability at equal class shares. ``coverage`` is the share of
    patients kept and ``risk`` their share of errors, every class weighing the same (selective
    classification; El-Yaniv and Wiener, 2010). All have shape (thresholds,), and ``n_kept`` counts
    patients.
    """

    threshold: Floats
    coverage: Floats
    risk: Floats
    n_kept: Ints


@dataclass(frozen=True, kw_only=True)
class AbstentionPoint:
    """Chosen point of a curve: patients whose confidence is below ``threshold`` need review.

    ``coverage`` and ``risk`` are those of patients whose own fold had no part in the choice,
    ``risk_of_all`` is the risk without abstaining. ``risk_at_most`` is the number to plan with: the
    upper limit of the risk at ``confidence`` (one-sided; Clopper and Pearson, 1934), with as many
    patients as the class-balanced ones are worth (Kish, 1965). Runs of earlier versions have None,
    or a limit at 0.95.
    """

    threshold: float
    coverage: float
    risk: float
    risk_of_all: float
    risk_at_most: float | None = None
    confidence: float = 0.95

    def as_dict(self) -> dict[str, float]:
        """Return plain values for a file."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a point from the result of :meth:`as_dict`; ValueError if a value is no share."""
        kept = {name: float(value) for name, value in values.items()
                if name not in _BOOTSTRAP_LIMITS}  # fmt: skip
        point = cls(**kept)
        if not all(0 <= value <= 1 for value in point.as_dict().values()):
            raise ValueError(f"abstention {dict(values)}")
        return point


def risk_coverage(proba: Floats, labels: Ints) -> RiskCoverage:
    """Return the curve of probabilities at equal class shares, shape (patients, classes).

    ``labels`` are class indices, shape (patients,). Patients of equal confidence are kept together.
    """
    confidence, is_wrong, weights = _confidence_and_errors(proba, labels)
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.append(np.diff(confidence[order]) < 0, np.True_))
    kept = np.cumsum(weights[order])[last]
    return RiskCoverage(
        threshold=confidence[order][last],
        coverage=kept / weights.sum(),
        risk=np.cumsum((weights * is_wrong)[order])[last] / kept,
        n_kept=last + 1,
    )


def choose_abstention(
    proba: Floats, labels: Ints, folds: Ints, *, groups: Ints | None = None
) -> AbstentionPoint | None:
    """Return the point that keeps most patients at half the risk of all, if there is one.

    At least 10 patients are kept. ``proba`` are out-of-fold probabilities at equal class shares,
    shape (patients, classes), ``labels`` and ``folds`` have shape (patients,). The threshold is
    chosen on all patients; its coverage and risk are measured with thresholds that were chosen on
    the other folds of each patient, without patients of the same group: ``groups``, shape
    (patients,), are those of :func:`mil.data.patient_groups.group_ids`. Unless they are nested, the
    probabilities of those others come from heads and calibrators that the patient had a part in.
    None if no point has half the risk, if that measurement keeps fewer than 10 patients, or if the
    measured risk is not below the risk of all.
    """
    threshold = _choose(proba, labels)
    if threshold is None:
        return None
    confidence, is_wrong, weights = _confidence_and_errors(proba, labels)
    is_kept = np.zeros(len(labels), np.bool_)
    groups = np.arange(len(labels)) if groups is None else groups
    for fold in np.unique(folds):
        inside = folds == fold
        others = ~np.isin(groups, groups[inside])
        of_others = _choose(proba[others], labels[others])
        is_kept[inside] = False if of_others is None else confidence[inside] >= of_others
    risk_of_all = float((weights * is_wrong).sum() / weights.sum())
    if is_kept.sum() < _MIN_PATIENTS:
        return None
    kept = weights[is_kept]
    risk = float(kept @ is_wrong[is_kept] / kept.sum())
    if risk >= risk_of_all:
        return None
    n_effective = kept.sum() ** 2 / (kept @ kept)
    return AbstentionPoint(
        threshold=threshold,
        coverage=float(kept.sum() / weights.sum()),
        risk=risk,
        risk_of_all=risk_of_all,
        risk_at_most=float(beta.ppf(_CONFIDENCE, risk * n_effective + 1, (1 - risk) * n_effective)),
        confidence=_CONFIDENCE,
    )


def _choose(proba: Floats, labels: Ints) -> float | None:
    """Return the lowest confidence to keep, or None where no point has half the risk of all."""
    curve = risk_coverage(proba, labels)
    good = (curve.risk <= _RISK_SHARE * curve.risk[-1]) & (curve.n_kept >= _MIN_PATIENTS)
    return float(curve.threshold[good][-1]) if good.any() else None


def _confidence_and_errors(proba: Floats, labels: Ints) -> tuple[Floats, Bools, Floats]:
    """Return confidence, errors and weights that give every class the same, shape (patients,)."""
    counts = np.bincount(labels, minlength=proba.shape[1])
    return proba.max(axis=1), proba.argmax(axis=1) != labels, 1 / counts[labels]
