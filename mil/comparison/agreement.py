"""Agreement of models patient by patient: shared errors, agreement by chance, rank correlation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from mil.arrays import Bools, Floats, Ints
from mil.comparison.models import AlignedModels

__all__ = ["PairAgreement", "compare_patients", "shared_errors", "true_class_probabilities"]


@dataclass(frozen=True, kw_only=True)
class PairAgreement:
    """Agreement of two models in the most likely class, at equal class shares.

    Attributes
    ----------
    first, second
        Names of the models.
    both_right, only_first_wrong, only_second_wrong, both_wrong
        Numbers of patients.
    kappa
        Agreement of the predicted classes beyond chance (Cohen, 1960), at most 1; NaN where both
        models give one class to everyone.
    rank_correlation
        Spearman's correlation of the probabilities, mean over classes, -1 to 1; NaN where a model
        says the same of everyone.
    """

    first: str
    second: str
    both_right: int
    only_first_wrong: int
    only_second_wrong: int
    both_wrong: int
    kappa: float
    rank_correlation: float

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return asdict(self)


def compare_patients(models: AlignedModels) -> tuple[PairAgreement, ...]:
    """Return the agreement of every pair of models, by their first repeats.

    A mean over repeats, shape (patients, classes), would be of more heads than are deployed.
    """
    first = {model.name: model.proba[0] for model in models.models}
    return tuple(
        _agreement(one, first[one], other, first[other], models.labels)
        for one, other in combinations(first, 2)
    )


def shared_errors(models: AlignedModels) -> Ints:
    """Return the rows of patients that every model gets wrong, shape (n,), worst first."""
    wrong = np.stack([_is_wrong(model.proba[0], models.labels) for model in models.models])
    rows = np.flatnonzero(wrong.all(axis=0))
    certainty = true_class_probabilities(models)[:, rows].mean(axis=0)
    return np.asarray(rows[np.argsort(certainty, kind="stable")], np.int64)


def true_class_probabilities(models: AlignedModels) -> Floats:
    """Return the probability of each patient's true class, shape (models, patients)."""
    rows = np.arange(len(models.labels))
    return np.stack([model.proba[0][rows, models.labels] for model in models.models])


def _agreement(
    first: str, proba: Floats, second: str, other: Floats, labels: Ints
) -> PairAgreement:
    wrong, other_wrong = _is_wrong(proba, labels), _is_wrong(other, labels)
    return PairAgreement(
        first=first,
        second=second,
        both_right=int((~wrong & ~other_wrong).sum()),
        only_first_wrong=int((wrong & ~other_wrong).sum()),
        only_second_wrong=int((~wrong & other_wrong).sum()),
        both_wrong=int((wrong & other_wrong).sum()),
        kappa=_kappa(proba.argmax(axis=1), other.argmax(axis=1), n_classes=proba.shape[1]),
        rank_correlation=float(
            np.mean([_spearman(a, b) for a, b in zip(proba.T, other.T, strict=True)])
        ),
    )


def _is_wrong(proba: Floats, labels: Ints) -> Bools:
    return np.asarray(proba.argmax(axis=1) != labels)


def _kappa(first: Ints, second: Ints, *, n_classes: int) -> float:
    observed = float((first == second).mean())
    shares = [np.bincount(own, minlength=n_classes) / len(own) for own in (first, second)]
    expected = float(shares[0] @ shares[1])
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def _spearman(first: Floats, second: Floats) -> float:
    if not (np.ptp(first) and np.ptp(second)):
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
