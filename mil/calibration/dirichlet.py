"""Dirichlet calibration: every class's probability may speak for every other; three or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.special import log_softmax, softmax

from mil.calibration.base import Calibrator, Floats, Ints, read_numbers, register_calibrator
from mil.calibration.penalized_fit import (
    RIDGE_BIAS,
    RIDGE_SLOPE,
    bias_terms,
    fit_penalized_softmax,
    weigh,
)
from mil.errors import CalibrationError

__all__ = ["DirichletCalibration"]

_RIDGE_OFF_DIAGONAL = 5.0


@register_calibrator("dirichlet")
class DirichletCalibration(Calibrator):
    """``softmax(matrix_ @ ln p + bias_)`` (Kull et al., 2019) for three or more classes.

    Off the diagonal the matrix is held to 0 by a ridge ten times that of a slope, and the biases by
    theirs (the paper's ODIR); the diagonal is not negative. Two classes are served by beta
    calibration, which is the same family.

    Unlike the other calibrators it may change the order of patients: a class that is often taken
    for another takes probability from it. That is what it is for.

    Attributes
    ----------
    matrix_
        Shape (classes, classes): row c holds what each log probability adds to class c.
    bias_
        Shape (classes,), sums to 0.
    """

    kind = "dirichlet"

    def __init__(
        self,
        *,
        matrix: Sequence[Sequence[float]] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        bias: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        self.matrix_: Floats = np.array(matrix, np.float64)
        self.bias_: Floats = np.array(bias, np.float64)

    @classmethod
    def serves(cls, n_classes: int) -> bool:
        """Three classes or more."""
        return n_classes > 2

    @classmethod
    def n_parameters(cls, n_classes: int) -> int:
        """The matrix and all biases but one."""
        return n_classes**2 + n_classes - 1

    def fit(self, logits: Floats, labels: Ints, *, groups: Ints | None = None) -> Self:
        """Fit matrix and biases, see :meth:`mil.calibration.base.Calibrator.fit`."""
        evidence = weigh(logits, labels, groups)
        n, n_classes = logits.shape
        logs = log_softmax(logits, axis=1) / evidence.spread
        # Term (c, j) adds the log probability of class j to the logit of class c.
        into, of = np.divmod(np.arange(n_classes**2), n_classes)
        terms = np.zeros((n_classes**2, n, n_classes))
        terms[np.arange(n_classes**2), :, into] = logs.T[of]
        ridge = np.where(into == of, RIDGE_SLOPE / n_classes, _RIDGE_OFF_DIAGONAL)
        found = fit_penalized_softmax(
            np.concatenate([terms, bias_terms(n, n_classes)]),
            evidence,
            ridge=np.concatenate([ridge, np.full(n_classes, RIDGE_BIAS)]),
            positive=np.flatnonzero(into == of),
        )
        self.matrix_ = found[: n_classes**2].reshape(n_classes, n_classes) / evidence.spread
        self.bias_ = found[n_classes**2 :] - found[n_classes**2 :].mean()
        return self

    def predict_proba(self, logits: Floats) -> Floats:
        """Probabilities at the balanced prior, shape (n, classes); rows sum to 1."""
        scaled = log_softmax(logits, axis=1) @ self.matrix_.T + self.bias_
        return np.asarray(softmax(scaled, axis=1), np.float64)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"kind": self.kind, "matrix": self.matrix_.tolist(), "bias": self.bias_.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` gave."""
        matrix = read_numbers(values, "matrix", n_axes=2)
        bias = read_numbers(values, "bias", n_axes=1)
        if values.get("kind") != cls.kind or matrix.shape != (len(bias), len(bias)):
            raise CalibrationError("calibrator", actual=f"{dict(values)}", expected="a matrix")
        return cls(matrix=matrix.tolist(), bias=bias.tolist())
