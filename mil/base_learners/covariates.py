"""Base learner of clinical covariates: logistic regression on numbers and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from mil.arrays import Floats, Ints
from mil.base_learners.logistic import LinearModel
from mil.data.cohort import Covariate
from mil.data.covariates import parse_number

__all__ = ["COVARIATES", "CovariateModel", "with_covariate_logits"]

COVARIATES = "covariates"
"""Name of the learner, the last of a stack."""


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A covariate as the training patients showed it.

    ``median`` stands for a missing number, beside an indicator if training patients lacked some;
    of ``categories`` each has an indicator, and so have missing and unknown ones together.
    """

    name: str
    is_number: bool
    median: float
    has_missing: bool
    categories: tuple[str, ...]

    @classmethod
    def fit(cls, covariate: Covariate, cells: Sequence[str]) -> Self:
        numbers = [parse_number(cell) for cell in cells if cell] if covariate.is_number else []
        return cls(
            name=covariate.name,
            is_number=covariate.is_number,
            median=float(np.median(np.array(numbers, float))) if numbers else 0.0,
            has_missing=not all(cells),
            categories=() if covariate.is_number else tuple(sorted({c for c in cells if c})),
        )

    def encode(self, cells: Sequence[str]) -> Floats:
        """Return features, shape (patients, features of the column)."""
        if self.is_number:
            numbers = [parse_number(cell) for cell in cells]
            missing = [number is None for number in numbers]
            filled = [self.median if number is None else number for number in numbers]
            return np.array([filled, missing] if self.has_missing else [filled], float).T
        known = np.array([[cell == name for name in self.categories] for cell in cells], float)
        known = known.reshape(len(cells), len(self.categories))
        return np.hstack([known, 1 - known.sum(axis=1, keepdims=True)])


@dataclass(frozen=True, kw_only=True, eq=False)
class CovariateModel:
    """Logistic regression on covariates, fitted on the training patients of an ensemble.

    Medians, categories, means and standard deviations are those of the training patients. A number
    beyond 8 standard deviations counts as 8.
    """

    columns: tuple[_Column, ...]
    linear: LinearModel

    @classmethod
    def fit(
        cls,
        covariates: Sequence[Covariate],
        cells: Sequence[Sequence[str]],
        labels: Ints,
        *,
        n_classes: int,
        balanced: bool,
    ) -> Self:
        """Fit to the cells of training patients, (patients, covariates), empty where missing.

        ``labels`` are class indices, shape (patients,), every class at least once; ``balanced``
        gives every class the same total weight.
        """
        by_column = list(zip(*cells, strict=True))
        columns = tuple(map(_Column.fit, covariates, by_column))
        features = _encode(columns, cells)
        linear = LinearModel.fit(
            features, labels, n_classes=n_classes, balanced=balanced, standardise=True
        )
        return cls(columns=columns, linear=linear)

    @property
    def covariates(self) -> tuple[Covariate, ...]:
        """Covariates that a patient needs, in order."""
        return tuple(Covariate(name=own.name, is_number=own.is_number) for own in self.columns)

    @property
    def constant(self) -> tuple[str, ...]:
        """Covariates that were the same for all training patients, and have no weight."""
        ends = np.cumsum([self._width(own) for own in self.columns])[:-1]
        weights = np.split(self.linear.weights, ends)
        return tuple(
            own.name for own, part in zip(self.columns, weights, strict=True) if not part.any()
        )

    @staticmethod
    def _width(own: _Column) -> int:
        return 1 + (own.has_missing if own.is_number else len(own.categories))

    def logits(self, cells: Sequence[Sequence[str]]) -> Floats:
        """Return logits, shape (patients, classes), of cells (patients, covariates)."""
        return self.linear.logits(_encode(self.columns, cells))

    def unknown(self, cells: Sequence[str]) -> tuple[str, ...]:
        """Return the categories of a patient that no training patient had, as ``name: word``."""
        return tuple(
            f"{own.name}: {cell}"
            for own, cell in zip(self.columns, cells, strict=True)
            if cell and not own.is_number and cell not in own.categories
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a file; weights have shape (features, classes)."""
        linear = self.linear
        return {
            "columns": [asdict(own) for own in self.columns],
            "limit": linear.limit,
            **{
                name: getattr(linear, name).tolist()
                for name in ("centre", "scale", "weights", "bias")
            },
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, n_classes: int) -> Self:
        """Return the model of :meth:`as_dict`, with logits of shape (patients, classes).

        Raises
        ------
        KeyError, TypeError, ValueError
            If a value is missing, of another shape or not finite.
        """
        columns = tuple(
            _Column(**{**own, "categories": tuple(own["categories"])}) for own in values["columns"]
        )
        width = sum(map(cls._width, columns))
        shapes = {
            "centre": (width,), "scale": (width,), "weights": (width, n_classes),
            "bias": (n_classes,),
        }  # fmt: skip
        arrays = {name: np.array(values[name], float) for name in shapes}
        for name, array in arrays.items():
            if array.shape != shapes[name] or not np.isfinite(array).all():
                raise ValueError(f"covariates: {name} of shape {array.shape}, or not finite")
        if not (arrays["scale"] > 0).all():
            raise ValueError("covariates: a scale that is not above 0")
        return cls(columns=columns, linear=LinearModel(limit=float(values["limit"]), **arrays))


def with_covariate_logits(logits: Floats, of_covariates: Floats) -> Floats:
    """Return logits (..., learners, classes) with those of covariates, (classes,), as the last."""
    shared = np.broadcast_to(of_covariates, (*logits.shape[:-2], 1, logits.shape[-1]))
    return np.concatenate([logits, shared], axis=-2)


def _encode(columns: Sequence[_Column], cells: Sequence[Sequence[str]]) -> Floats:
    by_column = zip(columns, zip(*cells, strict=True), strict=True)
    return np.hstack([own.encode(of_column) for own, of_column in by_column])
