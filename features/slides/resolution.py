"""Resolution of a slide in µm per px, and its source."""

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
"""Deviation from the median that is an outlier; usual objectives differ by a factor of 2."""

ASSUMED_MPP = 0.25
"""µm per px of a slide without a plausible resolution (a 40x scan)."""

PLAUSIBLE_MPP = (0.05, 20.0)
"""Range of µm per px: finer is beyond light microscopy, coarser is not a scan."""

MppSource = Literal["file", "given", "assumed"]
"""Source of a resolution: the slide's header, the user, or :data:`ASSUMED_MPP`."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Resolution of a slide's level 0, µm per px along x and y, and its source."""

    mpp_x: float
    mpp_y: float
    source: MppSource

    @property
    def mpp(self) -> float:
        """Geometric mean of both axes, µm per pixel."""
        return math.sqrt(self.mpp_x * self.mpp_y)


def resolve_mpp(
    file_mpp_xy: tuple[float, float] | None, *, given_mpp: float | None, where: object
) -> Resolution:
    """Return the given resolution, else the file's if plausible, else :data:`ASSUMED_MPP`.

    All are in µm per level-0 px, the file's along x and y; None where there is none. Raises
    ResolutionError, which names ``where``, if ``given_mpp`` is outside :data:`PLAUSIBLE_MPP`.
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
    """Return ids of slides whose µm per px differs by :data:`OUTLIER_FACTOR` from the median.

    They were scanned with another objective, or have a wrong header.

    Examples
    --------
    >>> mpp_outliers({"a": 0.25, "b": 0.252, "c": 0.5})
    ['c']
    """
    if not mpp_by_slide:
        return []
    typical = median(mpp_by_slide.values())
    return [
        slide_id
        for slide_id, mpp in mpp_by_slide.items()
        if not 1 / OUTLIER_FACTOR < mpp / typical < OUTLIER_FACTOR
    ]


def _is_plausible(mpp: float) -> bool:
    low, high = PLAUSIBLE_MPP
    return low <= mpp <= high  # False for NaN too
