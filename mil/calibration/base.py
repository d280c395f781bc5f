"""What every calibrator is: logits in, probabilities at the balanced prior out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import numpy.typing as npt

from mil.errors import CalibrationError

__all__ = [
    "LEAST_OF_A_CLASS",
    "Calibrator",
    "Floats",
    "Ints",
    "build_calibrator",
    "calibrator_from_dict",
    "calibrator_names",
    "logits_of",
    "read_numbers",
    "register_calibrator",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_OF_A_CLASS = 3
"""Patients of each class that a calibrator is fitted on, at least."""

_LEAST_PROBABILITY = 1e-7


class Calibrator(ABC):
    """A map from logits to probabilities at the balanced prior, fitted on few patients.

    A new calibrator is one class in one file: it implements the methods below and is registered
    with :func:`register_calibrator`.
    """

    kind: ClassVar[str]
    """What a file calls it."""

    @classmethod
    def serves(cls, n_classes: int) -> bool:
        """Whether it is made for that many classes."""
        return n_classes >= 2

    @classmethod
    @abstractmethod
    def n_parameters(cls, n_classes: int) -> int:
        """Numbers it is free to choose: fewer is safer."""

    @abstractmethod
    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit on logits of patients that the heads had not seen.

        Every class has the same total weight, so what comes out is for the balanced prior.

        Parameters
        ----------
        logits
            Shape (n, classes), float64.
        labels
            Shape (n,), index of the true class.
        groups
            Shape (n,), whose row it is, where a patient has several (one a repeat): they count
            once together. Every row is a patient's own by default.

        Raises
        ------
        CalibrationError
            If a logit is not finite, or a class has fewer than three patients.
        """

    @abstractmethod
    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, classes); rows sum to 1."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file, with its ``kind``."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave.

        Raises
        ------
        CalibrationError
            If it is of another kind or its numbers cannot be.
        """


_KNOWN: dict[str, type[Calibrator]] = {}

_Kind = TypeVar("_Kind", bound=type[Calibrator])


def register_calibrator(name: str) -> Callable[[_Kind], _Kind]:
    """Make a class known under the name that users ask for it by."""

    def keep(kind: _Kind) -> _Kind:
        _KNOWN[name] = kind
        return kind

    return keep


def calibrator_names(n_classes: int | None = None) -> tuple[str, ...]:
    """Names that :func:`build_calibrator` takes, for a number of classes where one is given."""
    served = (name for name in _KNOWN if n_classes is None or _KNOWN[name].serves(n_classes))
    return tuple(sorted(served))


def build_calibrator(name: str, *, n_classes: int) -> Calibrator:
    """A calibrator that is not yet fitted.

    Raises
    ------
    CalibrationError
        If there is none of that name, or it is not made for that many classes.
    """
    if name not in calibrator_names(n_classes):
        raise CalibrationError(
            f"calibrator {name!r}",
            actual=f"not for {n_classes} classes" if name in _KNOWN else "unknown",
            expected=" or ".join(calibrator_names(n_classes)),
        )
    return _KNOWN[name]()


def calibrator_from_dict(values: Mapping[str, Any]) -> Calibrator:
    """Calibrator of whatever kind, from what its ``as_dict`` gave.

    Raises
    ------
    CalibrationError
        If the kind is unknown or the numbers cannot be.
    """
    kinds = {known.kind: known for known in _KNOWN.values()}
    if values.get("kind") not in kinds:
        raise CalibrationError(
            "calibrator", actual=f"kind {values.get('kind')!r}", expected=" or ".join(sorted(kinds))
        )
    return kinds[values["kind"]].from_dict(values)


def read_numbers(values: Mapping[str, Any], key: str, *, n_axes: int) -> Floats:
    """An array from plain values.

    Raises
    ------
    CalibrationError
        If the key is absent or holds anything but finite numbers in so many axes.
    """
    try:
        numbers = np.asarray(values[key], np.float64)
    except (KeyError, TypeError, ValueError):
        numbers = np.full((), np.nan)
    if numbers.ndim != n_axes or not np.isfinite(numbers).all():
        raise CalibrationError(
            f"calibrator {values.get('kind')!r}",
            actual=f"{key} = {values.get(key)!r}",
            expected=f"finite numbers in {n_axes} axes",
        )
    return numbers


def logits_of(proba: Floats) -> Floats:
    """Logarithms of probabilities, shape (n, classes); what softmax turns back into them.

    They are clipped at 1e-7, about the distance from 1 that float32 can tell: a probability that
    was rounded to 0 or 1 on its way through a file is no infinite logit.
    """
    return np.asarray(np.log(np.clip(proba, _LEAST_PROBABILITY, None)), np.float64)
