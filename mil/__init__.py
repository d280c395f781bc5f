"""The learning half: bags and labels become calibrated patient probabilities.

The road of a training: :mod:`mil.cohort` (who), :mod:`mil.data` (their bags), :mod:`mil.splits`
(folds), :mod:`mil.design` (all that is settled beforehand), :mod:`mil.validation` over
:mod:`mil.judging` (each fold's ensemble judges those it was kept from), :mod:`mil.training` over
:mod:`mil.lessons` (an ensemble, and the loop in which its heads learn), :mod:`mil.calibration`,
:mod:`mil.conformal`, :mod:`mil.model` (what is kept), :mod:`mil.report`. :mod:`mil.fitting` walks
it from end to end; :mod:`mil.inference` applies what came of it.
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
