"""Shares of patients with each label, from what a user wrote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from features.errors import KnownError

__all__ = ["parse_label_prior"]

Floats = npt.NDArray[np.float64]


def parse_label_prior(text: str, names: Sequence[str], *, cohort: Floats) -> Floats:
    """Share of patients with each label.

    Parameters
    ----------
    text
        ``cohort``, ``balanced`` (a half of each), or shares such as ``any=0.4,epidural=0.02``.
    names
        Names of the labels.
    cohort
        Shares that ``cohort`` stands for, shape (labels,).

    Returns
    -------
    numpy.ndarray
        Shape (labels,), above 0 and below 1.

    Raises
    ------
    KnownError
        If the text is none of these, or lacks a label.
    """
    if text == "cohort":
        return cohort
    if text == "balanced":
        return np.full(len(names), 0.5)
    try:
        shares = {n.strip(): float(v) for n, v in (part.split("=") for part in text.split(","))}
        values = np.array([shares[name] for name in names])
    except (KeyError, ValueError):
        values = np.empty(0)
    if len(values) != len(text.split(",")) or not ((values > 0) & (values < 1)).all():
        example = ",".join(f"{name}={share:.2g}" for name, share in zip(names, cohort, strict=True))
        raise KnownError(
            f"prior {text!r}", found="no shares of all labels",
            expected=f"cohort, balanced, or shares above 0 and below 1 such as {example}",
        )  # fmt: skip
    return values
