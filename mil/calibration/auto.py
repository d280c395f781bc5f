"""The calibrator that picks another: the plainest that is no worse than the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from mil.calibration.base import (
    Calibrator,
    Floats,
    Ints,
    build_calibrator,
    calibrator_from_dict,
    calibrator_names,
    register_calibrator,
)
from mil.calibration.penalized_fit import weigh
from mil.calibration.platt import PlattScaling
from mil.data.splits import stratified_fold_ids
from mil.errors import CalibrationError

__all__ = ["AutoCalibrator"]

_N_PARTS = 5
_LEAST_TO_CHOOSE = 10
_LEAST_PROBABILITY = 1e-15


@register_calibrator("auto")
class AutoCalibrator(Calibrator):
    """Whichever calibrator an inner cross-validation finds, with a bias to fewer parameters.

    Within the patients it is given, each candidate is fitted on four fifths and judged on the rest
    by log loss in which all classes weigh alike. Of all candidates whose loss is within one
    standard error of the best one's, the one with the fewest parameters is taken (the
    one-standard-error rule of Breiman et al., 1984; the error is that of the paired difference
    over patients), and fitted on all of them. Where a class has fewer than 10 patients nothing can
    be told apart, and shrunken Platt is taken. Leaving logits as they are is no candidate: it has
    no parameter but no shrinkage either, and the rule would keep overconfident logits in most
    cohorts of a hundred patients.

    Attributes
    ----------
    picked_
        The calibrator taken, fitted.
    losses_
        Balanced log loss of each candidate in the inner cross-validation, by name; empty where
        there were too few patients to choose.
    """

    kind = "auto"

    def __init__(
        self, *, picked: Calibrator | None = None, losses: Mapping[str, float] | None = None
    ) -> None:
        self.picked_: Calibrator = PlattScaling() if picked is None else picked
        self.losses_: dict[str, float] = dict(losses or {})

    @classmethod
    def n_parameters(cls, n_classes: int) -> int:
        """As many as the richest candidate."""
        return max(_size(name, n_classes) for name in _candidates(n_classes))

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Pick and fit, see :meth:`mil.calibration.base.Calibrator.fit`."""
        n_classes = logits.shape[1]
        owners = np.arange(len(labels)) if groups is None else groups
        patients, first, owner = np.unique(owners, return_index=True, return_inverse=True)
        name = "platt"
        self.losses_ = {}
        if np.bincount(labels[first], minlength=n_classes).min() >= _LEAST_TO_CHOOSE:
            parts = stratified_fold_ids(labels[first], n_folds=_N_PARTS, seed=(len(patients),))[
                owner
            ]
            mass = weigh(logits, labels, groups).mass
            losses = {
                kind: _held_out(kind, logits, labels, owners, parts)
                for kind in _candidates(n_classes)
            }
            name = _one_standard_error_choice(losses, mass, owner, labels[first])
            self.losses_ = {
                kind: float(np.average(found, weights=mass)) for kind, found in losses.items()
            }
        self.picked_ = build_calibrator(name, n_classes=n_classes).fit(
            logits, labels, groups=groups
        )
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        return self.picked_.predict_proba(logits)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file: what was picked, and what was found of every candidate."""
        return {"kind": self.kind, "picked": self.picked_.as_dict(), "losses": self.losses_}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        picked, losses = values.get("picked"), values.get("losses")
        if (
            values.get("kind") != cls.kind
            or not isinstance(picked, Mapping)
            or not isinstance(losses, Mapping)
        ):
            raise CalibrationError(
                "calibrator", actual=f"{dict(values)}", expected="what it picked"
            )
        return cls(picked=calibrator_from_dict(picked), losses=losses)


def _candidates(n_classes: int) -> list[str]:
    """Names of the calibrators to choose from, the plainest first."""
    names = set(calibrator_names(n_classes)) - {"auto", "none"}
    return sorted(names, key=lambda name: _size(name, n_classes))


def _size(name: str, n_classes: int) -> int:
    return build_calibrator(name, n_classes=n_classes).n_parameters(n_classes)


def _held_out(name: str, logits: Floats, labels: Ints, owners: Ints, parts: Ints) -> Floats:
    """Log loss of each row by a calibrator fitted on the other parts, shape (n,)."""
    losses = np.empty(len(labels))
    for part in range(_N_PARTS):
        held, rest = parts == part, parts != part
        fitted = build_calibrator(name, n_classes=logits.shape[1]).fit(
            logits[rest], labels[rest], groups=owners[rest]
        )
        proba = fitted.predict_proba(logits[held])[np.arange(held.sum()), labels[held]]
        losses[held] = -np.log(np.clip(proba, _LEAST_PROBABILITY, None))
    return losses


def _one_standard_error_choice(
    losses: Mapping[str, Floats], mass: Floats, owner: Ints, labels_of_patients: Ints
) -> str:
    """First of the candidates that is within one standard error of the best."""
    means = {name: np.average(found, weights=mass) for name, found in losses.items()}
    best = min(means, key=lambda name: means[name])
    for name, found in losses.items():
        worse = np.bincount(owner, (found - losses[best])) / np.bincount(owner)
        if means[name] - means[best] <= _standard_error(worse, labels_of_patients):
            return name
    return best


def _standard_error(values: Floats, labels: Ints) -> float:
    """Standard error of the mean over classes of each class's mean."""
    of_class = [values[labels == label] for label in np.unique(labels)]
    return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in of_class)) / len(of_class))
