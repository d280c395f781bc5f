"""The learning half: bags and labels become calibrated patient probabilities.

The road of a training: :mod:`mil.data.cohort` (who), :mod:`mil.data.bags` (their bags),
:mod:`mil.data.splits` (folds), :mod:`mil.training.cv_plan` (all that is settled beforehand),
:mod:`mil.training.cross_validation` over :mod:`mil.training.fold_jobs` (each fold's ensemble judges
those it was kept from), :mod:`mil.training.ensemble` over :mod:`mil.training.trainer` (an ensemble,
and the loop in which its heads learn), :mod:`mil.calibration`, :mod:`mil.inference.conformal`,
:mod:`mil.inference.bundle` (what is kept), :mod:`mil.reporting.run_report`. :mod:`mil.training_run`
walks it from end to end; :mod:`mil.inference.predict` applies what came of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mil.classifier import MILClassifier

__all__ = ["MILClassifier"]


def __getattr__(name: str) -> object:
    """Import the classifier, and torch with it, only where it is asked for."""
    if name != "MILClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mil.classifier import MILClassifier  # noqa: PLC0415

    return MILClassifier
