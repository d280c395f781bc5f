"""The learning half: bags and labels become calibrated patient probabilities."""

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
