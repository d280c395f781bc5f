"""Class shares, and the exact shift of probabilities from one to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from features.errors import MilError

__all__ = ["balanced", "parse_prior", "shift_prior"]

Shares = npt.NDArray[np.float64]


def balanced(classes: Sequence[str]) -> Shares:
    """Equal shares, shape (classes,)."""
    return np.full(len(classes), 1.0 / len(classes))


def parse_prior(text: str, classes: Sequence[str], counts: Mapping[str, int]) -> Shares:
    """Class shares from what a user wrote.

    Parameters
    ----------
    text
        ``balanced``, ``cohort``, or shares such as ``CE=0.7,LAA=0.3``.
    classes
        Classes in order.
    counts
        Patients of each class in the cohort, for ``cohort``.

    Returns
    -------
    numpy.ndarray
        Shape (classes,), float64, positive, sums to 1.

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
        raise _refusal(text, classes, found=f"shares {values.tolist()}")
    return np.asarray(values / values.sum(), np.float64)


def shift_prior(proba: Shares, *, old: Shares, new: Shares) -> Shares:
    """Probabilities as they would be at another prior (Saerens et al., 2002).

    The likelihood of what was seen stays; only the class shares change, so each probability is
    multiplied by new / old and rows are divided by their sum. No ranking of patients changes.

    Parameters
    ----------
    proba
        Shape (n, classes); rows sum to 1.
    old, new
        Shape (classes,): the shares the probabilities are for, and shall be for.

    Returns
    -------
    numpy.ndarray
        Shape (n, classes), float64; rows sum to 1.
    """
    odds = proba * (new / old)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float64)


def _parse_shares(text: str, classes: Sequence[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() in shares:
            raise _refusal(text, classes, found=f"{name.strip()!r} twice")
        try:
            shares[name.strip()] = float(value)
        except ValueError as error:
            raise _refusal(text, classes, found=f"{part!r} is no share") from error
    if set(shares) != set(classes):
        raise _refusal(text, classes, found=f"shares for {', '.join(shares)}")
    return shares


def _refusal(text: str, classes: Sequence[str], *, found: str) -> MilError:
    example = ",".join(f"{name}={1 / len(classes):.2g}" for name in classes)
    return MilError(
        f"prior {text!r}",
        actual=found,
        expected=f"balanced, cohort, or positive shares that sum to 1 such as {example}",
    )
