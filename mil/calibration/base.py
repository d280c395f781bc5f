"""Base class and registry of calibrators: logits to probabilities at the balanced prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from features.errors import CONTENT_ERRORS
from mil.arrays import Floats, Ints
from mil.errors import CalibrationError

__all__ = [
    "MIN_PATIENTS_PER_CLASS",
    "Calibrator",
    "build_calibrator",
    "calibrator_from_dict",
    "calibrator_names",
    "clipped_log",
    "read_array",
    "read_slope",
    "register_calibrator",
]


MIN_PATIENTS_PER_CLASS = 3
"""Fewest patients of each class that a calibrator is fitted on."""

_MIN_PROBABILITY = 1e-7
_RETIRED = ("auto", "beta", "dirichlet")


class Calibrator(ABC):
    """Map from logits, shape (n, classes), to probabilities at the balanced prior.

    The calibrator of a stack takes logits of shape (n, learners, classes) throughout.

    A new calibrator is one class in one file: it implements the methods below, has a name in files,
    ``kind``, and is registered with :func:`register_calibrator`.
    """

    kind: ClassVar[str]

    @abstractmethod
    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit on logits of patients that the heads were not trained on.

        Every class has the same total weight, so the probabilities are for the balanced prior.

        Parameters
        ----------
        logits
            float64, shape (n, classes).
        labels
            Index of the true class, int64, shape (n,).
        groups
            Patient of each row, int64, shape (n,); the rows of a patient share the weight of one.
            By default each row is a patient.

        Raises
        ------
        CalibrationError
            If a logit is not finite, or a class has fewer than three patients.
        """

    @abstractmethod
    def predict_proba(self, logits: Floats) -> Floats:
        """Return probabilities at the balanced prior, shape (n, classes); rows sum to 1."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file, with the ``kind``."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a calibrator from the result of :meth:`as_dict`.

        Raises
        ------
        CalibrationError
            If a number is missing or out of range.
        """


_KNOWN: dict[str, type[Calibrator]] = {}
_STACKED: dict[str, type[Calibrator]] = {}  # of the logits of several learners

_Kind = TypeVar("_Kind", bound=type[Calibrator])


def register_calibrator(name: str, *, stacked: bool = False) -> Callable[[_Kind], _Kind]:
    """Return a decorator that registers a class under the name of ``--calibrator``.

    A ``stacked`` one takes logits of several learners, shape (n, learners, classes).
    """

    def register(kind: _Kind) -> _Kind:
        (_STACKED if stacked else _KNOWN)[name] = kind
        return kind

    return register


def calibrator_names() -> tuple[str, ...]:
    """Return the names that :func:`build_calibrator` accepts, sorted."""
    return tuple(sorted(_KNOWN))


def build_calibrator(name: str, *, stacked: bool = False) -> Calibrator:
    """Return an unfitted calibrator, of the logits of one learner or of ``stacked`` ones.

    Raises
    ------
    CalibrationError
        If there is none of that name.
    """
    if name not in _KNOWN:
        raise CalibrationError(
            f"calibrator {name!r}",
            actual="moved to tests/benchmarks/_calibrators.py" if name in _RETIRED else "unknown",
            expected=" or ".join(calibrator_names()),
            hint="Take platt, which decision 0017 chose." if name in _RETIRED else "",
        )
    if stacked and name not in _STACKED:
        raise CalibrationError(
            f"calibrator {name!r}",
            actual="for a single head",
            expected=f"{' or '.join(sorted(_STACKED))} for a stack, whose weights it holds",
            hint="Take --calibrator platt, or a single head such as --head gated.",
        )
    return (_STACKED if stacked else _KNOWN)[name]()


def calibrator_from_dict(values: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator of any kind whose ``as_dict`` gave the values.

    Raises
    ------
    CalibrationError
        If the kind is unknown, or a number is missing or out of range.
    """
    kinds = {known.kind: known for known in (*_KNOWN.values(), *_STACKED.values())}
    kind = values.get("kind")
    if kind not in kinds:
        raise CalibrationError(
            "calibrator",
            actual=f"kind {kind!r}",
            expected=" or ".join(sorted(kinds)),
            hint="This version no longer reads that kind (decision 0017). Train the run again with "
            "--calibrator platt."
            if kind in _RETIRED
            else "",
        )
    return kinds[kind].from_dict(values)


def read_array(values: Mapping[str, Any], key: str, *, n_axes: int) -> Floats:
    """Return the array under a key, of any shape with ``n_axes`` axes.

    Raises
    ------
    CalibrationError
        If the key is absent, or its value is anything but finite numbers in that many axes.
    """
    try:
        numbers = np.asarray(values[key], np.float64)
    except CONTENT_ERRORS:
        numbers = np.full((), np.nan)
    if numbers.ndim != n_axes or not np.isfinite(numbers).all():
        raise CalibrationError(
            f"calibrator {values.get('kind')!r}",
            actual=f"{key} = {values.get(key)!r}",
            expected=f"finite numbers in {n_axes} axes",
        )
    return numbers


def read_slope(values: Mapping[str, Any]) -> float:
    """Return the ``slope`` of plain values.

    Raises
    ------
    CalibrationError
        If it is absent or below 0.
    """
    slope = float(read_array(values, "slope", n_axes=0))
    if slope < 0:
        raise CalibrationError(
            "calibrator", actual=f"slope {slope:g}", expected="a slope of at least 0"
        )
    return slope


def clipped_log(proba: Floats) -> Floats:
    """Return log probabilities, shape (n, classes): logits whose softmax is ``proba``.

    Probabilities are clipped at 1e-7, about the resolution of float32 near 1, so that a value that
    was rounded to 0 or 1 in a file does not give an infinite logit.
    """
    return np.asarray(np.log(np.clip(proba, _MIN_PROBABILITY, None)), np.float64)
