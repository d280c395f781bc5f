"""Covariates of a planned training that state the label, or stand for the centre."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mil.audit.findings import Finding, Severity
from mil.data.cohort import Cohort, Columns
from mil.data.covariates import (
    check_covariates,
    missing_code_notes,
    parse_number,
    with_covariates,
)
from mil.data.splits import can_leave_centres_out
from mil.errors import CohortError

__all__ = ["audit_covariates"]

_N_BINS = 5  # of numbers, with equal counts
_LEAST_PATIENTS = 20
_LARGEST_GAIN = 0.4


def audit_covariates(
    cohort: Cohort, names: Sequence[str], *, columns: Columns | None
) -> Iterator[Finding]:
    """Yield findings on covariates, each by itself, of a labelled cohort's table.

    A covariate stands for the centre if the most frequent centre of each category, or of each fifth
    of its numbers, is right for 40 % of the patients whose centre the most frequent one of all
    misses (Goodman and Kruskal's lambda, 1954, of 0.4 or more).

    Raises
    ------
    TableError
        If a column is missing.
    """
    for name in names:
        try:
            one = with_covariates(cohort, [name], columns=columns)
            notes = check_covariates(one)
        except CohortError as error:
            yield Finding(
                Severity.warning, "covariate_refused",
                f"training would refuse the covariate {name!r}: {str(error).removesuffix('.')}",
                subjects=(name,),
            )  # fmt: skip
            continue
        for note in notes:
            yield Finding(Severity.warning, "covariate_tells_label", note, subjects=(name,))
        for note in missing_code_notes(one):
            yield Finding(Severity.warning, "covariate_missing_code", note, subjects=(name,))
        yield from _audit_centre(one, name)


def _audit_centre(cohort: Cohort, name: str) -> Iterator[Finding]:
    stated = [(p.covariates[0], p.center_id) for p in cohort.patients if p.center_id]
    centres = Counter(centre for _, centre in stated)
    if len(stated) < _LEAST_PATIENTS or len(centres) < 2:
        return
    cells = [cell for cell, _ in stated]
    groups = _fifths(cells) if cohort.covariates[0].is_number else cells
    of_group: dict[str, Counter[str]] = defaultdict(Counter)
    for group, (_, centre) in zip(groups, stated, strict=True):
        of_group[group][str(centre)] += 1
    right = sum(max(counts.values()) for counts in of_group.values()) / len(stated)
    base = max(centres.values()) / len(stated)
    if right - base >= _LARGEST_GAIN * (1 - base):
        by_centre = can_leave_centres_out(cohort)
        yield Finding(
            Severity.warning, "covariate_is_shortcut",
            f"the covariate {name!r} tells the centre of {right:.0%} of the patients "
            f"({base:.0%} are of the largest): it may stand for the centre or its scanner",
            "A model with it learns which centre sees which class. Leave it out"
            + (", or compare with 'mil train --by centre'." if by_centre else "."),
            (name,),
        )  # fmt: skip


def _fifths(cells: Sequence[str]) -> list[str]:
    """Return the fifth of the numbers that each cell is in; missing ones are a group."""
    numbers = np.array([np.nan if (n := parse_number(c)) is None else n for c in cells], float)
    limits = np.nanquantile(numbers, np.linspace(0, 1, _N_BINS + 1)[1:-1])
    bins = np.searchsorted(limits, numbers, side="right")
    return ["" if np.isnan(n) else str(b) for n, b in zip(numbers, bins, strict=True)]
