"""How many µm a pixel covers, and how we came to know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from features.errors import ResolutionError

__all__ = [
    "ASSUMED_MPP",
    "OUTLIER_FACTOR",
    "PLAUSIBLE_MPP",
    "MppSource",
    "Resolution",
    "mpp_outliers",
    "resolve_mpp",
]

OUTLIER_FACTOR = 1.5
"""So many times finer or coarser than usual is odd: usual objectives lie a factor of 2 apart."""

ASSUMED_MPP = 0.25
"""µm per pixel taken for a slide that says nothing plausible (a 40x scan)."""

PLAUSIBLE_MPP = (0.05, 20.0)
"""Least and largest µm per pixel believed of a slide: finer is beyond light, coarser no scan."""

MppSource = Literal["file", "given", "assumed"]
"""Where a resolution comes from: the slide's own header, the user, or our default."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Resolution of a slide's level 0."""

    mpp_x: float
    """µm per level-0 pixel along x."""
    mpp_y: float
    """µm per level-0 pixel along y."""
    source: MppSource
    """Where it comes from."""

    @property
    def mpp(self) -> float:
        """Geometric mean of both axes, µm per pixel."""
        return math.sqrt(self.mpp_x * self.mpp_y)


def resolve_mpp(
    file_mpp_xy: tuple[float, float] | None, *, given_mpp: float | None, where: object
) -> Resolution:
    """Resolution of a slide: the one given, else the file's where plausible, else the assumed one.

    What the user gives comes first, because it is given only where the file is known to be wrong.

    Parameters
    ----------
    file_mpp_xy
        µm per level-0 pixel along x and y as the file says; None if it is silent.
    given_mpp
        µm per level-0 pixel as the user says; None if nothing is given.
    where
        The slide, for the message.

    Raises
    ------
    ResolutionError
        If ``given_mpp`` lies outside :data:`PLAUSIBLE_MPP`.
    """
    if given_mpp is not None:
        if not _is_plausible(given_mpp):
            low, high = PLAUSIBLE_MPP
            raise ResolutionError(
                where,
                actual=f"a given resolution of {given_mpp:g} µm/px",
                expected=f"{low:g} to {high:g} µm/px",
                hint="Give micrometres per level-0 pixel, e.g. 0.25 for a 40x scan.",
            )
        return Resolution(mpp_x=given_mpp, mpp_y=given_mpp, source="given")
    if file_mpp_xy is not None and all(map(_is_plausible, file_mpp_xy)):
        return Resolution(mpp_x=file_mpp_xy[0], mpp_y=file_mpp_xy[1], source="file")
    return Resolution(mpp_x=ASSUMED_MPP, mpp_y=ASSUMED_MPP, source="assumed")


def mpp_outliers(mpp_by_slide: Mapping[str, float]) -> list[str]:
    """Slides whose resolution is far from the usual one: scanned otherwise, or a wrong header.

    Far is a factor of :data:`OUTLIER_FACTOR` from the median.

    Parameters
    ----------
    mpp_by_slide
        µm per level-0 px by slide id.

    Examples
    --------
    >>> mpp_outliers({"a": 0.25, "b": 0.252, "c": 0.5})
    ['c']
    """
    if not mpp_by_slide:
        return []
    usual = median(mpp_by_slide.values())
    return [
        slide_id
        for slide_id, mpp in mpp_by_slide.items()
        if not 1 / OUTLIER_FACTOR < mpp / usual < OUTLIER_FACTOR
    ]


def _is_plausible(mpp: float) -> bool:
    low, high = PLAUSIBLE_MPP
    return low <= mpp <= high  # False for NaN too
