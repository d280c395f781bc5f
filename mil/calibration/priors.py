"""Class shares, and the exact shift of probabilities from one to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from features.errors import MilError
from mil.arrays import Floats

__all__ = ["balanced", "parse_prior", "shift_prior"]


def balanced(classes: Sequence[str]) -> Floats:
    """Return equal class shares, shape (classes,)."""
    return np.full(len(classes), 1.0 / len(classes))


def parse_prior(text: str, classes: Sequence[str], counts: Mapping[str, int]) -> Floats:
    """Return the class shares, shape (classes,), that a text names; they sum to 1.

    The text is ``balanced``, ``cohort`` for the shares of the ``counts`` of patients by class, or
    positive shares such as ``CE=0.7,LAA=0.3``.

    Raises
    ------
    MilError
        If the text is none of these, names a class wrongly, or the shares do not sum to 1.

    Examples
    --------
    >>> parse_prior("CE=0.7,LAA=0.3", ["CE", "LAA"], {}).tolist()
    [0.7, 0.3]
    """
    if text == "balanced":
        return balanced(classes)
    if text == "cohort":
        n_patients = np.array([counts[name] for name in classes], np.float64)
        return np.asarray(n_patients / n_patients.sum(), np.float64)
    shares = _parse_shares(text, classes)
    values = np.array([shares[name] for name in classes])
    if not np.isfinite(values).all() or (values <= 0).any() or abs(values.sum() - 1) > 1e-6:
        raise _prior_error(text, classes, actual=f"shares {values.tolist()}")
    return np.asarray(values / values.sum(), np.float64)


def shift_prior(proba: Floats, *, old: Floats, new: Floats) -> Floats:
    """Return the probabilities at another prior (Saerens et al., 2002).

    The likelihood of the data stays and only the class shares change, so each probability is
    multiplied by new / old and rows are divided by their sums. ``proba`` and the result have shape
    (n, classes), both priors shape (classes,).
    """
    odds = proba * (new / old)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float64)


def _parse_shares(text: str, classes: Sequence[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() in shares:
            raise _prior_error(text, classes, actual=f"{name.strip()!r} twice")
        try:
            shares[name.strip()] = float(value)
        except ValueError as error:
            raise _prior_error(text, classes, actual=f"{part!r}, not a number") from error
    if set(shares) != set(classes):
        raise _prior_error(text, classes, actual=f"shares for {', '.join(shares)}")
    return shares


def _prior_error(text: str, classes: Sequence[str], *, actual: str) -> MilError:
    example = ",".join(f"{name}={1 / len(classes):.2g}" for name in classes)
    return MilError(
        f"prior {text!r}",
        actual=actual,
        expected=f"balanced, cohort, or positive shares that sum to 1 such as {example}",
    )
